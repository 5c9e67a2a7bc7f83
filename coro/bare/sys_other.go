//go:build !linux

package bare

import "syscall"

// Syscall fails with ENOSYS: only Linux is supported.
func Syscall(nr, a1, a2, a3, a4, a5, a6 uintptr) (r, errno uintptr) {
	return ^uintptr(0), uintptr(syscall.ENOSYS)
}

// FutexWait fails with ENOSYS: only Linux has it.
func FutexWait(p *uint32, val uint32, timeoutNs int64) (errno uintptr) {
	return uintptr(syscall.ENOSYS)
}

// FutexWake does nothing: only Linux has it.
func FutexWake(p *uint32, n uint32) {}

// Nanotime is 0: only Linux has it.
func Nanotime() int64 { return 0 }
