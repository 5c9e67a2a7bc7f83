//go:build uffdpager_nointernals

package coro

import (
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

const (
	sigBlock   = 0
	sigSetmask = 2
)

// Unstopped begins code of a goroutine, nosplit functions of a few system calls,
// in which it is not preempted: the thread does not get the signal for that. Its
// result is for Stoppable, which ends it. Nothing between the two may be a call of
// a function that is not nosplit: the goroutine would go on on another thread.
//
//go:nosplit
//go:norace
//go:nocheckptr
func Unstopped() (mask uint64) {
	urg := uint64(1) << (syscall.SIGURG - 1)
	bare.Syscall(syscall.SYS_RT_SIGPROCMASK, sigBlock, uintptr(unsafe.Pointer(&urg)), uintptr(unsafe.Pointer(&mask)), 8, 0, 0)
	return mask
}

// Stoppable ends what Unstopped began.
//
//go:nosplit
//go:norace
//go:nocheckptr
func Stoppable(mask uint64) {
	bare.Syscall(syscall.SYS_RT_SIGPROCMASK, sigSetmask, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0)
}
