package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mincore is mincore(2): one byte of vec for each page of mem, whose lowest bit
// says that the page is in memory.
func mincore(mem, vec []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&vec[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

// preadNowait is preadv2(2) with RWF_NOWAIT: it reads what is in the page cache,
// and is EAGAIN if nothing is. unix.Preadv2 would do the same, but allocates.
func preadNowait(fd int, p []byte, off int64) (int, error) {
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(off), uintptr(uint64(off)>>32>>(^uint(0)>>63*32)), unix.RWF_NOWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// setEventFilter makes a tracepoint counter count only events that match, in
// the language of trace events (Documentation/trace/events.rst).
func setEventFilter(fd int, filter string) error {
	b, err := unix.BytePtrFromString(filter)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PERF_EVENT_IOC_SET_FILTER, uintptr(unsafe.Pointer(b)))
	if errno != 0 {
		return errno
	}
	return nil
}

// perfAttrSize is the size of struct perf_event_attr, see perf_event_open(2).
const perfAttrSize = uint32(unsafe.Sizeof(unix.PerfEventAttr{}))
