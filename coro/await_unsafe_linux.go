package coro

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readEventfd takes the counter of fd without waiting, whatever O_NONBLOCK
// says: ok is false if it is zero. On an eventfd made with EFD_SEMAPHORE it
// takes one (eventfd(2)).
//
// The flag of one read, RWF_NOWAIT (eventfds honour it since Linux 5.8), is
// used so that the file's own flags, which the caller and other processes
// share, stay as they are.
func readEventfd(fd int32) (value uint64, ok bool, err error) {
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(&value))}
	iov.SetLen(8)
	const current = ^uintptr(0) // offset -1: the file position, of which an eventfd has none
	for {
		_, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
			current, current, unix.RWF_NOWAIT)
		switch errno {
		case 0:
			return value, true, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, false, nil
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return pollEventfd(fd)
		default:
			return 0, false, errno
		}
	}
}

// pollEventfd is readEventfd for kernels that do not know the flag: it asks
// poll(2) first. If another reader comes in between, a blocking eventfd blocks
// the thread until the next signal.
func pollEventfd(fd int32) (value uint64, ok bool, err error) {
	buf := (*[8]byte)(unsafe.Pointer(&value))
	for {
		fds := [1]unix.PollFd{{Fd: fd, Events: unix.POLLIN}}
		n, err := unix.Poll(fds[:], 0)
		if err == nil && n > 0 {
			if fds[0].Revents&unix.POLLIN == 0 {
				return 0, false, unix.EBADF // POLLNVAL
			}
			_, err = unix.Read(int(fd), buf[:])
		}
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN || err == nil && n == 0:
			return 0, false, nil
		default:
			return value, err == nil, err
		}
	}
}

// checkEventfd keeps Await from eating eight bytes of a pipe or a file. A read
// of no bytes takes nothing, and an eventfd refuses it (EINVAL) where a stream
// says zero. It is a full system call because the kernel may make it wait on
// descriptors we have no business with (inotify).
func checkEventfd(fd int32) error {
	_, _, errno := unix.Syscall(unix.SYS_READ, uintptr(fd), 0, 0)
	switch errno {
	case unix.EINVAL:
		return nil
	case 0:
		return errNotEventfd
	}
	return errno
}
