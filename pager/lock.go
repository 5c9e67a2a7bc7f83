//go:build linux

package pager

import (
	"context"
	"errors"
	"sync"
)

// Lock is a range that is being made resident and pinned, or is. It costs no
// goroutine and no thread while it is under way.
type Lock struct {
	mu   sync.Mutex
	r    *Region
	pr   pageRange
	efd  *sharedEventfd // our duplicate, nil: none
	done chan struct{}
	err  error

	finished bool
	unlocked bool
}

// LockEventfd makes [off, off+n) resident and pins it, as mlock(2) does, and
// does not wait: efd, an eventfd of the caller, is signalled once, when the
// range is resident and pinned, or that failed, or the region was closed. It
// is duplicated: the caller may close his at any time. -1: nobody is
// signalled.
//
// Errors: ErrBudget at once if the range is larger than what can be pinned at
// all; EBADF or EINVAL if efd is no eventfd; out of range; ErrClosed. Errors
// that come later are Lock.Err's.
func (r *Region) LockEventfd(off, n int64, efd int) (*Lock, error) {
	if err := r.checkRange("lock", off, n); err != nil {
		return nil, err
	}
	l := &Lock{r: r, done: make(chan struct{})}
	if efd != -1 {
		e, err := shareEventfd(efd)
		if err != nil {
			return nil, err
		}
		l.efd = e
	}
	if !r.enter() {
		l.efd.release()
		return nil, ErrClosed
	}
	if n == 0 {
		r.leave()
		l.finish(nil)
		return l, nil
	}
	l.pr = r.pageRange(off, n)
	if r.pinHits(l.pr) {
		r.leave()
		l.finish(nil)
		return l, nil
	}
	op := newOp(r)
	op.pin, op.lock = true, l
	op.one[0] = l.pr
	op.ranges = op.one[:]
	if err := r.p.begin(op); err != nil {
		l.efd.release()
		return nil, err
	}
	return l, nil
}

// complete is the op's end: it owns op.
func (l *Lock) complete(op *waitOp) {
	err, r := op.err, op.r
	op.free()
	l.finish(err)
	r.leave()
}

func (l *Lock) finish(err error) {
	l.mu.Lock()
	l.finished, l.err = true, err
	release := l.unlocked && err == nil
	l.mu.Unlock()
	if release {
		l.r.unpin(l.pr, false)
	}
	close(l.done)
	l.efd.signal()
	l.efd.release()
}

// Done is closed when the range is locked or that has failed.
func (l *Lock) Done() <-chan struct{} { return l.done }

// Err is nil before Done, and after it if the range is locked.
func (l *Lock) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Wait waits for Done or ctx and returns Err or ctx.Err.
func (l *Lock) Wait(ctx context.Context) error {
	if ctx == nil {
		return errNoContext
	}
	select {
	case <-l.done:
		return l.Err()
	default:
	}
	select {
	case <-l.done:
		return l.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unlock unpins the range. Before Done it says that the lock is not wanted any
// more: the range is unpinned as soon as it is pinned. A second Unlock does
// nothing.
func (l *Lock) Unlock() {
	l.mu.Lock()
	release := l.finished && !l.unlocked && l.err == nil
	first := !l.unlocked
	l.unlocked = true
	l.mu.Unlock()
	if release && l.pr.n > 0 {
		l.r.unpin(l.pr, false)
	} else if first && !release {
		l.r.p.serveLine() // if it stands in line, it gives up its place
	}
}

var errUnlocked = errors.New("pager: unlocked before it was locked")

// unwanted: the lock was unlocked before it got what it waits for.
func (l *Lock) unwanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unlocked
}
