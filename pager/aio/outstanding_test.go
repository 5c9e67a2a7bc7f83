//go:build linux

package aio

import "testing"

// What has finished is in flight until it is reaped, and keeps no device busy; nor
// does what the engine has no slot for.
func TestOutstanding(t *testing.T) {
	s := &script{finish: func(op *Op) (int64, bool) { return int64(len(op.Buf)), op.Off < 10 }}
	e := scripted(4, s)
	want := func(outstanding, inFlight int) {
		t.Helper()
		if n := Outstanding(e); n != outstanding || e.InFlight() != inFlight {
			t.Errorf("%d outstanding, %d in flight; want %d, %d", n, e.InFlight(), outstanding, inFlight)
		}
	}
	want(0, 0)
	var ops []*Op
	for _, off := range []int64{0, 10, 1, 11, 12} { // those from 10 on are held
		ops = append(ops, &Op{Off: off, Buf: make([]byte, 1), Done: func(*Op) {}})
	}
	e.Submit(ops)
	want(2, 5) // four slots, of which two have finished
	if n := e.Reap(1); n != 1 {
		t.Fatalf("%d reaped", n)
	}
	want(3, 4) // and the fifth took the place
	e.Reap(1)
	want(3, 3)
	s.mu.Lock()
	for _, slot := range s.held {
		s.done = append(s.done, completion{slot, 1})
	}
	s.held = nil
	s.mu.Unlock()
	want(0, 3)
	e.Reap(8)
	want(0, 0)
	e.Close()
}
