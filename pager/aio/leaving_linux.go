package aio

import (
	"time"

	"golang.org/x/sys/unix"
)

// leaveLook is how often somebody who waits in a Leaving engine looks whether he is
// to go: a moment for who wants to go, and longer than most transfers take.
var leaveLook = 2 * time.Millisecond

// Leaving is e, which InPlace has made, for a goroutine that does not wait to the
// end if gone is closed: Submit carries the ops out itself, as e does, but returns
// within a few milliseconds then, and a goroutine of their own ends what is under
// way. So Done of each op has run, or will. What e cannot do in place, or only in a
// system call that cannot be left, goes to the engine below.
func Leaving(e Engine, gone <-chan struct{}) Engine {
	if p, ok := e.(*inPlace); ok {
		return &leaving{p, gone}
	}
	return e
}

type leaving struct {
	*inPlace
	gone <-chan struct{}
}

func (l *leaving) Submit(ops []*Op) {
	e := l.inPlace
	if e.closed.Load() || len(ops) == 0 || len(ops) > inPlaceMost || !e.mu.TryLock() {
		e.Engine.Submit(ops)
		return
	}
	if e.k == nil {
		e.mu.Unlock()
		e.Engine.Submit(ops)
		return
	}
	for _, op := range ops {
		op.N, op.Err = 0, nil
	}
	res := new([inPlaceMost]int64)
	n := e.give(ops)
	left := n
	for left > 0 {
		left -= e.k.waitFor(left, res, leaveLook)
		select {
		case <-l.gone:
			if left > 0 {
				kept := append([]*Op(nil), ops...) // the slice is the caller's
				go func() {
					e.k.mustWait(left, res)
					l.end(kept, n, res)
				}()
				return
			}
		default:
		}
	}
	l.end(ops, n, res)
}

// end ends the n ops that the kernel has taken, with their results, and starts what
// is left in the ordinary way.
func (l *leaving) end(ops []*Op, n int, res *[inPlaceMost]int64) {
	l.mu.Unlock() // Done may submit
	for i, op := range ops[:n] {
		if r := res[i]; !op.wouldWait(r) && op.advance(r) {
			op.Done(op)
		} else {
			l.Engine.Submit([]*Op{op}) // from its beginning: all of it is there still
		}
	}
	if n < len(ops) {
		l.Engine.Submit(ops[n:])
	}
}

// waitFor waits for n completions, but not longer than d, and says how many came.
func (k *kaio) waitFor(n int, res *[inPlaceMost]int64, d time.Duration) int {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	got, errno := k.getEvents(n, n, res, &ts)
	if errno != 0 && errno != unix.EINTR {
		panic("aio: io_getevents: " + errno.Error())
	}
	return got
}

// mustWait waits for n completions: it worked when it was tried, and what is under way
// cannot be left.
func (k *kaio) mustWait(n int, res *[inPlaceMost]int64) {
	if errno := k.wait(n, res); errno != 0 {
		panic("aio: io_getevents: " + errno.Error())
	}
}
