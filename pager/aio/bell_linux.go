package aio

import "sync/atomic"

// Bell is an eventfd for the completion of single ops. The completion of an op
// with a Bell is not told to Wait, but to whoever waits at the Bell, in Go's
// netpoller: that is the very goroutine that the op is for, and nobody has to
// wake it after having been woken himself. He then calls Reap.
//
// The completion lies in the engine's ring meanwhile, and any Reap may find it.
type Bell struct {
	e    *engine
	wake *eventWaker
	told func() bool // of the Wait under way
	ok   func() bool // b.mayReturn, bound once
	used atomic.Bool // somebody waits; that it is one at a time is checked
}

// NewBell makes a Bell for e. Only LinuxAIO has an eventfd for every op: for
// another engine, or if there are no more descriptors, it is nil.
func NewBell(e Engine) *Bell {
	e0, ok := e.(*engine)
	if !ok || e0.kind != LinuxAIO {
		return nil
	}
	w, err := newEventWaker()
	if err != nil {
		return nil
	}
	b := &Bell{e: e0, wake: w}
	b.ok = b.mayReturn
	return b
}

// Wait parks the calling goroutine until told returns true or a Reap may find
// something. told is asked again after every signal. One goroutine at a time.
func (b *Bell) Wait(told func() bool) {
	if b.used.Swap(true) {
		panic("aio: two at one Bell")
	}
	b.told = told
	b.wake.wait(b.ok)
	b.told = nil
	b.used.Store(false)
}

func (b *Bell) mayReturn() bool {
	if b.told() {
		return true
	}
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	return b.e.ready()
}

// Ring has whoever waits ask told again. From any goroutine, at any time before
// Close.
func (b *Bell) Ring() { b.wake.kick() }

// Close frees the eventfd. No op has the Bell any more, and nobody waits.
func (b *Bell) Close() { b.wake.close() }
