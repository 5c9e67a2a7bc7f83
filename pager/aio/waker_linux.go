package aio

import (
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// waker parks one goroutine at a time until something has happened.
type waker interface {
	// wait returns when ok does; ok is asked again after every signal.
	wait(ok func() bool)
	// kick signals a goroutine that waits. From any goroutine, at any time.
	kick()
	// close; nobody waits.
	close()
}

// newWaker is a waker, and the eventfd that the kernel is to signal.
func newWaker(solo bool) (waker, int, error) {
	if solo {
		w, err := newThreadWaker()
		if err != nil {
			return nil, -1, err
		}
		return w, w.fd, nil
	}
	w, err := newEventWaker()
	if err != nil {
		return nil, -1, err
	}
	return w, w.fd, nil
}

// eventWaker waits in Go's netpoller on an eventfd, which the kernel signals
// with every completion.
type eventWaker struct {
	file    *os.File
	conn    syscall.RawConn
	fd      int // for the kernel; file owns it
	waiting atomic.Bool

	ok   func() bool
	poll func(fd uintptr) bool // w.ask, bound once
}

// one is a count for an eventfd: of what size does not matter, so its byte
// order does not either.
var one = [8]byte{1}

func newEventWaker() (*eventWaker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	w := &eventWaker{fd: fd, file: os.NewFile(uintptr(fd), "aio eventfd")}
	w.poll = w.ask
	// Fails if Go could not add the descriptor to its epoll set: a wait would
	// then not park but return at once, again and again.
	if err = w.file.SetReadDeadline(time.Time{}); err == nil {
		w.conn, err = w.file.SyscallConn()
	}
	if err != nil {
		w.file.Close()
		return nil, err
	}
	return w, nil
}

func (w *eventWaker) wait(ok func() bool) {
	w.ok = ok
	w.waiting.Store(true)
	w.conn.Read(w.poll) // fails only when closed
	w.waiting.Store(false)
}

// ask only looks. The counter of the eventfd is never read, which would be a
// system call for each wait: Go's poller is edge-triggered, and every signal of
// an eventfd is an edge, whatever the counter says (it is full after 2⁶⁴
// signals). The poller keeps an edge that comes before the wait, so that one
// between this look and the wait is not lost.
func (w *eventWaker) ask(uintptr) bool { return w.ok() }

func (w *eventWaker) kick() {
	if w.waiting.Load() {
		w.file.Write(one[:])
	}
}

func (w *eventWaker) close() { w.file.Close() }

// threadWaker waits on an eventfd in the thread of the caller.
type threadWaker struct {
	fd      int // blocking
	waiting atomic.Bool
	count   [8]byte // the waiter's
}

func newThreadWaker() (*threadWaker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &threadWaker{fd: fd}, nil
}

// wait reads the counter, which makes it zero, and then looks: what was signalled
// before the read is seen, and what is signalled later ends the next one.
func (w *threadWaker) wait(ok func() bool) {
	w.waiting.Store(true)
	for !ok() {
		if _, err := unix.Read(w.fd, w.count[:]); err != nil && err != unix.EINTR {
			panic("aio: read of an eventfd: " + err.Error()) // it is ours, and open
		}
	}
	w.waiting.Store(false)
}

func (w *threadWaker) kick() {
	if w.waiting.Load() {
		unix.Write(w.fd, one[:])
	}
}

func (w *threadWaker) close() { unix.Close(w.fd) }

// chanWaker waits on a channel: for the engine without a kernel ring, whose
// completions come from goroutines.
type chanWaker struct {
	ch chan struct{}
}

func newChanWaker() *chanWaker { return &chanWaker{ch: make(chan struct{}, 1)} }

func (w *chanWaker) wait(ok func() bool) {
	for !ok() {
		<-w.ch
	}
}

func (w *chanWaker) kick() {
	select {
	case w.ch <- struct{}{}:
	default: // a signal is under way already
	}
}

func (w *chanWaker) close() {}
