package aio

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// backend carries transfers out: the kernel's rings, or threads. An entry is
// named by its slot, of which there are as many as the engine is deep.
//
// Arguments go by value: a slice or pointer passed to an interface method
// escapes to the heap, and the way of an op must not allocate.
type backend interface {
	// prepare describes what is left of op in slot's submission entry.
	prepare(slot int32, op *Op)
	// submit hands over the prepared entries of b, in order, and returns how
	// many were taken and why the next one was not. Any goroutine may call it
	// at any time.
	submit(b batch) (int, syscall.Errno)
	// take removes at most len(cs) completions. Serialised by engine.mu.
	take(cs []completion) int
	// pending is how many take would find. Serialised by engine.mu.
	pending() int
	// cancel asks for everything under way to end early.
	cancel()
	// close frees the ring; nothing is under way.
	close() error
}

// batch is a list of slots, begun at from.
type batch struct {
	from, n int32
	slots   [batchSize]int32
}

const batchSize = 32

type completion struct {
	slot int32
	res  int64 // bytes or a negative errno
}

// chunk is how many completions are handled at a time: as many entries go back
// to the device before the Dones of the next ones run. Larger ones let the
// device's queue run dry meanwhile.
const chunk = 8

// stallPause is how long a Wait lets pass when the kernel took nothing of the
// backlog although nothing of ours is under way (out of memory), so that no
// completion will tell when to try again.
const stallPause = 200 * time.Microsecond

// engine is what the three kinds have in common.
//
// An op is in exactly one place: in the hands of a Submit, in the backlog, in a
// slot, in the finished queue, or in the hands of a Reap on its way to Done. mu
// guards the moves, and is never held during a system call that may block nor
// while Done runs.
//
// A submission entry is filled under mu although only its owner sees it: the
// hand-over from the submitter to whoever reaps goes through the kernel, which
// is an order the Go memory model does not know of.
type engine struct {
	kind  Kind
	depth int
	wake  waker

	between func() // see Options.Between

	inflight atomic.Int64 // submitted, Done not returned
	closing  atomic.Bool  // set under mu

	mu       sync.Mutex
	back     backend
	helper   *threads // carries out what back refuses; nil until needed
	slots    []*Op    // keeps the ops reachable while the kernel has them
	free     []int32
	backlog  fifo
	finished fifo // done without a completion
	cs       [chunk]completion

	waiting chan struct{}   // has what Wait and Close have of the waker: one at a time
	waitCtx context.Context // of the Wait under way; nil: Close waits
	watched <-chan struct{} // waitCtx.Done of the last Wait
	unwatch func() bool
	woken   func() bool // e.mayReturn, bound once

	closed chan struct{} // closed when Close is through
}

func newEngine(kind Kind, depth int, w waker) *engine {
	e := &engine{kind: kind, depth: depth, wake: w, waiting: make(chan struct{}, 1), closed: make(chan struct{})}
	e.slots = make([]*Op, depth)
	e.free = make([]int32, depth)
	for i := range e.free {
		e.free[i] = int32(depth - 1 - i)
	}
	e.woken = e.mayReturn
	return e
}

func (e *engine) Kind() Kind    { return e.kind }
func (e *engine) InFlight() int { return int(e.inflight.Load()) }

// Ready says that a Reap of e would find something. (Of an Engine that is not of this
// package it is not known: false.)
func Ready(e Engine) bool {
	own, ok := e.(*engine)
	if !ok {
		return false
	}
	own.mu.Lock()
	defer own.mu.Unlock()
	return own.ready()
}

// Outstanding is the number of ops that keep e's device busy: those InFlight but for
// what is in the backlog, or has finished and was not reaped. (Of an Engine that is
// not of this package, all of them.)
func Outstanding(e Engine) int {
	if e, ok := e.(*engine); ok {
		return e.outstanding()
	}
	return e.InFlight()
}

func (e *engine) outstanding() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.depth - len(e.free)
	if n == 0 {
		return 0
	}
	n -= e.back.pending()
	if e.helper != nil {
		n -= e.helper.pending()
	}
	return n
}

func (e *engine) Submit(ops []*Op) {
	e.inflight.Add(int64(len(ops)))
	for _, op := range ops {
		op.N, op.Err = 0, nil
	}
	for len(ops) > 0 {
		var b batch
		e.mu.Lock()
		if e.closing.Load() {
			e.mu.Unlock()
			for _, op := range ops {
				op.Err = ErrClosed
				op.Done(op)
			}
			e.leave(len(ops))
			return
		}
		// What came earlier goes first: a backlog is never overtaken.
		if e.backlog.empty() {
			for len(ops) > 0 && len(e.free) > 0 && b.n < batchSize {
				e.place(&b, ops[0])
				ops = ops[1:]
			}
		}
		if b.n == 0 {
			for _, op := range ops {
				e.backlog.push(op)
			}
			ops = nil
		}
		e.mu.Unlock()
		e.start(b)
	}
}

// place gives op a free slot and adds it to b. Called with mu.
func (e *engine) place(b *batch, op *Op) {
	slot := e.free[len(e.free)-1]
	e.free = e.free[:len(e.free)-1]
	e.slots[slot] = op
	e.resume(b, slot)
}

// resume adds slot, whose op still has a rest, to b. Called with mu.
func (e *engine) resume(b *batch, slot int32) {
	e.back.prepare(slot, e.slots[slot])
	b.slots[b.n] = slot
	b.n++
}

// vacate takes the op out of slot. Called with mu.
func (e *engine) vacate(slot int32) *Op {
	op := e.slots[slot]
	e.slots[slot] = nil
	e.free = append(e.free, slot)
	return op
}

// start hands b to the backend. Called without mu.
func (e *engine) start(b batch) {
	for b.from < b.n {
		n, errno := e.back.submit(b)
		b.from += int32(n)
		switch {
		case b.from == b.n:
			return
		case errno == syscall.EINTR || errno == 0 && n > 0:
		case errno == syscall.EAGAIN || errno == syscall.EBUSY || errno == 0:
			e.requeue(b)
			return
		default:
			e.refuse(b.slots[b.from], errno)
			b.from++
		}
	}
}

// requeue puts what is left of b back to the front of the backlog.
func (e *engine) requeue(b batch) {
	e.mu.Lock()
	var front fifo
	for _, slot := range b.slots[b.from:b.n] {
		op := e.vacate(slot)
		if e.closing.Load() {
			op.Err = ErrClosed
			e.finished.push(op)
		} else {
			front.push(op)
		}
	}
	e.backlog.prepend(front)
	// Whoever waits for a completion would wait for ever when none is due.
	kick := e.stalled() || !e.finished.empty()
	e.mu.Unlock()
	if kick {
		e.wake.kick()
	}
}

// refuse finishes the op that the kernel would not take. If that may only mean
// that the file cannot do it asynchronously (EINVAL: no read_iter, or fdatasync
// through io_submit before Linux 4.18; EOPNOTSUPP: no RWF_NOWAIT), a thread
// asks once more in the ordinary way and has the last word.
func (e *engine) refuse(slot int32, errno syscall.Errno) {
	e.mu.Lock()
	if e.kind != Threads && (errno == syscall.EINVAL || errno == syscall.EOPNOTSUPP) {
		e.assist(slot)
		e.mu.Unlock()
		return
	}
	op := e.vacate(slot)
	op.Err = errno
	e.finished.push(op)
	e.mu.Unlock()
	e.wake.kick()
}

// wouldBlock says that the backend did not do a buffered transfer because it
// would have had to wait in it.
func (e *engine) wouldBlock(op *Op, res int64) bool {
	return e.kind != Threads && op.wouldWait(res)
}

// assist hands slot to the threads. Called with mu, which never waits for the
// threads' own lock: they hold it for a few lines.
func (e *engine) assist(slot int32) {
	if e.helper == nil {
		e.helper = newThreads(helperThreads, e.depth, e.wake.kick)
	}
	e.helper.prepare(slot, e.slots[slot])
	e.helper.submit(batch{n: 1, slots: [batchSize]int32{slot}})
}

// stalled says that the backlog cannot count on a completion. Called with mu.
func (e *engine) stalled() bool {
	return !e.backlog.empty() && len(e.free) == e.depth
}

func (e *engine) Reap(max int) int {
	ran := 0
	var later fifo
	told := false // somebody has been, since the last of later
	for {
		more := false
		if ran < max {
			var n, put int
			n, put, more = e.reapChunk(min(max-ran, chunk), &later)
			ran += n
			told = told || n > put
		}
		switch {
		case !later.empty():
			// One at a time: its Done may take longer than the device does for what
			// somebody waits for.
			if told && e.between != nil {
				e.between()
			}
			told = false
			e.finish(later.pop())
		case !more:
			return ran
		}
	}
}

// finish runs the Done of an op that was taken.
func (e *engine) finish(op *Op) {
	op.Done(op)
	e.leave(1)
}

// reapChunk takes at most max finished ops, puts those that are Later into later
// and finishes the others. It reports whether another call may find more.
func (e *engine) reapChunk(max int, later *fifo) (ran, put int, more bool) {
	var (
		done [chunk]*Op
		b    batch
	)
	e.mu.Lock()
	n, own := e.take(max)
	for i, c := range e.cs[:n] {
		op := e.slots[c.slot]
		switch {
		case i < own && e.wouldBlock(op, c.res):
			e.assist(c.slot)
			continue
		case c.res == -int64(syscall.ECANCELED) && e.closing.Load():
			op.Err = ErrClosed
		case c.res == -int64(syscall.ECANCELED) || !op.advance(c.res):
			// (io_uring also cancels what a thread submitted that has
			// ended since; nobody asked for that.)
			e.resume(&b, c.slot)
			continue
		}
		done[ran] = e.vacate(c.slot)
		ran++
	}
	for ran < max && !e.finished.empty() {
		done[ran] = e.finished.pop()
		ran++
	}
	for (n+ran > 0 || e.stalled()) && !e.backlog.empty() && len(e.free) > 0 && b.n < batchSize {
		e.place(&b, e.backlog.pop())
	}
	e.mu.Unlock()

	// The device first, then the callers: its queue must not run dry while
	// they work.
	e.start(b)
	for _, op := range done[:ran] {
		if op.Later {
			later.push(op)
			put++
		} else {
			e.finish(op)
		}
	}
	return ran, put, n+ran > 0
}

// take fills e.cs with at most max completions, the first own of them the
// backend's and not the helper's. Called with mu.
func (e *engine) take(max int) (n, own int) {
	if len(e.free) == e.depth {
		return 0, 0
	}
	n = e.back.take(e.cs[:max])
	own = n
	if e.helper != nil && n < max {
		n += e.helper.take(e.cs[n:max])
	}
	return n, own
}

// leave counts n ops whose Done has returned.
func (e *engine) leave(n int) {
	if n > 0 && e.inflight.Add(-int64(n)) == 0 && e.closing.Load() {
		e.wake.kick() // Close may be waiting for exactly that
	}
}
