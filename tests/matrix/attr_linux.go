package main

import "syscall"

// deathSignal ends a cell when this program ends.
func deathSignal() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
