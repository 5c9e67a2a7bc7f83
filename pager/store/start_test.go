package store

import (
	"context"
	"errors"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// noEngine takes ops and does nothing but remember how they came.
type noEngine struct{ batches [][]*aio.Op }

func (e *noEngine) Submit(ops []*aio.Op) {
	if e.batches != nil {
		e.batches = append(e.batches, append([]*aio.Op(nil), ops...))
	}
}
func (e *noEngine) Kind() aio.Kind             { return aio.Threads }
func (e *noEngine) Reap(int) int               { return 0 }
func (e *noEngine) Wait(context.Context) error { return aio.ErrClosed }
func (e *noEngine) InFlight() int              { return 0 }
func (e *noEngine) Close() error               { return nil }

// testFile is a File that only Start is to be called on.
func testFile(size, block int64) *File {
	f := &File{name: "test", fd: 7, block: block, page: 4096, writable: true, tailFD: -1}
	f.size.Store(size)
	return f
}

func TestStartHandsOverWholeRuns(t *testing.T) {
	f := testFile(10*4096+100, 512)
	var done []int64
	mk := func(page int64, code aio.Code) *aio.Op {
		return &aio.Op{Code: code, Off: page * 4096, Buf: make([]byte, 4096), Done: func(op *aio.Op) { done = append(done, op.Off/4096) }}
	}
	ops := []*aio.Op{mk(0, aio.Read), mk(1, aio.Write), mk(11, aio.Read), mk(2, aio.Read), mk(10, aio.Read), mk(9, aio.Write), {Code: aio.Flush}}
	e := &noEngine{batches: [][]*aio.Op{}}
	f.Start(e, ops)
	// Page 11 is past the end and finishes at once; page 10 is the tail and
	// goes as an op of its own; the others go as they are.
	want := [][]*aio.Op{ops[0:2], ops[3:4], nil, ops[5:7]}
	if len(e.batches) != len(want) || len(done) != 1 || done[0] != 11 {
		t.Fatalf("%d batches, done %v", len(e.batches), done)
	}
	for i, b := range e.batches {
		if want[i] == nil {
			if len(b) != 1 || b[0] == ops[4] || b[0].Off != ops[4].Off || b[0].FD != 7 {
				t.Errorf("batch %d: the tail", i)
			}
			continue
		}
		for j := range want[i] {
			if len(b) != len(want[i]) || b[j] != want[i][j] || b[j].FD != 7 {
				t.Fatalf("batch %d: %d ops", i, len(b))
			}
		}
	}
}

func TestStartCostsNothing(t *testing.T) {
	f := testFile(1<<30, 512)
	e := &noEngine{}
	ops := make([]*aio.Op, 16)
	for i := range ops {
		ops[i] = &aio.Op{Code: aio.Code(i & 1), Off: int64(i) * 4096, Buf: make([]byte, 4096)}
	}
	if n := testing.AllocsPerRun(100, func() { f.Start(e, ops) }); n != 0 {
		t.Errorf("%v allocations for a batch of whole pages", n)
	}
}

func TestWritesEndAtTheCut(t *testing.T) {
	for _, c := range []struct{ size, block, cut int64 }{
		{8192, 512, 8192}, {4608, 512, 4608}, {4609, 512, 4096}, {100, 512, 0}, {4096 + 512, 4096, 4096}, {777, 1, 777}, {1<<20 + 1, 4096, 1 << 20}, {5 << 14, 1 << 14, 5 << 14},
	} {
		if got := testFile(c.size, c.block).cut(c.size); got != c.cut {
			t.Errorf("size %d block %d: cut %d, want %d", c.size, c.block, got, c.cut)
		}
	}
}

// What the engine reports of its share is what the whole reports.
func TestTailErrorsReachTheOp(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		code    aio.Code
		n       int
		err     error
		wantN   int
		wantErr error
	}{
		{aio.Read, 0, broken, 0, broken},
		{aio.Read, 50, nil, 50, nil},
		{aio.Read, 4096, nil, 100, nil},
		{aio.Write, 0, broken, 0, broken},
		{aio.Write, 1000, nil, 1000, nil},
	} {
		f := testFile(4196, 512)
		e := &noEngine{batches: [][]*aio.Op{}}
		off := int64(4096)
		if c.code == aio.Write {
			off = 0 // reaches the tail from before the cut
		}
		called := 0
		op := &aio.Op{Code: c.code, Off: off, Buf: make([]byte, 8192), Done: func(*aio.Op) { called++ }}
		f.Start(e, []*aio.Op{op})
		if len(e.batches) != 1 || called != 0 {
			t.Fatalf("%v: %d batches, done %d times", c.code, len(e.batches), called)
		}
		inner := e.batches[0][0]
		if c.code == aio.Write && len(inner.Buf) != 4096 {
			t.Errorf("the direct share of the write has %d bytes", len(inner.Buf))
		}
		inner.N, inner.Err = c.n, c.err
		inner.Done(inner)
		if called != 1 || op.N != c.wantN || op.Err != c.wantErr {
			t.Errorf("%v with %d, %v: done %d times, N %d, %v", c.code, c.n, c.err, called, op.N, op.Err)
		}
	}
}

func BenchmarkFileStart(b *testing.B) {
	f := testFile(1<<30, 512)
	e := &noEngine{}
	ops := make([]*aio.Op, 16)
	for i := range ops {
		ops[i] = &aio.Op{Code: aio.Read, Off: int64(i) * 4096, Buf: make([]byte, 4096)}
	}
	b.ReportAllocs()
	for b.Loop() {
		f.Start(e, ops)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(ops)), "ns/transfer")
}
