//go:build linux

package aio

import (
	"slices"
	"testing"
)

// Ops that nobody waits for are done after the others, whatever their order in the
// ring: those that were taken together with them, and those that have finished by
// the time one of them is done. Between says that somebody has been told, once
// before the next of them.
func TestLaterIsDoneAfterTheOthers(t *testing.T) {
	s := &script{finish: func(op *Op) (int64, bool) { return int64(len(op.Buf)), op.Off < 10 }}
	e := scripted(16, s)
	var order []int64
	const between = -1
	e.between = func() { order = append(order, between) }
	// What was held until now finishes while the first op that is Later is busy.
	done := func(op *Op) {
		order = append(order, op.Off)
		s.mu.Lock()
		for _, slot := range s.held {
			s.done = append(s.done, completion{slot, 1})
		}
		s.held = nil
		s.mu.Unlock()
	}
	plain := func(op *Op) { order = append(order, op.Off) }
	var ops []*Op
	for _, o := range []struct {
		off   int64
		later bool
	}{{0, true}, {1, false}, {2, true}, {3, false}, {4, true}, {10, true}, {11, false}} {
		op := &Op{Off: o.off, Buf: make([]byte, 1), Later: o.later, Done: plain}
		if o.off == 0 {
			op.Done = done
		}
		ops = append(ops, op)
	}
	e.Submit(ops)
	if n := e.Reap(16); n != len(ops) || e.InFlight() != 0 {
		t.Errorf("%d of %d done, %d left", n, len(ops), e.InFlight())
	}
	if want := []int64{1, 3, between, 0, 11, between, 2, 4, 10}; !slices.Equal(order, want) {
		t.Errorf("done in the order %v, want %v", order, want)
	}

	// No more than was asked for, and whatever was taken is done.
	order = nil
	e.between = nil
	e.Submit(ops[:5])
	if n := e.Reap(3); n != 3 || e.InFlight() != 2 || !slices.Equal(order, []int64{1, 0, 2}) {
		t.Errorf("%d done, %d left, in the order %v", n, e.InFlight(), order)
	}
	if n := e.Reap(3); n != 2 || e.InFlight() != 0 || !slices.Equal(order, []int64{1, 0, 2, 3, 4}) {
		t.Errorf("%d done, %d left, in the order %v", n, e.InFlight(), order)
	}
	e.Close()
}
