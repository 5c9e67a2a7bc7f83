package store

import (
	"context"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// rig is an engine and the patience to wait for it.
type rig struct {
	t testing.TB
	e aio.Engine
}

func newRig(t testing.TB, kind aio.Kind) *rig {
	t.Helper()
	e, err := aio.Open(aio.Options{Kind: kind, Depth: 32})
	if err != nil {
		t.Skipf("engine %v: %v", kind, err)
	}
	t.Cleanup(func() { e.Close() })
	return &rig{t, e}
}

// start begins the ops; each sends itself on the channel when it is done.
func (r *rig) start(s Store, ops ...*aio.Op) <-chan *aio.Op {
	done := make(chan *aio.Op, len(ops))
	for _, op := range ops {
		op.Done = func(op *aio.Op) { done <- op }
	}
	s.Start(r.e, ops)
	return done
}

// finish waits for n ops, reaping meanwhile.
func (r *rig) finish(done <-chan *aio.Op, n int) {
	r.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for ; n > 0; n-- {
		for got := false; !got; {
			r.e.Reap(16)
			select {
			case <-done:
				got = true
			default:
				if time.Now().After(deadline) {
					r.t.Fatalf("%d ops are still under way after 30 s", n)
				}
				// Ops of stores without a ring end without the engine knowing:
				// hence a short wait.
				ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
				r.e.Wait(ctx)
				cancel()
			}
		}
	}
}

// do runs the ops to their end.
func (r *rig) do(s Store, ops ...*aio.Op) {
	r.t.Helper()
	r.finish(r.start(s, ops...), len(ops))
}

// read reads len(buf) bytes at off and fails the test on an error.
func (r *rig) read(s Store, off int64, buf []byte) int {
	r.t.Helper()
	op := &aio.Op{Code: aio.Read, Off: off, Buf: buf}
	r.do(s, op)
	if op.Err != nil {
		r.t.Fatalf("read %d bytes at %d: %v", len(buf), off, op.Err)
	}
	return op.N
}

func (r *rig) write(s Store, off int64, buf []byte) {
	r.t.Helper()
	op := &aio.Op{Code: aio.Write, Off: off, Buf: buf}
	r.do(s, op)
	if op.Err != nil || op.N != len(buf) {
		r.t.Fatalf("write %d bytes at %d: N %d, %v", len(buf), off, op.N, op.Err)
	}
}

func (r *rig) flush(s Store) error {
	r.t.Helper()
	op := &aio.Op{Code: aio.Flush}
	r.do(s, op)
	return op.Err
}

// stamp fills b with bytes that depend on where in the store they are.
func stamp(b []byte, off int64, seed byte) {
	for i := range b {
		at := off + int64(i)
		b[i] = byte(at) ^ byte(at>>8)*31 ^ byte(at>>16)*17 ^ seed | 1
	}
}

func stamped(n int, seed byte) []byte {
	b := make([]byte, n)
	stamp(b, 0, seed)
	return b
}
