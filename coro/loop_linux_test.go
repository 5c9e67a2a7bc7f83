package coro

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoopRunsCoroutinesInTurn(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	var trace []string
	for _, name := range []string{"a", "b", "c"} {
		loop.Go(func(t *Task) error {
			for i := range 3 {
				trace = append(trace, fmt.Sprint(name, i))
				if err := t.Yield(); err != nil {
					return err
				}
			}
			if name == "b" {
				t.Go(func(*Task) error { trace = append(trace, "child"); return nil })
			}
			return nil
		})
	}
	loop.Post(func() { trace = append(trace, "posted") })
	if err := loop.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	want := "posted a0 b0 c0 a1 b1 c1 a2 b2 c2 child"
	if got := strings.Join(trace, " "); got != want {
		t.Errorf("ran %s\nwant %s", got, want)
	}
}

func TestLoopResumesTheCoroutineWhoseEventfdFired(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	var trace []string
	var fds [3]int
	for i := range fds {
		fds[i] = efdNew(t, 0)
		loop.Go(func(task *Task) error {
			v, err := task.Await(fds[i])
			trace = append(trace, fmt.Sprintf("%d:%d", i, v))
			if i > 0 {
				efdSignal(t, fds[(i+2)%3], v+1)
			}
			return err
		})
	}
	loop.Go(func(*Task) error { efdSignal(t, fds[2], 10); return nil })
	if err := loop.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(trace, " "); got != "2:10 1:11 0:12" {
		t.Errorf("resumed %s, want 2:10 1:11 0:12", got)
	}
}

// Ten thousand coroutines, each with an eventfd of its own that other
// goroutines signal; what they share they touch without a lock (-race looks).
func TestLoopOfTenThousand(t *testing.T) {
	efdDeadline(t)
	n, rounds := 10000, 3
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if limit.Cur < uint64(n)+500 {
		n = int(limit.Cur) - 500
		t.Logf("only %d descriptors to be had", n)
	}
	fds := make([]int, n)
	for i := range fds {
		fds[i] = efdNew(t, 0)
	}
	threads, goroutines, descriptors := efdThreads(t), runtime.NumGoroutine(), efdDescriptors(t)

	loop := NewLoop()
	var sum, running, waits uint64
	answered := make(chan int, n)
	for i, fd := range fds {
		loop.Go(func(t *Task) error {
			for range rounds {
				answered <- i
				v, err := t.Await(fd)
				if err != nil {
					return err
				}
				if running++; running != 1 {
					return errors.New("two coroutines at a time")
				}
				sum, waits = sum+v, waits+1
				running--
			}
			return nil
		})
	}
	var signals sync.WaitGroup
	for range 4 {
		signals.Go(func() {
			for i := range answered {
				efdSignal(t, fds[i], uint64(i+1))
			}
		})
	}
	loop.Post(func() {
		if n := efdThreads(t) - threads; n > 12 {
			t.Errorf("the loop has brought %d threads", n)
		}
	})
	if err := loop.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	close(answered)
	signals.Wait()
	want := uint64(rounds) * uint64(n) * uint64(n+1) / 2
	if sum != want || waits != uint64(n*rounds) {
		t.Errorf("%d waits took %d, want %d and %d", waits, sum, n*rounds, want)
	}
	efdUntil(func() bool { return runtime.NumGoroutine() <= goroutines })
	if d := efdDescriptors(t) - descriptors; d != 0 {
		t.Errorf("%d descriptors are left", d)
	}
}

func TestLoopTakesWorkFromOtherGoroutinesWhileItRuns(t *testing.T) {
	efdDeadline(t)
	const senders, each = 8, 2000
	loop := NewLoop()
	served := make(chan error, 1)
	go func() { served <- loop.Serve(context.Background()) }()
	var ran [senders][]int // the loop's goroutine only
	var began int
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				var err error
				if i%2 == 0 {
					err = loop.Post(func() { ran[s] = append(ran[s], i) })
				} else {
					err = loop.Go(func(t *Task) error { began++; return t.Yield() })
				}
				if err != nil {
					t.Errorf("sender %d: %v", s, err)
				}
				if i%100 == 0 {
					runtime.Gosched() // lets the loop fall asleep now and then
				}
			}
		})
	}
	wg.Wait()
	loop.Close()
	loop.Close()
	if err := <-served; err != nil {
		t.Errorf("Serve = %v", err)
	}
	for s := range ran {
		if len(ran[s]) != each/2 || !slices.IsSorted(ran[s]) {
			t.Errorf("sender %d: %d posts ran, in order: %t", s, len(ran[s]), slices.IsSorted(ran[s]))
		}
	}
	if began != senders*each/2 {
		t.Errorf("%d coroutines ran, want %d", began, senders*each/2)
	}
	if err := loop.Go(func(*Task) error { return nil }); err != ErrLoopClosed {
		t.Errorf("Go after the end: %v", err)
	}
	if err := loop.Post(func() {}); err != ErrLoopClosed {
		t.Errorf("Post after the end: %v", err)
	}
	if err := loop.Run(context.Background()); err != ErrLoopClosed {
		t.Errorf("second run: %v", err)
	}
}

// What Go or Post accepted in the very moment in which the loop runs dry is
// still run.
func TestLoopRunsWhatItAccepted(t *testing.T) {
	efdDeadline(t)
	var accepted, ran atomic.Int64
	for range 300 {
		loop := NewLoop()
		loop.Go(func(t *Task) error { return t.Yield() })
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for loop.Post(func() { ran.Add(1) }) == nil && accepted.Add(1)%20 != 0 {
				}
			})
		}
		if err := loop.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if accepted.Load() != ran.Load() {
			t.Fatalf("accepted %d, ran %d", accepted.Load(), ran.Load())
		}
	}
}

// Mail that comes while the loop is falling asleep wakes it.
func TestLoopNeverSleepsOverMail(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	done := make(chan error)
	go func() { done <- loop.Serve(context.Background()) }()
	var read atomic.Int64
	for i := range int64(50000) {
		loop.Post(func() { read.Store(i + 1) })
		for spins := 0; read.Load() <= i; spins++ { // busy, to be back while the loop is still on its way to sleep
			if spins > 100 {
				runtime.Gosched()
			}
		}
	}
	loop.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A coroutine that never waits keeps nobody from noticing an eventfd or mail.
func TestLoopWithASpinnerStillServesOthers(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	fd := efdNew(t, 0)
	woken, posted := false, false
	loop.Go(func(t *Task) error {
		for !woken || !posted {
			if err := t.Yield(); err != nil {
				return err
			}
		}
		return nil
	})
	loop.Go(func(t *Task) error { _, err := t.Await(fd); woken = true; return err })
	go func() {
		efdSignal(t, fd, 1)
		loop.Post(func() { posted = true })
	}()
	if err := loop.Run(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestAwaitInALoopRefusesWhatIsNoEventfd(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	loop.Go(func(task *Task) error {
		if _, err := task.Await(-1); !errors.Is(err, unix.EBADF) {
			t.Errorf("Await(-1) = %v", err)
		}
		fd := efdNew(t, 0)
		old, err := unix.Dup(fd)
		if err != nil {
			return err
		}
		defer unix.Close(old)
		task.Go(func(*Task) error {
			if err := unix.Dup3(efdNew(t, 0), fd, unix.O_CLOEXEC); err != nil {
				return err
			}
			efdSignal(t, fd, 77)
			efdSignal(t, old, 1)
			return nil
		})
		if v, err := task.Await(fd); !errors.Is(err, unix.EBADF) {
			t.Errorf("closed while waiting: %d, %v", v, err)
		}
		if left := efdLeft(t, fd); left != 77 {
			t.Errorf("the eventfd that got the number counts %d, want 77", left)
		}
		return nil
	})
	if err := loop.Run(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestLoopOnALockedThread(t *testing.T) {
	efdDeadline(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	loop := NewLoop()
	fd := efdNew(t, 0)
	began := make(chan struct{})
	go func() { // the maker of a coroutine is not the one that runs it
		loop.Go(func(t *Task) error { close(began); _, err := t.Await(fd); return err })
		<-began
		loop.Go(func(task *Task) error { efdSignal(t, fd, 1); loop.Close(); return nil })
	}()
	tid := unix.Gettid()
	loop.Post(func() {
		if unix.Gettid() != tid {
			t.Error("the loop has left its thread")
		}
	})
	if err := loop.Serve(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestTaskOfAnotherCoroutineIsRefused(t *testing.T) {
	efdDeadline(t)
	fd := efdNew(t, 0)
	for name, use := range map[string]func(*Task){
		"Await": func(t *Task) { t.Await(fd) },
		"Yield": func(t *Task) { t.Yield() },
		"Go":    func(t *Task) { t.Go(nil) },
	} {
		loop := NewLoop()
		var first *Task
		loop.Go(func(t *Task) error { first = t; t.Await(fd); return nil })
		loop.Go(func(t *Task) error { use(first); return nil })
		var p *PanicError
		if err := loop.Run(context.Background()); !errors.As(err, &p) || !strings.Contains(err.Error(), "outside its coroutine") {
			t.Errorf("%s: Run = %v", name, err)
		}
	}
}

// The collector sees what only the stack of a waiting coroutine holds.
func TestLoopCoroutinesSurviveTheCollector(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	fd := efdNew(t, unix.EFD_SEMAPHORE)
	const n = 1000
	intact := 0
	for i := range n {
		loop.Go(func(t *Task) error {
			p := &[64]int{i, 63: i}
			if _, err := t.Await(fd); err != nil {
				return err
			}
			if p[0] == i && p[63] == i {
				intact++
			}
			return nil
		})
	}
	loop.Go(func(*Task) error {
		runtime.GC()
		garbage := make([]*[64]int, n)
		for i := range garbage {
			garbage[i] = &[64]int{-1, 63: -1}
		}
		runtime.GC()
		runtime.KeepAlive(garbage)
		efdSignal(t, fd, n)
		return nil
	})
	if err := loop.Run(context.Background()); err != nil || intact != n {
		t.Errorf("Run = %v, %d of %d intact", err, intact, n)
	}
}
