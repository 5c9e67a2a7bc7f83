// Package eventfd wraps eventfd(2) for tests.
package eventfd

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// FD is an eventfd. FromFD borrows one.
type FD int

// New makes an eventfd that does not block.
func New() (FD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return FD(fd), err
}

// FromFD is the eventfd with this number.
func FromFD(fd int) FD { return FD(fd) }

// FD is the number.
func (f FD) FD() int { return int(f) }

// Value takes the count; 0 if nobody has signalled.
func (f FD) Value() uint64 {
	var b [8]byte
	if n, err := unix.Read(int(f), b[:]); n != 8 || err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:])
}

// Wait waits with poll(2) until the eventfd is signalled, and takes the count.
// It waits in slices, so that a goroutine of a wedged test still shows up.
func (f FD) Wait() error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		fds := []unix.PollFd{{Fd: int32(f), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 1000); err != nil && err != unix.EINTR {
			return err
		} else if n == 1 {
			f.Value()
			return nil
		}
	}
	return unix.ETIMEDOUT
}

// Close closes the eventfd.
func (f FD) Close() error { return unix.Close(int(f)) }
