package coro

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"syscall"
)

var (
	errNotEventfd = fmt.Errorf("not an eventfd: %w", syscall.EINVAL)
	errEfdClosed  = fmt.Errorf("closed while waiting: %w", syscall.EBADF)
)

// efdError names the descriptor an error is about.
func efdError(efd int, err error) error {
	return fmt.Errorf("coro: await on descriptor %d: %w", efd, err)
}

// tryEventfd takes the counter of efd if it is not zero, without waiting.
func tryEventfd(efd int) (value uint64, ok bool, err error) {
	if efd < 0 || efd > math.MaxInt32 {
		return 0, false, syscall.EBADF
	}
	if err := checkEventfd(int32(efd)); err != nil {
		return 0, false, err
	}
	return readEventfd(int32(efd))
}

// efdSet is the table of who waits for which eventfd. It is not safe for
// concurrent use: a Loop owns one alone, Await keeps one under a lock.
//
// A signal goes to one waiter only: the set takes the counter itself, before
// it wakes anybody, and gives it to the waiter who came first. So nobody is
// woken in vain, and a wait that is cancelled has either taken the counter (and
// is then a success) or has left it alone.
type efdSet struct {
	poller  *efdPoller
	sources map[int32]*efdSource // only eventfds that are waited for
	made    uint64               // sources so far
	emit    func(*efdWaiter)     // told of every waiter that has its answer
}

// efdSource is one eventfd and its waiters, oldest first.
type efdSource struct {
	fd         int32
	number     uint64 // in the order in which they were made
	head, tail *efdWaiter
}

// efdWaiter is one wait. Value and err are set before emit.
type efdWaiter struct {
	src        *efdSource // nil: does not wait
	prev, next *efdWaiter
	value      uint64
	err        error

	done chan struct{} // Await
	task *Task         // Loop
}

func newEfdSet(p *efdPoller, emit func(*efdWaiter)) *efdSet {
	return &efdSet{poller: p, sources: make(map[int32]*efdSource), emit: emit}
}

// add makes w wait for fd. Its answer comes by emit, which may be told of
// others before add returns: of those who still wait for a file that fd does
// not name any more.
func (s *efdSet) add(w *efdWaiter, fd int32) error {
	src := s.sources[fd]
	if src != nil && s.poller.arm(fd, false) != nil {
		s.fail(src, efdError(int(fd), errEfdClosed))
		src = nil
	}
	if src == nil {
		s.made++
		src = &efdSource{fd: fd, number: s.made}
		// Arming reports an eventfd that is readable already, so a signal
		// between the caller's look at the counter and this line is not lost.
		if err := s.poller.arm(fd, true); err != nil {
			return err
		}
		s.sources[fd] = src
	}
	w.src, w.prev, w.next = src, src.tail, nil
	if src.tail != nil {
		src.tail.next = w
	} else {
		src.head = w
	}
	src.tail = w
	return nil
}

// cancel makes w wait no longer; false: it has its answer already.
func (s *efdSet) cancel(w *efdWaiter) bool {
	src := w.src
	if src == nil {
		return false
	}
	src.unlink(w)
	if src.head == nil {
		delete(s.sources, src.fd)
		s.poller.disarm(src.fd) // fails if the eventfd is closed: then there is nothing to stop
	}
	return true
}

// dispatch gives what the eventfd fd counts to who waits for it.
func (s *efdSet) dispatch(fd int32) {
	src := s.sources[fd]
	if src == nil {
		return // the event of a wait that has ended
	}
	// The event is of the file that was registered; the number may name
	// another one by now, whose bytes are not ours to take.
	if s.poller.disarm(src.fd) != nil {
		s.fail(src, efdError(int(src.fd), errEfdClosed))
		return
	}
	for src.head != nil {
		value, ok, err := readEventfd(src.fd)
		if err != nil {
			s.fail(src, efdError(int(src.fd), err))
			return
		}
		if !ok {
			break
		}
		w := src.head
		src.unlink(w)
		w.value = value
		s.emit(w)
	}
	if src.head == nil {
		delete(s.sources, src.fd)
	} else if s.poller.arm(src.fd, false) != nil {
		s.fail(src, efdError(int(src.fd), errEfdClosed))
	}
}

// fail ends the wait of everybody at src with err.
func (s *efdSet) fail(src *efdSource, err error) {
	delete(s.sources, src.fd)
	for src.head != nil {
		w := src.head
		src.unlink(w)
		w.err = err
		s.emit(w)
	}
}

// failAll ends every wait with err, eventfd by eventfd in the order in which
// they were first waited for.
func (s *efdSet) failAll(err error) {
	all := slices.SortedFunc(maps.Values(s.sources), func(a, b *efdSource) int { return cmp.Compare(a.number, b.number) })
	for _, src := range all {
		s.poller.disarm(src.fd)
		s.fail(src, err)
	}
}

func (src *efdSource) unlink(w *efdWaiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		src.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		src.tail = w.prev
	}
	w.src, w.prev, w.next = nil, nil, nil
}
