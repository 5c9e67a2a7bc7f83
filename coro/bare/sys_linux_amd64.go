package bare

// Syscall makes the system call nr without telling the Go scheduler: the
// thread keeps whatever P it has. It returns the kernel's result and 0, or
// ^uintptr(0) and the errno. See syscall(2).
func Syscall(nr, a1, a2, a3, a4, a5, a6 uintptr) (r, errno uintptr)
