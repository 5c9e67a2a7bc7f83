//go:build linux

package pager

import (
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/uffd"
)

// What the pager asks of the kernel, in the form that any party may use: no
// allocation, no P, no preemption.

const sysSchedYield = syscall.SYS_SCHED_YIELD

// mapPages makes n bytes at dst present with the contents of src; protect
// write-protects them in the same step. All or nothing: on an error the range
// is missing again. What was stored meanwhile to frames that had come without
// protection is lost then: see mapFrames.
//
//go:nosplit
//go:norace
//go:nocheckptr
func mapPages(dst uintptr, src unsafe.Pointer, n uintptr, protect bool) (errno uintptr) {
	if _, errno = mapFrames(dst, src, n, protect); errno != 0 {
		unmapVia(dst, n)
	}
	return errno
}

// mapFrames is mapPages that leaves what it has mapped before an error, and says
// how many bytes that is.
//
//go:nosplit
//go:norace
//go:nocheckptr
func mapFrames(dst uintptr, src unsafe.Pointer, n uintptr, protect bool) (done, errno uintptr) {
	if sp.fd < 0 {
		bare.Copy(bare.Ptr(dst), src, n)
		return n, 0
	}
	var mode uint64
	if protect && sp.wp {
		mode = uffd.CopyWP
	}
	at := uintptr(0)
	for turn := 0; ; turn++ {
		done, e := uffd.RawCopy(sp.fd, dst+at, uintptr(src)+at, n-at, mode)
		at += uintptr(done)
		if at == n {
			return n, 0
		}
		if e == uintptr(syscall.EAGAIN) || (e == 0 && done > 0) {
			// The address space is being changed (mmap elsewhere in the process).
			relax(turn)
			continue
		}
		if e == uintptr(syscall.EEXIST) && turn < 1000 {
			// A page of ours is left from an install that failed half way.
			unmapVia(dst+at, n-at)
			continue
		}
		if e == 0 {
			e = uintptr(syscall.EIO)
		}
		return at, e
	}
}

// unmapVia is unmapRange; see cleanVia.
var unmapVia = unmapRange

// unmapRange makes the range missing.
//
//go:nosplit
//go:norace
//go:nocheckptr
func unmapRange(addr, n uintptr) {
	r := uffd.Range{Addr: addr, Len: n}
	uffd.RawZap(&r, 1)
}

// protectVia is protectRange where it may fail; see cleanVia.
var protectVia = protectRange

// protectRange write-protects a present range, or takes the protection away.
//
//go:nosplit
//go:norace
//go:nocheckptr
func protectRange(addr, n uintptr, protect bool) (errno uintptr) {
	if sp.fd < 0 || !sp.wp {
		return 0
	}
	var mode uint64
	if protect {
		mode = uffd.ProtectWP
	}
	for turn := 0; ; turn++ {
		e := uffd.RawWriteProtect(sp.fd, addr, n, mode)
		if e != uintptr(syscall.EAGAIN) {
			return e
		}
		relax(turn)
	}
}

// eventfdSignal adds one to an eventfd. EAGAIN (the counter is full) means
// that it is signalled already.
//
//go:nosplit
//go:norace
//go:nocheckptr
func eventfdSignal(fd int32) {
	one := uint64(1)
	bare.Syscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8, 0, 0, 0)
}
