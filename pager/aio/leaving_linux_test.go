package aio

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who stays has his ops done when Submit returns, flushes as well.
func TestLeavingIsDoneForWhoStays(t *testing.T) {
	const page = 4096
	eachInPlace(t, func(t *testing.T, e, below Engine, together bool) {
		if !together {
			t.Skip("nothing can be left but what Linux AIO does")
		}
		fd := file(t, make([]byte, 4*page), true)
		content := pattern(4*page, 7)
		buf := buffer(t, len(content))
		copy(buf, content)
		l := Leaving(e, make(chan struct{}))
		var ops []*Op
		for i := range inPlaceMost {
			ops = append(ops, &Op{Code: Write, FD: fd, Off: int64(i) * page, Buf: buf[i*page:][:page]})
		}
		if n := done(t, l, ops...); n != len(ops) {
			t.Errorf("%d of %d writes have ended", n, len(ops))
		}
		flush := &Op{Code: Flush, FD: fd}
		if n := done(t, l, flush); n != 1 || flush.Err != nil {
			t.Errorf("the flush has not ended: %v", flush.Err)
		}
		got := make([]byte, len(content))
		if _, err := unix.Pread(fd, got, 0); err != nil || !bytes.Equal(got, content) {
			t.Errorf("the file has something else: %v", err)
		}
	})
}

// What is left under way ends all the same, once, and Close waits for it; meanwhile
// others go below.
func TestWhatIsLeftEnds(t *testing.T) {
	const page, rounds = 4096, 300
	defer func(d time.Duration) { leaveLook = d }(leaveLook)
	leaveLook = 0 // nobody waits at all
	gone := make(chan struct{})
	close(gone)
	for _, kind := range []Kind{LinuxAIO, Threads} {
		t.Run(kind.String(), func(t *testing.T) {
			below := mustOpen(t, func(d int) (Engine, error) { return Open(Options{Kind: kind, Depth: d}) }, 64)
			e := InPlace(below)
			fd := file(t, make([]byte, 2*rounds*page), true)
			content := pattern(2*rounds*page, 3)
			buf := buffer(t, len(content))
			copy(buf, content)
			l := Leaving(e, gone)
			var all sync.WaitGroup
			var ended, late atomic.Int64
			for i := range rounds {
				ops := []*Op{
					{Code: Write, FD: fd, Off: int64(2*i) * page, Buf: buf[2*i*page:][:page]},
					{Code: Write, FD: fd, Off: int64(2*i+1) * page, Buf: buf[(2*i+1)*page:][:page]},
					{Code: Flush, FD: fd},
				}
				all.Add(len(ops))
				before := ended.Load()
				for _, op := range ops {
					op.Done = func(op *Op) {
						if op.Err != nil || op.N != len(op.Buf) {
							t.Errorf("%v: %d bytes, %v", op.Code, op.N, op.Err)
						}
						ended.Add(1)
						all.Done()
					}
				}
				l.Submit(ops)
				if ended.Load()-before < int64(len(ops)) {
					late.Add(1)
				}
				for below.InFlight() > 0 {
					if below.Reap(8) == 0 {
						time.Sleep(10 * time.Microsecond)
					}
				}
			}
			if err := e.Close(); err != nil { // waits for what was left
				t.Error(err)
			}
			reaped := make(chan struct{})
			go func() { all.Wait(); close(reaped) }()
			for over := false; !over; {
				select {
				case <-reaped:
					over = true
				default:
					below.Reap(8)
					time.Sleep(10 * time.Microsecond)
				}
			}
			if n := ended.Load(); n != 3*rounds {
				t.Errorf("%d ops have ended, of %d", n, 3*rounds)
			}
			if kind == LinuxAIO && late.Load() == 0 {
				t.Error("nothing was left: nothing was tested")
			}
			got := make([]byte, len(content))
			if _, err := unix.Pread(fd, got, 0); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the file has something else: %v", err)
			}
		})
	}
}
