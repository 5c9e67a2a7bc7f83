package store

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
)

type readFunc func(p []byte, off int64) (int, error)

func (f readFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func TestFromReaderAtReads(t *testing.T) {
	data := stamped(10000, 1)
	s := FromReaderAt(bytes.NewReader(data), 10000)
	r := newRig(t, aio.Threads)
	if _, ok := s.Kernel(); ok || s.Writable() || s.Size() != 10000 {
		t.Fatalf("Kernel %v, Writable %v, Size %d", ok, s.Writable(), s.Size())
	}
	for _, c := range []struct{ off, n, want int64 }{{0, 4096, 4096}, {8192, 4096, 1808}, {9999, 5, 1}, {10000, 10, 0}, {1 << 40, 10, 0}, {0, 20000, 10000}} {
		buf := make([]byte, c.n)
		if n := r.read(s, c.off, buf); int64(n) != c.want || n > 0 && !bytes.Equal(buf[:n], data[c.off:][:n]) {
			t.Errorf("%d at %d: N %d, want %d, or wrong bytes", c.n, c.off, n, c.want)
		}
	}
	for _, code := range []aio.Code{aio.Write, aio.Flush} {
		op := &aio.Op{Code: code, Buf: make([]byte, 10)}
		if r.do(s, op); !errors.Is(op.Err, ErrReadOnly) {
			t.Errorf("%v: %v", code, op.Err)
		}
	}
	if err := s.Truncate(1); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	if err := s.Discard(0, 1); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestFromReaderAtReportsWhatReadersDo(t *testing.T) {
	r := newRig(t, aio.Threads)
	for _, c := range []struct {
		name string
		r    io.ReaderAt
		n    int
		want error
	}{
		{"nil", nil, 0, syscall.EINVAL},
		{"an errno", readFunc(func(p []byte, off int64) (int, error) { return 3, syscall.EIO }), 3, syscall.EIO},
		{"an early end", readFunc(func(p []byte, off int64) (int, error) { return 5, io.EOF }), 5, nil},
		{"EOF with everything", readFunc(func(p []byte, off int64) (int, error) { return len(p), io.EOF }), 100, nil},
		{"dribbles", readFunc(func(p []byte, off int64) (int, error) { return 1, nil }), 100, nil},
		{"nothing", readFunc(func(p []byte, off int64) (int, error) { return 0, nil }), 0, io.ErrNoProgress},
		{"too much", readFunc(func(p []byte, off int64) (int, error) { return len(p) + 1, nil }), 0, io.ErrUnexpectedEOF},
		{"less than nothing", readFunc(func(p []byte, off int64) (int, error) { return -1, nil }), 0, io.ErrUnexpectedEOF},
	} {
		op := &aio.Op{Code: aio.Read, Buf: make([]byte, 100)}
		r.do(FromReaderAt(c.r, 1000), op)
		if op.N != c.n || !errors.Is(op.Err, c.want) || c.want == nil && op.Err != nil {
			t.Errorf("%s: N %d, %v; want %d, %v", c.name, op.N, op.Err, c.n, c.want)
		}
	}
	op := &aio.Op{Code: aio.Read, Off: -1, Buf: make([]byte, 1)}
	if r.do(FromReaderAt(bytes.NewReader(nil), 10), op); !errors.Is(op.Err, syscall.EINVAL) {
		t.Errorf("negative offset: %v", op.Err)
	}
}

// Ten thousand reads of a source that does not answer take a bounded number of
// goroutines, Start returns at once, and all of them are served in the end.
func TestFromReaderAtIsBounded(t *testing.T) {
	const n = 10000
	var running, peak atomic.Int64
	gate := make(chan struct{})
	s := FromReaderAt(readFunc(func(p []byte, off int64) (int, error) {
		now := running.Add(1)
		for old := peak.Load(); now > old && !peak.CompareAndSwap(old, now); old = peak.Load() {
		}
		<-gate
		running.Add(-1)
		p[0] = byte(off)
		return len(p), nil
	}), n)
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	wg.Add(n)
	ops := make([]*aio.Op, n)
	for i := range ops {
		ops[i] = &aio.Op{Code: aio.Read, Off: int64(i), Buf: make([]byte, 1), Done: func(*aio.Op) { wg.Done() }}
	}
	s.Start(nil, ops)
	if now := runtime.NumGoroutine() - before; now > readers {
		t.Errorf("%d goroutines", now)
	}
	close(gate)
	wg.Wait()
	if p := peak.Load(); p > readers {
		t.Errorf("%d reads at once", p)
	}
	for i, op := range ops {
		if op.N != 1 || op.Buf[0] != byte(i) {
			t.Fatalf("op %d: N %d, byte %d", i, op.N, op.Buf[0])
		}
	}
}
