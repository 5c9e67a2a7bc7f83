package aio

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// begin begins ops and says how many have ended when End returns.
func begin(t *testing.T, b *Begun, gone <-chan struct{}, ops ...*Op) (n int) {
	t.Helper()
	if done(t, b, ops...) != 0 {
		t.Error("some have ended that were only begun")
	}
	for _, op := range ops {
		op.Done = func(*Op) { n++ }
	}
	b.End(gone)
	b.End(gone)
	return n
}

// Who stays has his ops done when End returns, flushes as well; so has who may go, if
// he does not.
func TestBegunIsDoneForWhoStays(t *testing.T) {
	const page = 4096
	eachInPlace(t, func(t *testing.T, e, below Engine, together bool) {
		if !together {
			t.Skip("nothing can be begun in place but what Linux AIO does")
		}
		fd := file(t, make([]byte, 4*page), true)
		content := pattern(4*page, 7)
		buf := buffer(t, len(content))
		for turn, gone := range []chan struct{}{nil, make(chan struct{})} {
			copy(buf, content[turn:])
			var ops []*Op
			for i := range inPlaceMost {
				ops = append(ops, &Op{Code: Write, FD: fd, Off: int64(i) * page, Buf: buf[i*page:][:page]})
			}
			b := Begin(e)
			b.Submit(nil)
			if n := begin(t, b, gone, ops...); n != len(ops) {
				t.Errorf("%d of %d writes have ended", n, len(ops))
			}
			flush := &Op{Code: Flush, FD: fd}
			if n := begin(t, Begin(e), gone, flush); n != 1 || flush.Err != nil {
				t.Errorf("the flush has not ended: %v", flush.Err)
			}
			got := make([]byte, len(content))
			if _, err := unix.Pread(fd, got, 0); err != nil || !bytes.Equal(got, buf) {
				t.Errorf("the file has something else: %v", err)
			}
			// A store may be late.
			if n := done(t, b, ops[0]); n != 0 || below.InFlight() != 1 {
				t.Errorf("what comes after End: %d have ended, %d in flight below", n, below.InFlight())
			}
			reapUntil(t, below, func() bool { return below.InFlight() == 0 })
		}
	})
}

// Ops may be begun one after the other. What there is no room for goes below, and so
// does what others submit meanwhile, if it is several at once.
func TestBegunInParts(t *testing.T) {
	const page = 4096
	eachInPlace(t, func(t *testing.T, e, below Engine, together bool) {
		content := pattern(8*page, 8)
		fd := file(t, content, true)
		buf := buffer(t, len(content))
		var ended atomic.Int32
		read := func(i int) *Op {
			return &Op{FD: fd, Off: int64(i) * page, Buf: buf[i*page:][:page], Done: func(op *Op) {
				if op.Err != nil || op.N != page {
					t.Errorf("read %d: %d, %v", i, op.N, op.Err)
				}
				ended.Add(1)
			}}
		}
		b := Begin(e)
		b.Submit([]*Op{read(0)})
		b.Submit([]*Op{read(1), read(2)})
		b.Submit([]*Op{read(3), read(4)})
		b.Submit([]*Op{read(5)})
		e.Submit([]*Op{read(6), read(7)})
		if n := below.InFlight(); together && n != 4 {
			t.Errorf("%d in flight below, want 4", n)
		}
		b.End(nil)
		if n := ended.Load(); together && n != 4 {
			t.Errorf("%d have ended in place, want 4", n)
		}
		reapUntil(t, below, func() bool { return ended.Load() == 8 })
		if !bytes.Equal(buf, content) {
			t.Error("other bytes than the file's")
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
				b := Begin(e)
				b.Submit(ops)
				b.End(gone)
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
