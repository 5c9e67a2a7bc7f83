package coro

import (
	"context"
	"errors"
)

// pollEvery bounds how many coroutines are resumed before the mail and epoll are
// looked at although others are ready: an eventfd that has fired does not wait
// for a thousand yields, and a yield does not pay for a system call.
const pollEvery = 64

var errLoopGoexit = errors.New("coro: runtime.Goexit in a coroutine")

func (l *Loop) run(ctx context.Context, untilIdle bool) error {
	l.mu.Lock()
	if l.state&loopNew == 0 {
		l.mu.Unlock()
		return ErrLoopClosed
	}
	l.state &^= loopNew
	l.mu.Unlock()

	poller, err := openEfdPoller()
	if err != nil {
		l.mu.Lock()
		l.state |= loopClosed
		l.mail = ring[message]{}
		l.mu.Unlock()
		return err
	}
	defer poller.close()
	l.set = newEfdSet(poller, func(w *efdWaiter) { l.ready.push(w.task) })
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	defer l.cancel(nil)
	l.untilIdle = untilIdle
	defer context.AfterFunc(ctx, func() { l.send(message{}, true) })()

	if ctx.Err() != nil {
		l.abort(nil)
	}

	l.drive()

	switch {
	case l.panicError != nil:
		return l.panicError
	case l.err != nil:
		return l.err
	case l.cancelled:
		return ctx.Err()
	}
	return nil
}

// drive is cycle, continued after each runtime.Goexit in a coroutine or a posted
// function: iter.Pull carries it over to this goroutine, which has to
// end, but not before every coroutine has.
func (l *Loop) drive() {
	whole := false
	defer func() {
		if whole {
			return
		}
		if l.current != nil {
			l.current = nil
			l.live--
		}
		l.abort(errLoopGoexit)
		l.drive()
	}()
	l.cycle()
	whole = true
}

// cycle runs coroutines until the loop is finished.
func (l *Loop) cycle() {
	for {
		l.receive()
		for l.ready.n > 0 && l.unpolled < pollEvery {
			l.resume(l.ready.pop())
		}
		switch {
		case l.ready.n > 0:
			l.poll()
		case l.finished():
			return
		default:
			l.sleep()
		}
	}
}

func (l *Loop) resume(t *Task) {
	l.unpolled++
	l.current = t
	_, more := t.next()
	l.current = nil
	if !more {
		l.live--
	}
}

// receive does what the mail says. It takes one message at a time, so that
// none is lost if a posted function ends the goroutine.
func (l *Loop) receive() {
	if !l.mailed.Load() {
		return
	}
	l.mu.Lock()
	l.mailed.Store(false)
	n := l.mail.n
	l.mu.Unlock()
	for ; n > 0; n-- {
		l.mu.Lock()
		m := l.mail.pop()
		// What is left was mailed before the flag was cleared.
		l.mailed.Store(l.mail.n > 0)
		l.mu.Unlock()
		switch {
		case m.start != nil:
			l.spawn(m.start)
		case m.call != nil:
			l.call(m.call)
		case m.expire != nil:
			m.expire.expire(m.seq, m.err)
		default:
			l.abort(nil)
		}
	}
}

func (l *Loop) call(fn func()) {
	defer func() { l.recovered(recover()) }()
	fn()
}

// finished says that nothing is left to do, and closes the loop under the lock
// that Go and Post take: what they were promised will be done is done.
func (l *Loop) finished() bool {
	if l.live > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mail.n > 0 || !l.untilIdle && l.state&loopRefuses == 0 {
		return false
	}
	l.state |= loopClosed
	return true
}

// sleep waits for an eventfd or for mail.
func (l *Loop) sleep() {
	l.sleeping.Store(true)
	if l.mailed.Load() { // came before the store, so nobody will wake us for it
		l.sleeping.Store(false)
		return
	}
	n, err := l.set.poller.wait(l.fired[:])
	l.sleeping.Store(false)
	l.dispatch(n, err)
}

// poll takes the eventfds that have fired, without waiting.
func (l *Loop) poll() {
	n, err := l.set.poller.poll(l.fired[:])
	l.dispatch(n, err)
}

func (l *Loop) dispatch(n int, err error) {
	l.unpolled = 0
	for _, fd := range l.fired[:n] {
		l.set.dispatch(fd)
	}
	if err != nil {
		l.fail(err)
	}
}

// fail notes err and cancels the loop.
func (l *Loop) fail(err error) {
	if p, ok := err.(*PanicError); ok && l.panicError == nil {
		l.panicError = p
	}
	if l.err == nil {
		l.err = err
	}
	l.abort(err)
}

// abort cancels the loop: who waits is resumed with the context's error. From
// here on no coroutine waits, so the loop never sleeps again.
func (l *Loop) abort(cause error) {
	if l.cancelled {
		return
	}
	l.cancelled = true
	l.cancel(cause)
	l.mu.Lock()
	l.state |= loopRefuses
	l.mu.Unlock()
	l.set.failAll(l.ctx.Err())
}
