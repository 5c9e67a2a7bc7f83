package uffd

import (
	"syscall"
	"time"
	"unsafe"
)

// Register makes the faults in [addr, addr+n) that mode names
// (RegisterMissing, RegisterWP) the descriptor's. The range is page-aligned,
// mapped, and not registered elsewhere (EBUSY). Registering again replaces the
// mode. It takes time by the number of mappings, not of pages. Pages that are
// present stay.
//
// After mlockall(MCL_FUTURE) a fresh mapping is populated before it could be
// registered: map PROT_NONE, munlock, Register, mprotect.
func (u *FD) Register(addr, n uintptr, mode uint64) error {
	if mode&RegisterWP != 0 && masked(FeatureWriteProtect) {
		return absent(FeatureWriteProtect)
	}
	a := argRegister{r: kernelRange{uint64(addr), uint64(n)}, mode: mode}
	if errno := ioctl(u.Fd(), ioctlRegister, unsafe.Pointer(&a)); errno != 0 {
		if errno == syscall.EINVAL && mode&RegisterWP != 0 && u.lacks(FeatureWriteProtect) {
			return absent(FeatureWriteProtect)
		}
		return &OpError{Op: "register", Addr: addr, Len: n, Err: errno}
	}
	return nil
}

// Unregister gives the faults in [addr, addr+n) back to the kernel: touches of
// missing pages yield zeros from now on. Write protection goes too.
func (u *FD) Unregister(addr, n uintptr) error {
	r := kernelRange{uint64(addr), uint64(n)}
	return opError("unregister", addr, n, 0, ioctl(u.Fd(), ioctlUnregister, unsafe.Pointer(&r)))
}

// Copy installs n bytes of src at dst, each page visible whole: UFFDIO_COPY.
// Partial copies are continued and EAGAIN is retried, so that the error says
// why it stopped and done how far it came: everything in [dst, dst+done) is
// installed by this call. See RawCopy for modes and errors.
func (u *FD) Copy(dst, src, n uintptr, mode uint64) (done uintptr, err error) {
	if mode&CopyWP != 0 && u.lacks(FeatureWriteProtect) {
		return 0, absent(FeatureWriteProtect)
	}
	whole := argCopy{dst: uint64(dst), src: uint64(src), len: uint64(n), mode: mode}
	return u.stepwise("copy", dst, n, func(fd int, at uintptr) (int64, syscall.Errno) {
		a := whole.rest(at)
		errno := ioctl(fd, ioctlCopy, unsafe.Pointer(&a))
		return a.done, errno
	})
}

// Move moves the frames of [src, src+n) to dst: UFFDIO_MOVE, continued and
// retried like Copy. See RawMove for modes and errors.
func (u *FD) Move(dst, src, n uintptr, mode uint64) (done uintptr, err error) {
	if u.lacks(FeatureMove) {
		return 0, absent(FeatureMove)
	}
	whole := argCopy{dst: uint64(dst), src: uint64(src), len: uint64(n), mode: mode}
	return u.stepwise("move", dst, n, func(fd int, at uintptr) (int64, syscall.Errno) {
		a := whole.rest(at)
		errno := ioctl(fd, ioctlMove, unsafe.Pointer(&a))
		return a.done, errno
	})
}

// ZeroPage installs zero pages: UFFDIO_ZEROPAGE, continued and retried like
// Copy. See RawZeroPage.
func (u *FD) ZeroPage(addr, n uintptr, mode uint64) (done uintptr, err error) {
	return u.stepwise("zeropage", addr, n, func(fd int, at uintptr) (int64, syscall.Errno) {
		a := argZeropage{r: kernelRange{uint64(addr), uint64(n)}.rest(at), mode: mode}
		errno := ioctl(fd, ioctlZeropage, unsafe.Pointer(&a))
		return a.done, errno
	})
}

// Poison makes touches of missing pages fail: UFFDIO_POISON, continued and
// retried like Copy. See RawPoison.
func (u *FD) Poison(addr, n uintptr, mode uint64) (done uintptr, err error) {
	if u.lacks(FeaturePoison) {
		return 0, absent(FeaturePoison)
	}
	return u.stepwise("poison", addr, n, func(fd int, at uintptr) (int64, syscall.Errno) {
		a := argZeropage{r: kernelRange{uint64(addr), uint64(n)}.rest(at), mode: mode}
		errno := ioctl(fd, ioctlPoison, unsafe.Pointer(&a))
		return a.done, errno
	})
}

// WriteProtect protects the present pages of a range (ProtectWP) or takes the
// protection away (0): UFFDIO_WRITEPROTECT, with EAGAIN retried. See
// RawWriteProtect.
func (u *FD) WriteProtect(addr, n uintptr, mode uint64) error {
	if u.lacks(FeatureWriteProtect) {
		return absent(FeatureWriteProtect)
	}
	_, err := u.stepwise("writeprotect", addr, n, func(fd int, _ uintptr) (int64, syscall.Errno) {
		a := argWriteprotect{r: kernelRange{uint64(addr), uint64(n)}, mode: mode}
		errno := ioctl(fd, ioctlWriteprotect, unsafe.Pointer(&a))
		if errno != 0 {
			return 0, errno
		}
		return int64(n), 0
	})
	return err
}

// Wake wakes threads that sleep in the kernel on faults in the range
// (message mode): UFFDIO_WAKE.
func (u *FD) Wake(addr, n uintptr) error {
	r := kernelRange{uint64(addr), uint64(n)}
	return opError("wake", addr, n, 0, ioctl(u.Fd(), ioctlWake, unsafe.Pointer(&r)))
}

// lacks says whether the kernel is known not to have what f stands for.
func (u *FD) lacks(f Feature) bool {
	available, err := Available()
	return err == nil && available&features[f].api == 0
}

// Retry policy. EAGAIN with progress is an interrupted step: go on with the
// rest at once, which either works or says why not. EAGAIN without progress
// means that somebody changes the address space (or, for MOVE, the very page):
// wait a little, longer each time, and give up after about a tenth of a second
// so that a caller that holds what the other side waits for does not hang.
const (
	firstBackoff = time.Microsecond
	lastBackoff  = 50 * time.Millisecond
)

// stepwise makes step do [at, n) until at = n or an error that retrying does
// not help. step returns the kernel's out field, which is only trusted where it
// is positive.
func (u *FD) stepwise(op string, addr, n uintptr, step func(fd int, at uintptr) (int64, syscall.Errno)) (uintptr, error) {
	at, backoff := uintptr(0), firstBackoff
	for {
		out, errno := step(u.Fd(), at)
		at += uintptr(progress(out))
		switch {
		case errno == 0:
			return at, nil
		case errno != syscall.EAGAIN:
			return at, opError(op, addr, n, at, errno)
		case out > 0:
			backoff = firstBackoff
		case backoff > lastBackoff:
			return at, opError(op, addr, n, at, errno)
		default:
			time.Sleep(backoff)
			backoff *= 2
		}
	}
}

func opError(op string, addr, n, done uintptr, errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return &OpError{Op: op, Addr: addr, Len: n, Done: done, Err: errno}
}
