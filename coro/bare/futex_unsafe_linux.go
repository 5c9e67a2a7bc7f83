package bare

import (
	"syscall"
	"unsafe"
)

const (
	futexWaitPrivate = 0 | 128 // FUTEX_WAIT | FUTEX_PRIVATE_FLAG
	futexWakePrivate = 1 | 128 // FUTEX_WAKE | FUTEX_PRIVATE_FLAG
)

// FutexWait puts the calling thread (and its P, if it has one) to sleep while
// *p is val, at most for timeoutNs nanoseconds; a negative timeout means
// without limit. The result is 0 when woken, EAGAIN when *p was not val,
// ETIMEDOUT, or EINTR; a caller always looks at *p again. p must not be on a
// Go stack, which may move. See futex(2), FUTEX_WAIT.
//
//go:nosplit
//go:norace
//go:nocheckptr
func FutexWait(p *uint32, val uint32, timeoutNs int64) (errno uintptr) {
	var ts [2]int64
	var t uintptr
	if timeoutNs >= 0 {
		ts[0], ts[1] = timeoutNs/1e9, timeoutNs%1e9
		t = uintptr(unsafe.Pointer(&ts))
	}
	_, errno = Syscall(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(p)), futexWaitPrivate, uintptr(val), t, 0, 0)
	return errno
}

// FutexWake wakes at most n threads that sleep in FutexWait on p. See
// futex(2), FUTEX_WAKE.
//
//go:nosplit
//go:norace
//go:nocheckptr
func FutexWake(p *uint32, n uint32) {
	Syscall(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(p)), futexWakePrivate, uintptr(n), 0, 0, 0)
}
