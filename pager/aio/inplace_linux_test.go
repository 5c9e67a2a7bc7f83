package aio

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eachInPlace runs f with engines that do things in place, and may do together
// (the ones over Linux AIO) several of them.
func eachInPlace(t *testing.T, f func(t *testing.T, e, below Engine, together bool)) {
	for _, kind := range []Kind{LinuxAIO, Threads} {
		t.Run(kind.String(), func(t *testing.T) {
			below := mustOpen(t, func(d int) (Engine, error) { return Open(Options{Kind: kind, Depth: d}) }, 8)
			e := InPlace(below)
			f(t, e, below, e.(*inPlace).k != nil)
			if err := e.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if n := below.InFlight(); n != 0 {
				t.Errorf("%d ops in flight below", n)
			}
		})
	}
}

// done submits ops and says which have ended when Submit returns.
func done(t *testing.T, e Engine, ops ...*Op) (n int) {
	t.Helper()
	for _, op := range ops {
		op.Done = func(*Op) { n++ }
	}
	e.Submit(ops)
	return n
}

func TestInPlaceIsDoneWhenSubmitReturns(t *testing.T) {
	const page = 4096
	eachInPlace(t, func(t *testing.T, e, below Engine, together bool) {
		fd := file(t, make([]byte, 16*page), true)
		content := pattern(16*page, 31)
		buf := buffer(t, len(content))
		copy(buf, content)
		write := func(i int) *Op { return &Op{Code: Write, FD: fd, Off: int64(i) * page, Buf: buf[i*page:][:page]} }
		for i, n := 0, 0; i < 16; i += n {
			n = min(1+i%(inPlaceMost+2), 16-i)
			var ops []*Op
			for k := range n {
				ops = append(ops, write(i+k))
			}
			got := done(t, e, ops...)
			if n == 1 || n <= inPlaceMost && together {
				if got != n {
					t.Errorf("%d of %d have ended", got, n)
				}
			} else if got != 0 {
				t.Errorf("%d ended in place of %d that cannot be done together", got, n)
			}
			reapUntil(t, below, func() bool { return below.InFlight() == 0 })
			for k, op := range ops {
				if op.Err != nil || op.N != page {
					t.Errorf("write %d: %d, %v", i+k, op.N, op.Err)
				}
			}
		}
		flush := &Op{Code: Flush, FD: fd, Err: unix.EIO, N: 3}
		if n := done(t, e, flush); n != 1 || flush.Err != nil || flush.N != 0 {
			t.Errorf("flush: done %d times, %d, %v", n, flush.N, flush.Err)
		}
		got := buffer(t, len(content))
		if _, err := unix.Pread(fd, got, 0); err != nil || !bytes.Equal(got, content) {
			t.Errorf("the file does not hold what was written (%v)", err)
		}
	})
}

// Whatever the kernel says of one op, the others end well, and each with what
// is its own. The first that io_submit refuses keeps it from those behind it.
func TestInPlaceErrorsAreTheOpsOwn(t *testing.T) {
	const page = 4096
	content := pattern(2*page, 32)
	for bad := range 3 {
		t.Run(fmt.Sprintf("op %d", bad), func(t *testing.T) {
			fd := file(t, content, true)
			eachInPlace(t, func(t *testing.T, e, below Engine, _ bool) {
				buf := buffer(t, 3*page)
				ops := []*Op{
					{FD: fd, Buf: buf[:page]},
					{FD: fd, Off: page, Buf: buf[page : 2*page]},
					{FD: fd, Off: 2 * page, Buf: buf[2*page:]}, // the end of the file
				}
				ops = append(ops[:bad], append([]*Op{{FD: -1, Buf: buf[:0]}}, ops[bad:]...)...)
				run(t, e, ops...)
				if !errors.Is(ops[bad].Err, unix.EBADF) {
					t.Errorf("a descriptor of -1: %v", ops[bad].Err)
				}
				for i, op := range append(ops[:bad:bad], ops[bad+1:]...) {
					if want := page; op.Err != nil || i < 2 && op.N != want || i == 2 && op.N != 0 {
						t.Errorf("op %d: %d, %v", i, op.N, op.Err)
					}
				}
				if !bytes.Equal(buf[:2*page], content) {
					t.Error("other bytes than the file's")
				}
			})
		})
	}
}

// Linux AIO does not wait for what is not in the page cache when it is asked not
// to: then it is read once more, waiting.
func TestInPlaceBuffered(t *testing.T) {
	const page = 4096
	content := pattern(64*page, 33)
	fd := file(t, content, false)
	eachInPlace(t, func(t *testing.T, e, below Engine, _ bool) {
		if err := errors.Join(unix.Fsync(fd), unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED), unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM)); err != nil {
			t.Fatal(err)
		}
		buf := buffer(t, len(content))
		for i := 0; i < 64; i += 2 {
			run(t, e,
				&Op{FD: fd, Off: int64(i) * page, Buf: buf[i*page:][:page], Buffered: true},
				&Op{FD: fd, Off: int64(i+1) * page, Buf: buf[(i+1)*page:][:page], Buffered: true})
		}
		if !bytes.Equal(buf, content) {
			t.Error("other bytes than the file's")
		}
	})
}

// Several at once, of several goroutines: one of them does his in place, the
// others' go below; nothing is mixed up, and the race detector watches.
func TestInPlaceFromManyGoroutines(t *testing.T) {
	const page, workers, rounds = 4096, 4, 100
	content := pattern(2*workers*page, 34)
	fd := file(t, content, true)
	eachInPlace(t, func(t *testing.T, e, below Engine, _ bool) {
		var wg sync.WaitGroup
		for w := range workers {
			buf := buffer(t, 2*page)
			wg.Go(func() {
				for range rounds {
					clear(buf)
					var left sync.WaitGroup
					left.Add(2)
					off := int64(2*w) * page
					ops := []*Op{{FD: fd, Off: off, Buf: buf[:page]}, {FD: fd, Off: off + page, Buf: buf[page:]}}
					for _, op := range ops {
						op.Done = func(*Op) { left.Done() }
					}
					e.Submit(ops)
					left.Wait()
					if !bytes.Equal(buf, content[off:][:2*page]) {
						t.Error("other bytes than the file's")
						return
					}
				}
			})
		}
		over := make(chan struct{})
		go func() { wg.Wait(); close(over) }()
		for end := time.Now().Add(deadline); ; runtime.Gosched() {
			below.Reap(8)
			select {
			case <-over:
				return
			default:
			}
			if time.Now().After(end) {
				t.Fatalf("%d in flight", below.InFlight())
			}
		}
	})
}

// After Close ops end as the engine below says, as long as that is open and
// after.
func TestInPlaceClosed(t *testing.T) {
	fd := file(t, pattern(4096, 35), true)
	eachInPlace(t, func(t *testing.T, e, below Engine, _ bool) {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		buf := buffer(t, 8192)
		ops := []*Op{{FD: fd, Buf: buf[:4096]}, {FD: fd, Buf: buf[4096:]}}
		run(t, e, ops...)
		run(t, e, ops[0])
		if ops[0].Err != nil || ops[1].Err != nil {
			t.Errorf("closed, and below is not: %v, %v", ops[0].Err, ops[1].Err)
		}
		below.Close()
		done(t, e, ops...)
		for _, op := range ops {
			if op.Err != ErrClosed {
				t.Errorf("both closed: %v", op.Err)
			}
		}
	})
}
