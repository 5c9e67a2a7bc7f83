package aio

import (
	"context"
	"time"
)

// Two parties signal the waker: the kernel with every completion, and kick for
// everything else that mayReturn looks at. Both do so after the change, and the
// waiter looks after it has taken the signal, so no change goes unnoticed.

func (e *engine) Wait(ctx context.Context) error {
	// Another Wait may go on for ever, for instance when it has reaped what this
	// one is there for: a mutex would not let go when ctx ends.
	select {
	case e.waiting <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-e.waiting }()
	if e.closing.Load() {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.Lock()
	ready, stalled := e.ready(), e.stalled()
	e.mu.Unlock()
	switch {
	case ready:
		return nil
	case stalled:
		time.Sleep(stallPause)
		return nil
	}
	e.watch(ctx)
	e.waitCtx = ctx
	e.wake.wait(e.woken)
	e.waitCtx = nil
	if e.closing.Load() {
		return ErrClosed
	}
	return ctx.Err()
}

// watch has ctx wake the waiter when it ends. The registration outlives the
// Wait, so that the next one with the same ctx need not make it again.
func (e *engine) watch(ctx context.Context) {
	done := ctx.Done()
	if done == e.watched {
		return
	}
	if e.unwatch != nil {
		e.unwatch()
		e.unwatch = nil
	}
	e.watched = done
	if done != nil {
		e.unwatch = context.AfterFunc(ctx, e.wake.kick)
	}
}

// ready reports whether Reap would find something. Called with mu.
func (e *engine) ready() bool {
	if !e.finished.empty() {
		return true
	}
	if len(e.free) == e.depth {
		return false
	}
	return e.back.pending() > 0 || e.helper != nil && e.helper.pending() > 0
}

// mayReturn ends the wait of Wait or, when waitCtx is nil, of Close.
func (e *engine) mayReturn() bool {
	if e.waitCtx == nil {
		if e.inflight.Load() == 0 {
			return true
		}
	} else if e.closing.Load() || e.waitCtx.Err() != nil {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ready() || e.stalled()
}

func (e *engine) Close() error {
	e.mu.Lock()
	if e.closing.Swap(true) {
		e.mu.Unlock()
		<-e.closed
		return nil
	}
	for !e.backlog.empty() {
		op := e.backlog.pop()
		op.Err = ErrClosed
		e.finished.push(op)
	}
	e.mu.Unlock()
	e.wake.kick() // ends a Wait, which then lets others wait

	e.waiting <- struct{}{}
	defer func() { <-e.waiting }()
	if e.InFlight() > 0 {
		e.back.cancel()
	}
	for e.InFlight() > 0 {
		if e.Reap(chunk) == 0 {
			e.wake.wait(e.woken)
		}
	}
	if e.unwatch != nil {
		e.unwatch()
	}
	// A late Reap finds every slot free and leaves the ring alone; a late
	// Submit finds closing.
	err := e.back.close()
	if e.helper != nil {
		e.helper.close()
	}
	e.wake.close()
	close(e.closed)
	return err
}
