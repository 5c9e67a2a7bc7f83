package uffd

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a container does: a filter that refuses system calls, here one that
// falls on a process which has found out before what it may do.
func TestUnderAFilter(t *testing.T) {
	for _, name := range []string{"filter before", "filter after"} {
		t.Run(name, func(t *testing.T) { runChild(t, name, "", nil) })
	}
}

func init() {
	children["filter before"] = func() error {
		if err := refuse(unix.SYS_USERFAULTFD, unix.SYS_PROCESS_MADVISE); err != nil {
			return skipped(fmt.Sprintf("seccomp: %v", err))
		}
		for _, f := range []Feature{FeatureUserModeOnly, FeatureAnyMode, FeatureProcessMadvise, FeaturePidfdSelf} {
			if err := f.Supported(); !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("%v under a filter: %v, want EPERM", f, err)
			}
		}
		return serveOrRefused()
	}
	children["filter after"] = func() error {
		if err := serve(); err != nil {
			if errors.Is(err, ErrNotSupported) {
				return skipped(err.Error())
			}
			return err
		}
		if err := refuse(unix.SYS_USERFAULTFD, unix.SYS_PROCESS_MADVISE); err != nil {
			return skipped(fmt.Sprintf("seccomp: %v", err))
		}
		return serveOrRefused()
	}
}

// serveOrRefused expects the device to stand in for the system call, if it can.
func serveOrRefused() error {
	if FeatureDevUserfaultfd.Supported() == nil {
		return serve()
	}
	_, err := Open(APISigbus, 0)
	return refuses(FeatureUserfaultfd, "Open", err)
}

// refuse makes two system calls fail with EPERM on all threads from now on.
func refuse(a, b uint32) error {
	const (
		offsetOfNr = 0 // struct seccomp_data
		load       = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal      = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer     = unix.BPF_RET | unix.BPF_K
	)
	program := []unix.SockFilter{
		{Code: load, K: offsetOfNr},
		{Code: equal, Jt: 1, K: a},
		{Code: equal, Jf: 1, K: b},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return errno
	}
	return nil
}
