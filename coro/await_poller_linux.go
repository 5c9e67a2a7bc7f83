package coro

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// efdPoller is an epoll instance that is itself watched by the Go netpoller:
// an epoll descriptor is readable while it has events (epoll(7), "nested"), so
// one goroutine can sleep on any number of eventfds without holding a thread.
//
// An eventfd is registered once, with EPOLLONESHOT, and stays registered,
// disarmed, between waits: the next wait costs one EPOLL_CTL_MOD, and the
// kernel forgets the registration when the eventfd is closed for good. The key
// of a registration is the pair (open file, descriptor number), so a
// successful MOD also proves that the number still means the file that was
// registered. That is why nothing is duplicated here: descriptors are dearer
// than system calls (RLIMIT_NOFILE), and a number that was closed and reused is
// found out all the same.
//
// arm, check and disarm may be called from any goroutine, poll and wait from
// one at a time.
type efdPoller struct {
	fd     int      // of the epoll instance, owned by file
	file   *os.File // registers fd in the netpoller
	conn   syscall.RawConn
	once   func(uintptr) bool // one epoll_wait without waiting; false: nothing there
	n      int                // result of once
	err    error              // result of once
	events [128]unix.EpollEvent
}

func openEfdPoller() (*efdPoller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("coro: epoll_create1: %w", err)
	}
	// O_NONBLOCK means nothing to epoll_wait; os.NewFile takes it as the sign
	// that the descriptor belongs into the netpoller.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("coro: epoll: set O_NONBLOCK: %w", err)
	}
	p := &efdPoller{fd: fd, file: os.NewFile(uintptr(fd), "epoll")}
	// The only way to learn whether the netpoller took it.
	if err := p.file.SetReadDeadline(time.Time{}); err != nil {
		p.file.Close()
		return nil, fmt.Errorf("coro: the netpoller does not take an epoll descriptor: %w", err)
	}
	if p.conn, err = p.file.SyscallConn(); err != nil {
		p.file.Close()
		return nil, fmt.Errorf("coro: epoll: %w", err)
	}
	p.once = func(uintptr) bool {
		p.n, p.err = p.epollWait()
		return p.n > 0 || p.err != nil
	}
	return p, nil
}

func (p *efdPoller) close() error { return p.file.Close() }

// arm asks for one event when fd is readable, at once if it is already.
// With fresh it registers fd if need be; without, fd must still name the file
// that was registered, else the error is ENOENT or EBADF.
func (p *efdPoller) arm(fd int32, fresh bool) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: fd}
	err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, int(fd), &ev)
	if err == unix.ENOENT && fresh {
		err = unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, int(fd), &ev)
	}
	return err
}

// disarm stops events for fd and says whether fd still names the registered
// file. EPOLLONESHOT stays in the mask because the kernel always adds EPOLLERR.
func (p *efdPoller) disarm(fd int32) error {
	ev := unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: fd}
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, int(fd), &ev)
}

// poll stores the descriptors that may be readable, without waiting. A number
// can outlive the file it named, so an event is a hint and no more.
func (p *efdPoller) poll(out []int32) (int, error) {
	n, err := p.epollWait()
	return p.take(out, n), err
}

// wait is poll, but parks the goroutine until there are events, or wake was
// called: then it may return none.
func (p *efdPoller) wait(out []int32) (int, error) {
	p.n, p.err = 0, nil
	switch err := p.conn.Read(p.once); {
	case err == nil:
		return p.take(out, p.n), p.err
	case errors.Is(err, os.ErrDeadlineExceeded):
		// wake moved the deadline into the past. Whoever calls it has left
		// its message before, so it is seen after this line even if another
		// wake is undone here.
		return 0, p.file.SetReadDeadline(time.Time{})
	default:
		return 0, fmt.Errorf("coro: waiting for epoll: %w", err)
	}
}

// wake ends the wait that is under way, or the next one. A deadline in the
// past does that inside the runtime, without a system call.
func (p *efdPoller) wake() { p.file.SetReadDeadline(time.Unix(1, 0)) }

func (p *efdPoller) epollWait() (int, error) {
	for {
		n, err := unix.EpollWait(p.fd, p.events[:], 0)
		if err == nil {
			return n, nil
		}
		if err != unix.EINTR {
			return 0, fmt.Errorf("coro: epoll_wait: %w", err)
		}
	}
}

func (p *efdPoller) take(out []int32, n int) int {
	for i, ev := range p.events[:n] {
		out[i] = ev.Fd
	}
	return n
}

// efdBatch is the room that poll and wait need for their result.
const efdBatch = len(efdPoller{}.events)
