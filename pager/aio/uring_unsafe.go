//go:build linux

package aio

import (
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sqe is struct io_uring_sqe of linux/io_uring.h.
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      int64
	addr     uint64
	len      uint32
	opFlags  uint32 // rw_flags, fsync_flags
	userData uint64
	_        [3]uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// uringParams is struct io_uring_params with its two tables of offsets into
// the shared mapping.
type uringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32

	sq struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		userAddr                                            uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		userAddr                                            uint64
	}
}

// uringSyncCancel is struct io_uring_sync_cancel_reg.
type uringSyncCancel struct {
	addr   uint64
	fd     int32
	flags  uint32
	sec    int64
	nsec   int64
	opcode uint8
	_      [7]uint8
	_      [3]uint64
}

const (
	uringSetupClamp = 1 << 4 // IORING_SETUP_CLAMP
	uringSingleMmap = 1 << 0 // IORING_FEAT_SINGLE_MMAP
	uringNoDrop     = 1 << 1 // IORING_FEAT_NODROP
	uringOffRings   = 0      // IORING_OFF_SQ_RING
	uringOffSQEs    = 0x10000000
	uringGetEvents  = 1 << 0 // IORING_ENTER_GETEVENTS
	uringRegEventFD = 4      // IORING_REGISTER_EVENTFD
	uringRegCancel  = 24     // IORING_REGISTER_SYNC_CANCEL
	uringCancelAny  = 1 << 2 // IORING_ASYNC_CANCEL_ANY

	uringFsync    = 3 // IORING_OP_*
	uringRead     = 22
	uringWrite    = 23
	uringDatasync = 1 << 0 // IORING_FSYNC_DATASYNC

	uringMaxLen = 1 << 30 // of one entry: its length has 32 bits. The rest is continued
)

// uring is the io_uring backend. A slot is the index of its submission entry.
//
// The kernel finishes a transfer in the thread that submitted it, which it
// interrupts or wakes for the purpose, whatever that thread is at: with
// goroutines submitting from many threads this is what io_uring costs more
// than Linux AIO here. (The modes that avoid it, IORING_SETUP_DEFER_TASKRUN
// and SINGLE_ISSUER, want one thread that does nothing else.) Registered files
// and buffers saved 3-8 % of the CPU time of a read, less than that costs, and
// would have to be told of every file that opens and closes: not done.
type uring struct {
	fd    int
	rings []byte // both rings
	sqes  []byte

	sqMu    sync.Mutex // one producer at a time; the kernel has a lock of its own there
	sqHead  *uint32
	sqTail  *uint32
	sqMask  uint32
	sqArray unsafe.Pointer

	cqHead *uint32
	cqTail *uint32
	cqMask uint32
	cqes   unsafe.Pointer

	probe [1]byte // what try reads into: not on a stack, which may move
}

// newURing sets the ring up. The error is a syscall.Errno.
func newURing(depth int, eventfd int) (*uring, error) {
	p := uringParams{flags: uringSetupClamp}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, errno
	}
	u := &uring{fd: int(fd)}
	unix.CloseOnExec(u.fd)
	if err := u.mapRings(&p, depth, eventfd); err != nil {
		u.close()
		return nil, err
	}
	return u, nil
}

func (u *uring) mapRings(p *uringParams, depth, eventfd int) error {
	if p.features&uringSingleMmap == 0 || p.features&uringNoDrop == 0 || p.sqEntries < uint32(depth) {
		return unix.ENOSYS // before Linux 5.5
	}
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	var err error
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if u.rings, err = unix.Mmap(u.fd, uringOffRings, int(size), prot, flags); err != nil {
		return err
	}
	if u.sqes, err = unix.Mmap(u.fd, uringOffSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, flags); err != nil {
		return err
	}
	base := unsafe.Pointer(unsafe.SliceData(u.rings))
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Add(base, off)) }
	u.sqHead, u.sqTail, u.sqMask = word(p.sq.head), word(p.sq.tail), *word(p.sq.mask)
	u.sqArray = unsafe.Add(base, p.sq.array)
	u.cqHead, u.cqTail, u.cqMask = word(p.cq.head), word(p.cq.tail), *word(p.cq.mask)
	u.cqes = unsafe.Add(base, p.cq.cqes)
	efd := int32(eventfd)
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(u.fd), uringRegEventFD, uintptr(unsafe.Pointer(&efd)), 1, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func (u *uring) prepare(slot int32, op *Op) {
	e := (*sqe)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(u.sqes)), uintptr(slot)*unsafe.Sizeof(sqe{})))
	*e = sqe{fd: int32(op.FD), userData: uint64(slot)}
	switch op.Code {
	case Flush:
		e.opcode, e.opFlags = uringFsync, uringDatasync
		return
	case Write:
		e.opcode = uringWrite
	default:
		e.opcode = uringRead
	}
	buf, off := op.rest()
	e.addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(buf))))
	e.len = uint32(min(len(buf), uringMaxLen))
	e.off = off
	if off == -1 {
		e.off = -2 // -1 would mean the file's own position; this is EINVAL as it should be
	}
}

func (u *uring) submit(b batch) (int, syscall.Errno) {
	u.sqMu.Lock()
	defer u.sqMu.Unlock()
	first := *u.sqTail
	tail := first
	for _, slot := range b.slots[b.from:b.n] {
		*(*uint32)(unsafe.Add(u.sqArray, uintptr(tail&u.sqMask)*4)) = uint32(slot)
		tail++
	}
	atomic.StoreUint32(u.sqTail, tail)
	n, errno := u.enter(tail-first, 0)
	if n == int(tail-first) {
		return n, 0 // and the ring may be gone by now, if all have finished
	}
	// Take back what was left: nobody else must submit it.
	head := atomic.LoadUint32(u.sqHead)
	atomic.StoreUint32(u.sqTail, head)
	return int(head - first), errno
}

// enter is io_uring_enter(2).
func (u *uring) enter(submit, wait uint32) (int, syscall.Errno) {
	var flags uintptr
	if wait > 0 {
		flags = uringGetEvents
	}
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), uintptr(submit), uintptr(wait), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func (u *uring) pending() int {
	return int(atomic.LoadUint32(u.cqTail) - *u.cqHead)
}

func (u *uring) take(cs []completion) int {
	head, tail := *u.cqHead, atomic.LoadUint32(u.cqTail)
	n := 0
	for ; n < len(cs) && head != tail; n++ {
		c := (*cqe)(unsafe.Add(u.cqes, uintptr(head&u.cqMask)*unsafe.Sizeof(cqe{})))
		cs[n] = completion{int32(c.userData), int64(c.res)}
		head++
	}
	if n > 0 {
		// Gives the entries back to the kernel: not before they are read.
		atomic.StoreUint32(u.cqHead, head)
	}
	return n
}

// cancel ends what has not reached a device with ECANCELED (Linux 6.0; before
// that nothing is cancelled). With no time to wait it only asks once.
func (u *uring) cancel() {
	c := uringSyncCancel{flags: uringCancelAny}
	unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(u.fd), uringRegCancel, uintptr(unsafe.Pointer(&c)), 1, 0, 0)
}

func (u *uring) close() error {
	err := unix.Close(u.fd)
	for _, m := range [][]byte{u.rings, u.sqes} {
		if m != nil {
			if e := unix.Munmap(m); err == nil {
				err = e
			}
		}
	}
	return err
}
