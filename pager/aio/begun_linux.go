package aio

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// leaveLook is how often somebody who waits for what he has begun looks whether he is
// to go: a moment for who wants to go, and longer than most transfers take.
var leaveLook = 2 * time.Millisecond

// Begun is what a goroutine has begun in an InPlace engine and has still to wait
// for: Submit begins ops and returns, so that there is time for something else while
// the device has them, and End waits for all of them and runs their Dones. What has
// been begun keeps others from doing several ops in place: theirs go below.
//
// What the engine cannot do in place, or only in a system call that would be waited
// in, goes to the engine below and ends as with that; so does all that comes after
// End. A store may call Submit on any goroutine, and late.
type Begun struct {
	Engine          // below
	in     *inPlace // nil: nothing can be done in place

	mu    sync.Mutex
	ended bool
	ops   [inPlaceMost]*Op
	n     int // of them; the lock of in is held if there are any
	res   [inPlaceMost]int64
}

// Begin is e, which InPlace has made, for who begins ops and waits for them later,
// with End.
func Begin(e Engine) *Begun {
	if p, ok := e.(*inPlace); ok {
		return &Begun{Engine: p.Engine, in: p}
	}
	return &Begun{Engine: e}
}

// Submit begins the ops.
func (b *Begun) Submit(ops []*Op) {
	b.mu.Lock()
	n := 0
	if b.reserve(len(ops)) {
		for _, op := range ops {
			op.N, op.Err = 0, nil
		}
		n = b.in.give(ops, b.n)
		copy(b.ops[b.n:], ops[:n])
		if b.n += n; b.n == 0 {
			b.in.mu.Unlock()
		}
	}
	b.mu.Unlock()
	if n < len(ops) {
		b.Engine.Submit(ops[n:])
	}
}

// reserve: there is room for n ops in place, which nobody else has.
func (b *Begun) reserve(n int) bool {
	switch {
	case b.in == nil || b.ended || n == 0 || b.n+n > inPlaceMost:
		return false
	case b.n > 0:
		return true
	case b.in.closed.Load() || !b.in.mu.TryLock():
		return false
	case b.in.k == nil:
		b.in.mu.Unlock()
		return false
	}
	return true
}

// End waits for what was begun in place. If gone is closed (nil: never) it returns
// within a few milliseconds, and a goroutine of their own ends what is under way. So
// Done of each op that has not gone below has run, or will. A second End does nothing.
func (b *Begun) End(gone <-chan struct{}) {
	b.mu.Lock()
	again := b.ended
	b.ended = true
	b.mu.Unlock()
	if again || b.n == 0 {
		return
	}
	if gone == nil {
		b.in.k.mustWait(b.n, &b.res)
		b.tell(true)
		return
	}
	for left := b.n; left > 0; {
		left -= b.in.k.waitFor(left, &b.res, leaveLook)
		select {
		case <-gone:
			if left > 0 {
				go func() {
					b.in.k.mustWait(left, &b.res)
					b.tell(false)
				}()
				return
			}
		default:
		}
	}
	b.tell(false)
}

// tell ends what was begun, with its results; here says that what is left of it is
// to be done in place, too.
func (b *Begun) tell(here bool) {
	b.in.mu.Unlock() // Done may submit
	for i, op := range b.ops[:b.n] {
		switch r := b.res[i]; {
		case !op.wouldWait(r) && op.advance(r):
			op.Done(op)
		case here:
			op.complete()
		default:
			b.Engine.Submit([]*Op{op}) // from its beginning: all of it is there still
		}
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
