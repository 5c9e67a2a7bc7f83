package aio

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Open makes an engine. With Kind Auto it is the first of LinuxAIO, IOURing and
// Threads that works in this process, tried by doing; Threads always does.
//
// LinuxAIO takes Depth out of fs.aio-max-nr, which all processes of the machine
// share; when that is used up, the error says so and wraps EAGAIN. io_uring is
// refused in many containers: the error then wraps ErrNotSupported and the
// errno.
func Open(o Options) (Engine, error) {
	switch o.Kind {
	case Auto:
		var all []error
		for _, kind := range [...]Kind{LinuxAIO, IOURing, Threads} {
			o.Kind = kind
			e, err := Open(o)
			if err == nil {
				return e, nil
			}
			all = append(all, err)
		}
		return nil, errors.Join(all...)
	case LinuxAIO, IOURing, Threads:
	default:
		return nil, fmt.Errorf("aio: no engine %v", o.Kind)
	}
	depth, err := o.depth(o.Kind)
	if err != nil {
		return nil, err
	}
	if o.Kind == Threads {
		w := newChanWaker()
		e := newEngine(Threads, depth, w)
		e.between = o.Between
		e.back = newThreads(depth, depth, w.kick)
		return e, nil
	}
	w, fd, err := newWaker(o.Solo)
	if err != nil {
		return nil, fmt.Errorf("aio: %w", err)
	}
	e := newEngine(o.Kind, depth, w)
	e.between = o.Between
	if o.Kind == IOURing {
		err = e.openIOURing(fd)
	} else {
		err = e.openLinuxAIO(fd)
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return e, nil
}

// Probe says whether this process can open the engine, as Open would. Auto and
// Threads always can.
func Probe(kind Kind) error {
	e, err := Open(Options{Kind: kind, Depth: 1})
	if err != nil {
		return err
	}
	return e.Close()
}

func (e *engine) openLinuxAIO(eventfd int) error {
	k, err := newKAIO(e.depth, eventfd)
	if err == nil {
		if err = k.try(); err == nil {
			e.back = k
			return nil
		}
		k.close()
	}
	switch err {
	case unix.EAGAIN:
		return fmt.Errorf("aio: io_setup for %d ops: the AIO requests of this machine are used up (fs.aio-nr %s of fs.aio-max-nr %s): raise the limit with sysctl -w fs.aio-max-nr=1048576, or use fewer engines or a smaller depth: %w",
			e.depth, sysctl("fs/aio-nr"), sysctl("fs/aio-max-nr"), err)
	case unix.ENOSYS, unix.EPERM, unix.EACCES:
		return fmt.Errorf("aio: Linux AIO (io_setup) is %w: %w", ErrNotSupported, err)
	}
	return fmt.Errorf("aio: Linux AIO: %w", err)
}

func (e *engine) openIOURing(eventfd int) error {
	u, err := newURing(e.depth, eventfd)
	if err == nil {
		if err = u.try(); err == nil {
			e.back = u
			return nil
		}
		u.close()
	}
	switch err {
	case unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("aio: io_uring (Linux 5.6 or newer) is %w: %w", ErrNotSupported, err)
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("aio: io_uring is refused (kernel.io_uring_disabled %s, or the container's seccomp filter) and so %w: %w",
			sysctl("kernel/io_uring_disabled"), ErrNotSupported, err)
	case unix.ENOMEM:
		return fmt.Errorf("aio: io_uring for %d ops: not enough memory, or RLIMIT_MEMLOCK (before Linux 5.12) is too low: %w", e.depth, err)
	}
	return fmt.Errorf("aio: io_uring: %w", err)
}

// try moves one byte through the context, so that a kernel or an emulation of
// one that does not do what we rely on is found out now. A read of memory
// finishes inside io_submit: if its event is not where the ring should have it
// but io_getevents knows of it, the ring is not what it seems.
func (k *kaio) try() error {
	return withByte(k.probe[:], func(op *Op) error {
		k.prepare(0, op)
		if n, errno := k.submit(batch{n: 1}); n != 1 {
			return errno
		}
		var cs [1]completion
		if k.take(cs[:]) == 0 {
			k.ring = nil
			k.take(cs[:])
		}
		return judge(cs[0])
	})
}

// try does the same for io_uring, where the operation itself may be too new
// for the kernel, or filtered.
func (u *uring) try() error {
	return withByte(u.probe[:], func(op *Op) error {
		u.prepare(0, op)
		if n, errno := u.submit(batch{n: 1}); n != 1 {
			return errno
		}
		for u.pending() == 0 {
			if _, errno := u.enter(0, 1); errno != 0 && errno != unix.EINTR {
				return errno
			}
		}
		var cs [1]completion
		u.take(cs[:])
		return judge(cs[0])
	})
}

// withByte calls f with the read of a file that holds one byte.
func withByte(buf []byte, f func(*Op) error) error {
	fd, err := unix.MemfdCreate("aio probe", unix.MFD_CLOEXEC)
	if err != nil {
		return nil // nothing to read from, nothing learnt
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte{1}, 0); err != nil {
		return nil
	}
	return f(&Op{Code: Read, FD: fd, Buf: buf})
}

// judge says whether c is what withByte's op must come to.
func judge(c completion) error {
	switch {
	case c.res < 0:
		return syscall.Errno(-c.res)
	case c != completion{0, 1}:
		return unix.ENOSYS
	}
	return nil
}

func sysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}
