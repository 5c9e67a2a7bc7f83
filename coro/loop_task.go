package coro

import (
	"context"
	"iter"
)

// Task is a coroutine of a [Loop], as it sees itself. Its methods may only be
// called by the coroutine, while it runs: not by goroutines it has started
// and not after it has returned. They panic if another coroutine calls them.
type Task struct {
	loop  *Loop
	next  func() (struct{}, bool) // runs the coroutine until it stops
	yield func(struct{}) bool     // stops it
	wait  efdWaiter
	seq   uint64 // number of the wait
}

// spawn makes a coroutine of fn, which will run in its turn. Called on the
// loop's goroutine, because a coroutine inherits the thread lock of its maker.
func (l *Loop) spawn(fn func(*Task) error) {
	t := &Task{loop: l}
	t.wait.task = t
	// It always runs to its end, so iter.Pull's stop is not needed.
	t.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		defer func() { l.recovered(recover()) }()
		if err := fn(t); err != nil {
			l.fail(err)
		}
	})
	l.live++
	l.ready.push(t)
}

func (t *Task) check() {
	if t.loop.current != t {
		panic("coro: Task used outside its coroutine")
	}
}

// Context ends when the loop is cancelled: when the context given to Run ends,
// or with the error or panic of a coroutine, which is then its
// [context.Cause].
func (t *Task) Context() context.Context { return t.loop.ctx }

// Go starts fn as another coroutine of the loop; it runs in its turn, not at
// once. Unlike [Loop.Go] it always succeeds, also while the loop drains.
func (t *Task) Go(fn func(*Task) error) {
	t.check()
	t.loop.spawn(fn)
}

// Yield lets every coroutine that is ready run, then continues. The error is
// that of the cancelled loop's context; Yield has yielded all the same.
func (t *Task) Yield() error {
	t.check()
	l := t.loop
	l.ready.push(t)
	t.yield(struct{}{})
	if l.cancelled {
		return l.ctx.Err()
	}
	return nil
}

// Await is the package function [Await] for a coroutine: it stops the
// coroutine, not the loop, until the counter of the eventfd efd is not zero,
// takes the counter and returns it. If it is not zero already, Await returns at
// once and no other coroutine runs. Errors, and what happens to a descriptor
// that is closed meanwhile, are as described there. Of the coroutines of one
// loop that wait for one eventfd the oldest is woken; if several loops, or
// loops and goroutines, wait for it, one of them gets the signal.
//
// When the loop is cancelled Await returns the error of [Task.Context], at
// once, and takes nothing.
func (t *Task) Await(efd int) (uint64, error) {
	return t.await(t.loop.ctx, efd)
}

// AwaitContext is Await with a context for this wait alone, a request's
// deadline for instance; the end of the loop's context ends it as well. The
// error is that of the context that ended.
func (t *Task) AwaitContext(ctx context.Context, efd int) (uint64, error) {
	return t.await(ctx, efd)
}

func (t *Task) await(ctx context.Context, efd int) (uint64, error) {
	t.check()
	l := t.loop
	if err := l.ctx.Err(); err != nil {
		l.abort(nil) // the message that says so may still be under way
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	value, ok, err := tryEventfd(efd)
	if err != nil {
		return 0, efdError(efd, err)
	}
	if ok {
		return value, nil
	}
	w := &t.wait
	w.value, w.err = 0, nil
	if err := l.set.add(w, int32(efd)); err != nil {
		return 0, efdError(efd, err)
	}
	t.seq++
	if ctx != l.ctx {
		seq := t.seq
		defer context.AfterFunc(ctx, func() {
			l.send(message{expire: t, seq: seq, err: ctx.Err()}, true)
		})()
	}
	t.yield(struct{}{})
	return w.value, w.err
}

// expire ends wait number seq of t, unless it has ended.
func (t *Task) expire(seq uint64, err error) {
	if t.seq == seq && t.loop.set.cancel(&t.wait) {
		t.wait.err = err
		t.loop.ready.push(t)
	}
}
