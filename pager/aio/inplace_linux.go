package aio

import (
	"sync"
	"sync/atomic"
	"syscall"
)

// inPlaceMost is how many ops go to the device together.
const inPlaceMost = 4

// inPlace carries ops out where they are submitted.
type inPlace struct {
	Engine // for what cannot be done in place
	closed atomic.Bool

	mu sync.Mutex // held while k has something under way
	k  *kaio      // nil: there is none (any more)
}

// InPlace is an engine for a goroutine that has nothing to do but wait for what
// it submits: Submit carries the ops out itself, several at the same time, and
// Done has run when it returns. No poller, goroutine or thread has to be woken,
// which takes as long as a fast device does. The thread is in a system call
// meanwhile, its P free for others; but Go hands the P on only when it notices,
// some 20 µs later or more, and only if there is need for it.
//
// What cannot be done so goes to below and ends as with any engine, after
// Submit: several ops at once while somebody else has several under way, more
// than four, or where below is not LinuxAIO; and all that comes after Close,
// which does not close below. Everything else that an engine does is below's.
//
// It takes four of fs.aio-max-nr. Where these are not to be had only single ops
// are done in place.
func InPlace(below Engine) Engine {
	e := &inPlace{Engine: below}
	if below.Kind() == LinuxAIO {
		if k, err := newKAIO(inPlaceMost, noEventfd); err == nil {
			if e.k = k; k.wait(0, nil) != 0 {
				e.k = nil
				k.close()
			}
		}
	}
	return e
}

// Submit does the ops, if it can, before it returns.
func (e *inPlace) Submit(ops []*Op) {
	switch {
	case e.closed.Load() || len(ops) > inPlaceMost:
	case len(ops) == 1:
		ops[0].N, ops[0].Err = 0, nil
		ops[0].complete()
		return
	case e.mu.TryLock():
		if e.k == nil {
			e.mu.Unlock()
			break
		}
		for _, op := range ops {
			op.N, op.Err = 0, nil
		}
		res := e.together(ops)
		e.mu.Unlock() // Done may submit
		for i, op := range ops {
			switch r := res[i]; {
			case op.wouldWait(r):
				op.complete() // it would have had to wait: it may
			case op.advance(r):
				op.Done(op)
			default:
				op.complete()
			}
		}
		return
	}
	e.Engine.Submit(ops)
}

// together gives ops to the kernel with one call and waits for all of them with
// another. Called with mu.
func (e *inPlace) together(ops []*Op) (res [inPlaceMost]int64) {
	n := e.give(ops, 0)
	// What the kernel has not taken, for whatever reason, is asked for in the
	// ordinary way, which has the last word.
	for i, op := range ops[n:] {
		res[n+i] = transfer(op)
	}
	e.k.mustWait(n, &res)
	return res
}

// give gives ops to the kernel with one call, in the slots from this one on, and
// says how many it has taken. Called with mu.
func (e *inPlace) give(ops []*Op, slot int) (n int) {
	b := batch{n: int32(len(ops))}
	for i, op := range ops {
		b.slots[i] = int32(slot + i)
		e.k.prepare(b.slots[i], op)
	}
	n, _ = e.k.submit(b)
	return n
}

// wouldWait: the kernel says by r that a buffered op would have had to wait.
func (op *Op) wouldWait(r int64) bool {
	return op.Buffered && (r == -int64(syscall.EAGAIN) || r == -int64(syscall.EOPNOTSUPP))
}

// complete does what is left of op, with as many system calls as it takes, and
// ends it.
func (op *Op) complete() {
	for !op.advance(transfer(op)) {
	}
	op.Done(op)
}

// Close waits for what is under way together. Later ops go to the engine below.
func (e *inPlace) Close() error {
	e.closed.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.k == nil {
		return nil
	}
	err := e.k.close()
	e.k = nil
	return err
}
