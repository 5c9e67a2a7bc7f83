package bare

import (
	"syscall"
	"unsafe"
)

// Nanotime is the monotonic clock in nanoseconds. It makes a system call. See
// clock_gettime(2), CLOCK_MONOTONIC.
//
//go:nosplit
//go:norace
//go:nocheckptr
func Nanotime() int64 {
	const monotonic = 1
	var ts [2]int64
	Syscall(syscall.SYS_CLOCK_GETTIME, monotonic, uintptr(unsafe.Pointer(&ts)), 0, 0, 0, 0)
	return ts[0]*1e9 + ts[1]
}
