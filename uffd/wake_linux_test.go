package uffd

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// In message mode the thread that faults sleeps in the kernel until the page
// is there and it is woken. Should the wake-up fail the process hangs.
func TestWakeEndsASleepThatCopyLeft(t *testing.T) { runChild(t, "wake", "", nil) }

func init() {
	children["wake"] = func() error {
		runtime.GOMAXPROCS(4)
		u, err := Open(0, 0)
		if err != nil {
			return skipped(err.Error())
		}
		mem, err := unix.Mmap(-1, 0, int(2*pageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		dst := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
		src := dst + pageSize
		*at(src) = 7
		if err := u.Register(dst, pageSize, RegisterMissing); err != nil {
			return err
		}
		loaded := make(chan byte, 1)
		go func() { loaded <- *at(dst) }()

		fds := []unix.PollFd{{Fd: int32(u.Fd()), Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(fds, 10_000); n == 1 {
				break
			} else if !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("no message of the fault: %d, %w", n, err)
			}
		}
		// Read the message: only then does the fault count as taken note of.
		var msg [32]byte
		if n, err := unix.Read(u.Fd(), msg[:]); n != len(msg) || err != nil {
			return fmt.Errorf("read of the message: %d, %w", n, err)
		}
		if _, err := u.Copy(dst, src, pageSize, CopyDontWake); err != nil {
			return err
		}
		if err := u.Wake(dst, pageSize); err != nil {
			return err
		}
		select {
		case b := <-loaded:
			if b != 7 {
				return fmt.Errorf("loaded %d, want 7", b)
			}
			return nil
		case <-time.After(20 * time.Second):
			return errors.New("the thread still sleeps")
		}
	}
}
