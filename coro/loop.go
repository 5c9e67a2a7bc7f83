package coro

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// ErrLoopClosed is returned when a coroutine or a function is given to a Loop
// that takes no more, and by a second Run or Serve.
var ErrLoopClosed = errors.New("coro: loop is closed")

// A Loop runs any number of coroutines on one goroutine: the one that called
// [Loop.Run] or [Loop.Serve]. A coroutine runs until it waits ([Task.Await]),
// yields ([Task.Yield]) or returns; then the loop resumes another one, whose
// eventfd has fired or whose turn it is. Two coroutines of a loop never run at
// the same time, so what only they touch needs no lock.
//
// It is the shape for a server that handles each request in straight-line code
// without a goroutine, let alone a thread, to be scheduled for each: start the
// I/O with a call that signals an eventfd (the pager's LockEventfd and
// SyncEventfd), and Await it.
//
//	coroutines ──Await──▶ epoll, in the Go netpoller     signal an eventfd ◀── anybody
//	     ▲                          │
//	     └── resumed, in order ─────┘      Go, Post ◀── other goroutines
//
// A switch from one coroutine to the next is that of [iter.Pull] and a queue:
// no channel, no scheduler, no system call. While nothing is to do the loop's
// goroutine is parked and holds no thread.
//
// # What stops the whole loop
//
// Anything that stops the goroutine: a channel, a mutex, time.Sleep, the
// package function [Await], a system call that takes long. And a page fault: a
// plain load from a region's bytes whose page is missing does not know that it
// is in a coroutine, so the goroutine under all coroutines is stopped until the
// page is there – parked, so that its thread runs other goroutines, or together
// with its thread where it cannot be parked. No other coroutine of this loop
// runs meanwhile; it is correct, but it serves one fault at a time. Such faults
// are counted by the trap's statistics like all others. Make pages resident
// first, by a call that signals an eventfd, and touch them then.
//
// # Goroutine state
//
// Each coroutine has a stack and a defer chain of its own, and
// debug.SetPanicOnFault applies to the coroutine that calls it. A coroutine
// must not change whether it is locked to its thread (runtime.LockOSThread);
// the goroutine that calls Run may be locked.
type Loop struct {
	// Only for the loop's goroutine.
	set        *efdSet
	ready      ring[*Task] // who runs next
	current    *Task       // who runs; nil between two coroutines
	live       int         // coroutines that have not returned
	unpolled   int         // resumed since epoll was last asked
	ctx        context.Context
	cancel     context.CancelCauseFunc
	cancelled  bool
	untilIdle  bool // Run, not Serve
	err        error
	panicError *PanicError
	fired      [efdBatch]int32 // room for the poller's answer

	mu    sync.Mutex
	mail  ring[message] // from outside
	state loopState

	mailed   atomic.Bool // there is mail, or state has changed
	sleeping atomic.Bool // the loop waits, or is about to, and has to be woken
}

type loopState uint8

const (
	loopNew     loopState = 1 << iota // neither Run nor Serve was called
	loopRefuses                       // takes nothing new from outside
	loopClosed                        // has returned, or is about to
)

// message is something to do for the loop's goroutine: one field is set, or
// none to say that the context has ended.
type message struct {
	start  func(*Task) error
	call   func()
	expire *Task // its wait number seq is over, with err
	seq    uint64
	err    error
}

// NewLoop returns a loop that does nothing yet. It holds no descriptor and no
// goroutine before Run or Serve.
func NewLoop() *Loop { return &Loop{state: loopNew} }

// Go starts fn as a coroutine at the loop's next turn. It may be called from
// any goroutine, before and while the loop runs, and does not wait. The only
// error is [ErrLoopClosed]: after Close, after the end of the loop's context,
// after an error or the loop's return. What was accepted is run exactly once,
// unless Run itself could not start; if the context has ended by then, with
// that context.
//
// A non-nil error of fn cancels the loop and is what Run returns. A coroutine that
// serves one request of many should deal with its errors and return nil.
func (l *Loop) Go(fn func(*Task) error) error {
	return l.send(message{start: fn}, false)
}

// Post has fn called on the loop's goroutine, between two coroutines, in the
// order of the calls to Post and Go. Fn must not block. Post may be called from
// any goroutine, does not wait, and fails like Go.
func (l *Loop) Post(fn func()) error {
	return l.send(message{call: fn}, false)
}

// Close makes the loop refuse what Go and Post bring, and Serve return once
// every coroutine has returned; it does not wait for that and cancels nothing.
// Coroutines may still start others by [Task.Go]. It may be called from any
// goroutine, any number of times.
func (l *Loop) Close() {
	l.mu.Lock()
	l.state |= loopRefuses
	l.mailed.Store(true)
	l.mu.Unlock()
	l.wake()
}

// Run runs the loop on the calling goroutine until every coroutine has returned
// and nothing is left to do. A loop runs once.
//
// When ctx ends, or a coroutine returns an error or panics, the loop is
// cancelled: it takes nothing new, every Await and Yield, present and
// future, returns the error of [Task.Context], and Run returns when all coroutines
// have. One that ignores the error keeps Run from returning.
//
// A panic in a coroutine or a posted function does not crash the process: it ends
// that coroutine and cancels the loop, so that the others run their deferred
// functions; Run returns it as a [*PanicError] with the stack of the panic.
// runtime.Goexit there (t.FailNow in a test) ends, in the same way, the
// goroutine that called Run.
//
// The result is the first panic, else the first error that a coroutine
// returned, else ctx.Err() if ctx ended first, else nil. It is
// [ErrNotSupported] off Linux, and unwraps to a [syscall.Errno] if epoll is not
// to be had; then nothing was run.
//
// Run uses one descriptor, closed when it returns.
func (l *Loop) Run(ctx context.Context) error { return l.run(ctx, true) }

// Serve is Run for a loop that lives on what other goroutines give it: it does
// not return when it is idle, only after Close, or when it is cancelled.
func (l *Loop) Serve(ctx context.Context) error { return l.run(ctx, false) }

// send leaves m for the loop's goroutine.
func (l *Loop) send(m message, always bool) error {
	l.mu.Lock()
	if l.state&loopClosed != 0 || l.state&loopRefuses != 0 && !always {
		l.mu.Unlock()
		return ErrLoopClosed
	}
	l.mail.push(m)
	l.mailed.Store(true)
	l.mu.Unlock()
	l.wake()
	return nil
}

// wake ends the loop's sleep. The message must have been left before: either
// the loop sees it when it looks once more before it sleeps, or this sees that
// it sleeps.
func (l *Loop) wake() {
	if l.sleeping.CompareAndSwap(true, false) {
		l.set.poller.wake()
	}
}

// PanicError is the panic of a coroutine or a posted function.
type PanicError struct {
	Value any    // what recover returned
	Stack []byte // of the panic, as by debug.Stack
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("coro: panic in a coroutine: %v\n\n%s", e.Value, e.Stack)
}

// Unwrap returns Value if it is an error, such as a runtime.Error with the
// address of a fault.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// recovered makes a loop's error of what a deferred function recovered.
func (l *Loop) recovered(value any) {
	if value != nil {
		l.fail(&PanicError{Value: value, Stack: debug.Stack()})
	}
}
