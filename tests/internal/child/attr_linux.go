package child

import "syscall"

// attributes make the child die with its parent, so that a test run that is
// killed leaves nothing running.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
