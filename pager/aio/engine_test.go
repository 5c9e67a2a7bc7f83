//go:build linux

package aio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func isUnsupported(err error) bool { return errors.Is(err, errors.ErrUnsupported) }

func TestReadsWhatIsInTheFile(t *testing.T) {
	const page, pages = 4096, 64
	content := pattern(page*pages, 1)
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct=%v", direct), func(t *testing.T) {
			fd := file(t, content, direct)
			eachEngine(t, 16, func(t *testing.T, e Engine) {
				buf := buffer(t, len(content))
				var ops []*Op
				for i := range pages {
					ops = append(ops, &Op{FD: fd, Off: int64(i) * page, Buf: buf[i*page:][:page]})
				}
				run(t, e, ops...)
				for i, op := range ops {
					if op.Err != nil || op.N != page {
						t.Fatalf("page %d: %d bytes, %v", i, op.N, op.Err)
					}
				}
				if !bytes.Equal(buf, content) {
					t.Error("other bytes than the file's")
				}
			})
		})
	}
}

func TestWriteThenFlushIsInTheFile(t *testing.T) {
	eachEngine(t, 8, func(t *testing.T, e Engine) {
		fd := file(t, make([]byte, 8192), true)
		buf := buffer(t, 8192)
		copy(buf, pattern(8192, 2))
		run(t, e, &Op{Code: Write, FD: fd, Off: 4096, Buf: buf[4096:]}, &Op{Code: Write, FD: fd, Buf: buf[:4096]})
		flush := &Op{Code: Flush, FD: fd}
		run(t, e, flush)
		if flush.Err != nil || flush.N != 0 {
			t.Errorf("Flush: %d, %v", flush.N, flush.Err)
		}
		got := buffer(t, 8192)
		if _, err := unix.Pread(fd, got, 0); err != nil || !bytes.Equal(got, buf) {
			t.Errorf("the file does not hold what was written (%v)", err)
		}
	})
}

// A file's end within, at and before the range, with lengths that O_DIRECT can
// and cannot continue from.
func TestEndOfFileIsShortWithoutError(t *testing.T) {
	eachEngine(t, 4, func(t *testing.T, e Engine) {
		for _, direct := range []bool{false, true} {
			for _, size := range []int{0, 1, 511, 512, 4095, 4096, 4097, 5000, 6144, 8191} {
				t.Run(fmt.Sprintf("direct=%v/size=%d", direct, size), func(t *testing.T) {
					content := pattern(size, 3)
					fd := file(t, content, direct)
					buf := buffer(t, 16384)
					whole := &Op{FD: fd, Buf: buf[:8192], Buffered: !direct}
					past := &Op{FD: fd, Off: 8192, Buf: buf[8192:], Buffered: !direct}
					run(t, e, whole, past)
					if whole.Err != nil || whole.N != size || !bytes.Equal(buf[:size], content) {
						t.Errorf("read of 8192 bytes: %d, %v", whole.N, whole.Err)
					}
					if past.Err != nil || past.N != 0 {
						t.Errorf("read past the end: %d, %v", past.N, past.Err)
					}
				})
			}
		}
	})
}

func TestEmptyTransfer(t *testing.T) {
	fd := file(t, pattern(4096, 4), false)
	eachEngine(t, 4, func(t *testing.T, e Engine) {
		for _, op := range []*Op{{FD: fd}, {Code: Write, FD: fd}, {FD: fd, Off: 1 << 40}, {FD: fd, Buf: buffer(t, 0)}} {
			run(t, e, op)
			if op.N != 0 || op.Err != nil {
				t.Errorf("%v of nothing: %d, %v", op.Code, op.N, op.Err)
			}
		}
		e.Submit(nil)
		if n := e.Reap(8); n != 0 {
			t.Errorf("Reap ran %d ops of none", n)
		}
	})
}

// Errors are those of the system call, whether the kernel refuses the op at
// once or fails it later, and leave its neighbours alone.
func TestErrorsAreTheOpsOwn(t *testing.T) {
	content := pattern(4096, 5)
	fd := file(t, content, true)
	readOnly, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(readOnly)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)

	eachEngine(t, 4, func(t *testing.T, e Engine) {
		buf := buffer(t, 4096*4)
		hole := buffer(t, 4096)
		if err := unix.Mprotect(hole, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
		bad := []struct {
			op   *Op
			want unix.Errno
		}{
			{&Op{FD: -1, Buf: buf[:4096]}, unix.EBADF},
			{&Op{FD: 1 << 20, Buf: buf[:4096]}, unix.EBADF},
			{&Op{Code: Flush, FD: -1}, unix.EBADF},
			{&Op{Code: Write, FD: readOnly, Buf: buf[:4096]}, unix.EBADF},
			{&Op{FD: fd, Off: -4096, Buf: buf[:4096]}, unix.EINVAL},
			{&Op{FD: fd, Off: -1, Buf: buf[:4096]}, unix.EINVAL}, // not the file's position
			{&Op{FD: fd, Buf: hole}, unix.EFAULT},
			{&Op{FD: dir, Buf: buf[:4096]}, unix.EISDIR},
			{&Op{Code: Flush, FD: pipe[0]}, unix.EINVAL},
		}
		var ops, good []*Op
		for i, b := range bad {
			ops = append(ops, b.op)
			if i < 4 { // as many as there are slots
				g := &Op{FD: fd, Buf: buf[i*4096:][:4096]}
				good, ops = append(good, g), append(ops, g)
			}
		}
		run(t, e, ops...)
		for _, b := range bad {
			if errno, ok := b.op.Err.(unix.Errno); !ok || errno != b.want {
				t.Errorf("%v fd %d off %d: %v, want %v", b.op.Code, b.op.FD, b.op.Off, b.op.Err, b.want)
			}
		}
		for i, g := range good {
			if g.Err != nil || g.N != 4096 || !bytes.Equal(g.Buf, content) {
				t.Errorf("neighbour %d: %d, %v", i, g.N, g.Err)
			}
		}
	})
}

func TestMoreOpsThanSlots(t *testing.T) {
	const n, size = 1000, 512
	content := pattern(n*size, 6)
	fd := file(t, content, true)
	for _, depth := range []int{1, 4} {
		t.Run(fmt.Sprint("depth=", depth), func(t *testing.T) {
			eachEngine(t, depth, func(t *testing.T, e Engine) {
				buf := buffer(t, len(content))
				ops := make([]*Op, n)
				for i := range ops {
					ops[i] = &Op{FD: fd, Off: int64(i * size), Buf: buf[i*size:][:size]}
				}
				run(t, e, ops...)
				if !bytes.Equal(buf, content) {
					t.Error("other bytes than the file's")
				}
			})
		})
	}
}

func TestTmpfs(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "aio")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	content := pattern(10000, 7)
	fd := fileIn(t, dir, content, false)
	eachEngine(t, 4, func(t *testing.T, e Engine) {
		buf := buffer(t, 12288)
		op, flush := &Op{FD: fd, Buf: buf}, &Op{Code: Flush, FD: fd}
		run(t, e, op, flush)
		if op.N != len(content) || op.Err != nil || !bytes.Equal(buf[:op.N], content) || flush.Err != nil {
			t.Errorf("%d bytes, %v, %v", op.N, op.Err, flush.Err)
		}
	})
}

// What is not in the page cache is still read, and by a thread where Linux AIO
// would have waited for it inside Submit.
func TestBufferedFileOutsideThePageCache(t *testing.T) {
	const page, pages = 4096, 256
	content := pattern(page*pages, 17)
	fd := file(t, content, false)
	eachEngine(t, 64, func(t *testing.T, e Engine) {
		if err := unix.Fsync(fd); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM)
		buf := buffer(t, len(content))
		var ops []*Op
		for i := range pages {
			ops = append(ops, &Op{FD: fd, Off: int64(i) * page, Buf: buf[i*page:][:page], Buffered: true})
		}
		ops = append(ops, &Op{Code: Flush, FD: fd, Buffered: true}, &Op{FD: fd, Off: pages * page, Buf: buf[:1], Buffered: true})
		run(t, e, ops...)
		for i, op := range ops {
			if op.Err != nil || i < pages && op.N != page || i >= pages && op.N != 0 {
				t.Fatalf("op %d: %d, %v", i, op.N, op.Err)
			}
		}
		if !bytes.Equal(buf, content) {
			t.Error("other bytes than the file's")
		}
		t.Logf("threads helped: %v", e.(*engine).helper != nil)
	})
}

func TestDoneMaySubmitAndReuseItsOp(t *testing.T) {
	content := pattern(65536, 8)
	fd := file(t, content, true)
	eachEngine(t, 2, func(t *testing.T, e Engine) {
		buf := buffer(t, 4096)
		rounds := 0
		op := &Op{FD: fd, Buf: buf}
		list := []*Op{op}
		op.Done = func(op *Op) {
			if op.Err != nil || op.N != 4096 || !bytes.Equal(buf, content[op.Off:][:4096]) {
				t.Errorf("round %d: %d, %v, or other bytes", rounds, op.N, op.Err)
			}
			if rounds++; rounds < 100 {
				op.Off, op.Err = int64(rounds%16)*4096, unix.EIO // the caller's own
				e.Submit(list)
			}
		}
		e.Submit(list)
		reapUntil(t, e, func() bool { return rounds == 100 })
	})
}

func TestReapStopsAtMax(t *testing.T) {
	fd := file(t, pattern(4096, 9), false)
	eachEngine(t, 64, func(t *testing.T, e Engine) {
		var done int
		var ops []*Op
		buf := buffer(t, 4096)
		for range 40 {
			ops = append(ops, &Op{FD: fd, Buf: buf, Done: func(*Op) { done++ }})
		}
		e.Submit(ops)
		for _, max := range []int{0, -1, 1, 3, 20} {
			before := done
			reaped := 0
			for max > 0 && reaped == 0 {
				reaped = e.Reap(max)
			}
			if max <= 0 {
				reaped = e.Reap(max)
			}
			if reaped > max && reaped > 0 || done-before != reaped {
				t.Errorf("Reap(%d) says %d and ran %d", max, reaped, done-before)
			}
		}
		reapUntil(t, e, func() bool { return done == len(ops) })
	})
}

// Many goroutines submit and reap at once, one waits; the race detector watches.
func TestManySubmitters(t *testing.T) {
	const workers, rounds, size = 8, 200, 512
	content := pattern(64*size, 10)
	fd := file(t, content, true)
	eachEngine(t, 4, func(t *testing.T, e Engine) {
		stop := make(chan struct{})
		reaper := make(chan struct{})
		go func() {
			defer close(reaper)
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			defer cancel()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if e.Reap(8) == 0 && e.Wait(ctx) != nil {
					return
				}
			}
		}()
		var wg sync.WaitGroup
		for w := range workers {
			wg.Add(1)
			buf := buffer(t, 4*size)
			go func() {
				defer wg.Done()
				done := make(chan *Op, 4)
				for r := range rounds {
					var ops []*Op
					for i := range 1 + r%4 {
						ops = append(ops, &Op{FD: fd, Off: int64((w*31+r*7+i)%64) * size, Buf: buf[i*size:][:size], Done: func(op *Op) { done <- op }})
					}
					e.Submit(ops)
					if w == 0 {
						e.Reap(1) // beside the reaper
					}
					for range ops {
						select {
						case op := <-done:
							if op.Err != nil || !bytes.Equal(op.Buf, content[op.Off:][:size]) {
								t.Errorf("offset %d: %v or wrong bytes", op.Off, op.Err)
							}
						case <-time.After(deadline):
							t.Errorf("an op got lost; %d in flight", e.InFlight())
							return
						}
					}
				}
			}()
		}
		wg.Wait()
		close(stop)
		e.Submit([]*Op{{FD: fd, Done: func(*Op) {}}}) // ends the last Wait
		<-reaper
	})
}

func TestCloseFinishesEveryOpOnce(t *testing.T) {
	const n, size = 500, 4096
	fd := file(t, pattern(64*size, 11), true)
	for _, k := range engines {
		t.Run(k.name, func(t *testing.T) {
			e := mustOpen(t, k.open, 8)
			buf := buffer(t, n*size)
			var count [n]atomic.Int32
			var whole, refused atomic.Int32
			ops := make([]*Op, n)
			for i := range ops {
				ops[i] = &Op{FD: fd, Off: int64(i%64) * size, Buf: buf[i*size:][:size], Done: func(op *Op) {
					count[i].Add(1)
					switch {
					case op.Err == nil && op.N == size:
						whole.Add(1)
					case op.Err == ErrClosed:
						refused.Add(1)
					default:
						t.Errorf("op %d: %d, %v", i, op.N, op.Err)
					}
				}}
			}
			// Half are in before Close, half meet it, while others reap,
			// wait and close.
			e.Submit(ops[:n/2])
			var wg sync.WaitGroup
			for _, f := range []func(){
				func() {
					for _, op := range ops[n/2:] {
						e.Submit([]*Op{op})
					}
				},
				func() {
					for e.Wait(context.Background()) == nil {
						e.Reap(3)
					}
				},
				func() { e.Close() },
				func() { e.Close() },
			} {
				wg.Add(1)
				go func() {
					defer wg.Done()
					f()
				}()
			}
			wg.Wait()
			for i := range count {
				if c := count[i].Load(); c != 1 {
					t.Fatalf("op %d: Done ran %d times", i, c)
				}
			}
			if whole.Load()+refused.Load() != n || e.InFlight() != 0 {
				t.Errorf("%d whole, %d closed, %d in flight", whole.Load(), refused.Load(), e.InFlight())
			}
			if err := e.Wait(context.Background()); err != ErrClosed {
				t.Errorf("Wait after Close: %v", err)
			}
			if e.Reap(8) != 0 || e.Close() != nil {
				t.Error("Reap or Close after Close did something")
			}
			late := &Op{FD: fd, Buf: buf[:size]}
			ran := 0
			late.Done = func(*Op) { ran++ }
			e.Submit([]*Op{late})
			if ran != 1 || late.Err != ErrClosed {
				t.Errorf("op after Close: Done ran %d times, %v", ran, late.Err)
			}
		})
	}
}

func TestWaitEnds(t *testing.T) {
	fd := file(t, pattern(4096, 12), false)
	eachEngine(t, 4, func(t *testing.T, e Engine) {
		wait := func(ctx context.Context) chan error {
			c := make(chan error, 1)
			go func() { c <- e.Wait(ctx) }()
			time.Sleep(10 * time.Millisecond) // most likely it is parked by now
			return c
		}
		get := func(c chan error) error {
			select {
			case err := <-c:
				return err
			case <-time.After(deadline):
				t.Fatal("Wait does not end")
				return nil
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		c := wait(ctx)
		cancel()
		if err := get(c); err != context.Canceled {
			t.Errorf("cancelled: %v", err)
		}
		if err := get(wait(ctx)); err != context.Canceled {
			t.Errorf("cancelled before: %v", err)
		}
		ctx, cancel = context.WithCancel(context.Background())
		c = wait(ctx)
		cancel()
		if err := get(c); err != context.Canceled {
			t.Errorf("another one cancelled: %v", err)
		}
		// Behind another one that goes on.
		first := wait(context.Background())
		ctx, cancel = context.WithCancel(context.Background())
		c = wait(ctx)
		cancel()
		if err := get(c); err != context.Canceled {
			t.Errorf("cancelled behind another: %v", err)
		}
		// A cancelled context leaves nothing behind for the next one.
		c = first
		e.Submit([]*Op{{FD: fd, Buf: buffer(t, 4096), Done: func(*Op) {}}})
		if err := get(c); err != nil {
			t.Errorf("with a completion: %v", err)
		}
		reapUntil(t, e, func() bool { return e.InFlight() == 0 })
		c = wait(context.Background())
		e.Submit([]*Op{{FD: -1, Done: func(*Op) {}}})
		if err := get(c); err != nil {
			t.Errorf("with a refused op: %v", err)
		}
		reapUntil(t, e, func() bool { return e.InFlight() == 0 })
		c = wait(context.Background())
		e.Close()
		if err := get(c); err != nil && err != ErrClosed {
			t.Errorf("closed: %v", err)
		}
	})
}
