package uffd

import (
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// The raw forms. Contract of all of them: fd is that of an open FD (see FD.Fd);
// addresses and lengths are multiples of the page size; exactly one ioctl is
// made, nothing is retried; errno is 0 or the kernel's; done is the number of
// bytes done, never negative, and can be > 0 beside an errno. No allocation, no
// lock, no P, no g: callable from a signal handler. The thread keeps its P, if
// it has one, for the time of the call.

// RawCopy installs n bytes of src at dst: UFFDIO_COPY with the CopyXxx bits in
// mode. Each page becomes visible whole.
//
// EAGAIN with done > 0 is a partial copy; call again with the rest to learn why
// it stopped. EAGAIN with done = 0 means that the address space is being
// changed; call again, with back-off. EEXIST: the first page is present
// already. ENOENT: dst is not registered here. EFAULT: src cannot be read.
// ENOMEM: no memory (beyond a cgroup limit the process is killed instead).
//
//go:nosplit
//go:norace
//go:nocheckptr
func RawCopy(fd int, dst, src, n uintptr, mode uint64) (done int64, errno uintptr) {
	if mode&CopyWP != 0 && masked(FeatureWriteProtect) {
		return 0, uintptr(syscall.EINVAL)
	}
	a := argCopy{dst: uint64(dst), src: uint64(src), len: uint64(n), mode: mode}
	_, errno = bare.Syscall(syscall.SYS_IOCTL, uintptr(fd), ioctlCopy, uintptr(unsafe.Pointer(&a)), 0, 0, 0)
	return progress(a.done), errno
}

// RawMove moves the frames of [src, src+n) to dst without copying: UFFDIO_MOVE
// with the MoveXxx bits in mode. Both are private anonymous memory with the
// same protection; dst is registered here and missing. The pages arrive
// writable and not write-protected.
//
// Errors as of RawCopy, and EBUSY: a page is pinned by direct I/O or shared
// after fork; ENOENT also: a source page is missing; EINVAL also: not of this
// kind, or a kernel before 6.8. EEXIST, with done = 0, is no proof that nothing was
// moved: Linux 6.18 also says it of a huge page all of which it has moved, if a thread
// touched the destination meanwhile.
//
//go:nosplit
//go:norace
//go:nocheckptr
func RawMove(fd int, dst, src, n uintptr, mode uint64) (done int64, errno uintptr) {
	if masked(FeatureMove) {
		return 0, uintptr(syscall.EINVAL)
	}
	a := argCopy{dst: uint64(dst), src: uint64(src), len: uint64(n), mode: mode}
	_, errno = bare.Syscall(syscall.SYS_IOCTL, uintptr(fd), ioctlMove, uintptr(unsafe.Pointer(&a)), 0, 0, 0)
	return progress(a.done), errno
}

// RawZeroPage installs zero pages: UFFDIO_ZEROPAGE with ZeroDontWake or 0.
// Errors as of RawCopy. The pages map the kernel's shared zero page, writable
// on the next write without a fault that anybody sees.
//
//go:nosplit
//go:norace
//go:nocheckptr
func RawZeroPage(fd int, addr, n uintptr, mode uint64) (done int64, errno uintptr) {
	a := argZeropage{r: kernelRange{uint64(addr), uint64(n)}, mode: mode}
	_, errno = bare.Syscall(syscall.SYS_IOCTL, uintptr(fd), ioctlZeropage, uintptr(unsafe.Pointer(&a)), 0, 0, 0)
	return progress(a.done), errno
}

// RawPoison makes touches of missing pages fail for good: UFFDIO_POISON with
// PoisonDontWake or 0. Errors as of RawCopy; EINVAL also on a kernel before
// 6.6. A touch is SIGBUS with BUS_MCEERR_AR, a system call gets EHWPOISON or
// EFAULT. Zapping takes the mark away, and a copy replaces it: only another
// Poison says EEXIST.
//
//go:nosplit
//go:norace
//go:nocheckptr
func RawPoison(fd int, addr, n uintptr, mode uint64) (done int64, errno uintptr) {
	if masked(FeaturePoison) {
		return 0, uintptr(syscall.EINVAL)
	}
	a := argZeropage{r: kernelRange{uint64(addr), uint64(n)}, mode: mode}
	_, errno = bare.Syscall(syscall.SYS_IOCTL, uintptr(fd), ioctlPoison, uintptr(unsafe.Pointer(&a)), 0, 0, 0)
	return progress(a.done), errno
}

// RawWriteProtect protects the present pages of a range against writes
// (ProtectWP in mode) or takes the protection away (0): UFFDIO_WRITEPROTECT.
// Missing pages are skipped unless the descriptor has APIWPUnpopulated. The
// range must be registered with RegisterWP (else ENOENT). EAGAIN: the address
// space is being changed, call again; the kernel does not say how far it came,
// but the call can be repeated as a whole.
//
//go:nosplit
//go:norace
//go:nocheckptr
func RawWriteProtect(fd int, addr, n uintptr, mode uint64) (errno uintptr) {
	if masked(FeatureWriteProtect) {
		return uintptr(syscall.EINVAL)
	}
	a := argWriteprotect{r: kernelRange{uint64(addr), uint64(n)}, mode: mode}
	_, errno = bare.Syscall(syscall.SYS_IOCTL, uintptr(fd), ioctlWriteprotect, uintptr(unsafe.Pointer(&a)), 0, 0, 0)
	return errno
}

// RawWake wakes threads that sleep in the kernel on faults in the range:
// UFFDIO_WAKE. In SIGBUS mode there are none.
//
//go:nosplit
//go:norace
//go:nocheckptr
func RawWake(fd int, addr, n uintptr) (errno uintptr) {
	r := kernelRange{uint64(addr), uint64(n)}
	_, errno = bare.Syscall(syscall.SYS_IOCTL, uintptr(fd), ioctlWake, uintptr(unsafe.Pointer(&r)), 0, 0, 0)
	return errno
}

// progress turns the kernel's out field into bytes done. Where nothing was
// done the field is 0 (never written; Linux ≤ 6.14 on EAGAIN) or a negated
// errno (−EEXIST always, −EAGAIN on ≥ 6.15).
//
//go:nosplit
//go:norace
func progress(out int64) int64 {
	if out < 0 {
		return 0
	}
	return out
}

// ioctl is the system call of the ordinary forms: the scheduler knows that the
// thread may be away for a while.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) syscall.Errno {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	return errno
}
