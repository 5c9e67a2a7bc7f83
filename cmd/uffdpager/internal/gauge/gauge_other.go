//go:build !linux

package gauge

import (
	"runtime"
	"time"
)

// ReadProcess says ErrNotSupported here.
func ReadProcess() (Process, error) { return Process{}, ErrNotSupported }

// ReadMachine says ErrNotSupported here.
func ReadMachine() (Machine, error) { return Machine{}, ErrNotSupported }

// ResetPeak does nothing here.
func ResetPeak() bool { return false }

// CPU is unknown here.
func CPU() time.Duration { return 0 }

// CgroupLimit finds none here.
func CgroupLimit() (limit int64, where string) { return 0, "" }

// Kernel is the name of the system here.
func Kernel() string { return runtime.GOOS }
