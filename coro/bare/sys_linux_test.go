package bare

import (
	"syscall"
	"testing"
	"time"
)

func TestSyscallReturnsResultAndErrno(t *testing.T) {
	pid, errno := Syscall(syscall.SYS_GETPID, 0, 0, 0, 0, 0, 0)
	if errno != 0 || int(pid) != syscall.Getpid() {
		t.Fatalf("getpid: %d, errno %d", pid, errno)
	}
	r, errno := Syscall(syscall.SYS_CLOSE, ^uintptr(0), 0, 0, 0, 0, 0)
	if r != ^uintptr(0) || errno != uintptr(syscall.EBADF) {
		t.Fatalf("close(-1): %d, errno %d, want EBADF", r, errno)
	}
}

var futexWord uint32

func TestFutexWaitAndWake(t *testing.T) {
	if e := FutexWait(&futexWord, 1, -1); e != uintptr(syscall.EAGAIN) {
		t.Fatalf("wait on another value: errno %d, want EAGAIN", e)
	}
	if e := FutexWait(&futexWord, 0, int64(time.Millisecond)); e != uintptr(syscall.ETIMEDOUT) && e != uintptr(syscall.EINTR) {
		t.Fatalf("wait with a timeout: errno %d, want ETIMEDOUT", e)
	}
	done := make(chan struct{})
	go func() {
		for Load32(&futexWord) == 0 {
			FutexWait(&futexWord, 0, int64(10*time.Second))
		}
		close(done)
	}()
	time.Sleep(5 * time.Millisecond)
	Store32(&futexWord, 1)
	FutexWake(&futexWord, 1)
	<-done
	Store32(&futexWord, 0)
}
