package coro

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
)

func TestLoopContextEndsEveryWait(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	ctx, cancel := context.WithCancel(context.Background())
	fd := efdNew(t, 0)
	cleaned := 0
	for range 100 {
		loop.Go(func(task *Task) error {
			defer func() { cleaned++ }()
			if _, err := task.Await(fd); err != context.Canceled {
				t.Errorf("Await = %v", err)
			}
			if err := task.Yield(); err != context.Canceled {
				t.Errorf("Yield = %v", err)
			}
			if _, err := task.Await(fd); err != context.Canceled {
				t.Errorf("second Await = %v", err)
			}
			if _, err := task.AwaitContext(context.Background(), fd); err != context.Canceled {
				t.Errorf("AwaitContext = %v", err)
			}
			if err := loop.Go(func(*Task) error { return nil }); err != ErrLoopClosed {
				t.Errorf("Loop.Go while it drains = %v", err)
			}
			task.Go(func(*Task) error { cleaned++; return nil })
			return nil
		})
	}
	loop.Go(func(*Task) error { go cancel(); return nil })
	if err := loop.Run(ctx); err != context.Canceled {
		t.Errorf("Run = %v", err)
	}
	if cleaned != 200 {
		t.Errorf("%d deferred functions and children ran, want 200", cleaned)
	}
	efdSignal(t, fd, 5)
	if left := efdLeft(t, fd); left != 5 {
		t.Errorf("counter is %d, want 5", left)
	}
}

func TestLoopWithAnEndedContextStillRunsWhatItAccepted(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	fd := efdNew(t, 0)
	efdSignal(t, fd, 1)
	var got error
	loop.Go(func(t *Task) error { _, got = t.Await(fd); return nil })
	if err := loop.Serve(ctx); err != context.Canceled || got != context.Canceled {
		t.Errorf("Serve = %v, Await = %v", err, got)
	}
	if left := efdLeft(t, fd); left != 1 {
		t.Errorf("counter is %d, want 1", left)
	}
}

func TestLoopErrorCancelsTheOthersAndIsReturned(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	fd := efdNew(t, 0)
	boom := errors.New("boom")
	loop.Go(func(task *Task) error {
		_, err := task.Await(fd)
		if err != context.Canceled || context.Cause(task.Context()) != boom {
			t.Errorf("Await = %v, because of %v", err, context.Cause(task.Context()))
		}
		return err
	})
	loop.Go(func(t *Task) error { t.Yield(); return boom })
	if err := loop.Serve(context.Background()); err != boom {
		t.Errorf("Serve = %v, want boom", err)
	}
}

func loopPanicsHere(v any) { panic(v) }

func TestLoopPanicIsAnErrorWithItsStack(t *testing.T) {
	efdDeadline(t)
	cause := errors.New("cause")
	for name, start := range map[string]func(*Loop){
		"coroutine": func(l *Loop) { l.Go(func(t *Task) error { t.Yield(); loopPanicsHere(cause); return nil }) },
		"posted":    func(l *Loop) { l.Post(func() { loopPanicsHere(cause) }) },
		"after an error": func(l *Loop) {
			l.Go(func(t *Task) error { return errors.New("first") })
			l.Go(func(t *Task) error { loopPanicsHere(cause); return nil })
		},
	} {
		loop := NewLoop()
		fd := efdNew(t, 0)
		cleaned := false
		loop.Go(func(t *Task) error {
			defer func() { cleaned = true }()
			_, err := t.Await(fd)
			return err
		})
		start(loop)
		err := loop.Run(context.Background())
		var p *PanicError
		if !errors.As(err, &p) || p.Value != any(cause) || !errors.Is(err, cause) {
			t.Errorf("%s: Run = %v", name, err)
		} else if !strings.Contains(string(p.Stack), "loopPanicsHere") || !strings.Contains(err.Error(), "loopPanicsHere") {
			t.Errorf("%s: the stack does not say where: %s", name, p.Stack)
		}
		if !cleaned {
			t.Errorf("%s: another coroutine's deferred function did not run", name)
		}
	}
	if (&PanicError{Value: "text"}).Unwrap() != nil {
		t.Error("a panic that is no error unwraps to one")
	}
}

func TestLoopGoexitEndsTheGoroutineAfterTheOthers(t *testing.T) {
	efdDeadline(t)
	goroutines, descriptors := runtime.NumGoroutine(), efdDescriptors(t)
	loop := NewLoop()
	fd := efdNew(t, 0)
	cleaned, posted := 0, false
	for i := range 9 {
		loop.Go(func(t *Task) error {
			defer func() { cleaned++ }()
			if i < 6 {
				t.Await(fd)
			}
			if i%3 == 0 {
				runtime.Goexit() // some at once, some while the loop drains
			}
			return nil
		})
	}
	loop.Post(func() { runtime.Goexit() })
	loop.Post(func() { posted = true })
	done := make(chan bool)
	go func() {
		returned := false
		defer func() { done <- returned }()
		loop.Run(context.Background())
		returned = true
	}()
	if <-done {
		t.Error("Run has returned")
	}
	if cleaned != 9 || !posted {
		t.Errorf("%d coroutines ended, want 9; posted function ran: %t", cleaned, posted)
	}
	efdUntil(func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := efdDescriptors(t) - descriptors; n != 1 { // fd
		t.Errorf("%d descriptors are left", n-1)
	}
}

func TestAwaitContextEndsOneWaitOnly(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	fd := efdNew(t, 0)
	loop.Go(func(task *Task) error {
		for range 200 {
			ctx, cancel := context.WithCancel(task.Context())
			go cancel()
			if _, err := task.AwaitContext(ctx, fd); err != context.Canceled {
				t.Errorf("AwaitContext = %v", err)
			}
			if _, err := task.AwaitContext(ctx, fd); err != context.Canceled {
				t.Errorf("AwaitContext with an ended context = %v", err)
			}
			// Signal and cancellation at once: whichever wins, the message of
			// the other must not end the next wait.
			ctx, cancel = context.WithCancel(task.Context())
			go cancel()
			go efdSignal(t, fd, 1)
			v, err := task.AwaitContext(ctx, fd)
			switch {
			case err == nil && v == 1:
				go efdSignal(t, fd, 1)
			case err != context.Canceled:
				t.Errorf("AwaitContext = %d, %v", v, err)
			}
			if v, err := task.Await(fd); v != 1 || err != nil {
				t.Errorf("next Await = %d, %v", v, err)
			}
			cancel()
		}
		return nil
	})
	if err := loop.Run(context.Background()); err != nil {
		t.Error(err)
	}
}

// lateContext ends, but is slow to say so: from its second call on, Err waits.
type lateContext struct {
	context.Context
	calls   *atomic.Int32
	entered chan struct{}
	gate    chan struct{}
}

func (c lateContext) Err() error {
	if c.calls.Add(1) > 1 {
		close(c.entered)
		<-c.gate
	}
	return c.Context.Err()
}

// The message that a wait's context has ended comes when that wait has been
// answered and the coroutine is in its next one.
func TestLateEndOfAWaitDoesNotEndTheNext(t *testing.T) {
	efdDeadline(t)
	loop := NewLoop()
	first, second := efdNew(t, 0), efdNew(t, 0)
	inner, cancel := context.WithCancel(context.Background())
	ctx := lateContext{inner, new(atomic.Int32), make(chan struct{}), make(chan struct{})}
	inSecond := false
	loop.Go(func(task *Task) error {
		if v, err := task.AwaitContext(ctx, first); v != 1 || err != nil {
			t.Errorf("first wait: %d, %v", v, err)
		}
		close(ctx.gate)
		efdUntil(loop.mailed.Load)
		inSecond = true
		if v, err := task.Await(second); v != 2 || err != nil {
			t.Errorf("second wait: %d, %v", v, err)
		}
		return nil
	})
	loop.Go(func(task *Task) error {
		cancel()
		<-ctx.entered
		efdSignal(t, first, 1)
		for !inSecond {
			task.Yield()
		}
		for range 3 * pollEvery { // room for the late message
			task.Yield()
		}
		efdSignal(t, second, 2)
		return nil
	})
	if err := loop.Run(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestLoopLeavesNothingBehind(t *testing.T) {
	efdDeadline(t)
	goroutines, descriptors := runtime.NumGoroutine(), efdDescriptors(t)
	fd := efdNew(t, 0)
	for i := range 500 {
		loop := NewLoop()
		for range 5 {
			loop.Go(func(t *Task) error { _, err := t.Await(fd); return err })
		}
		ctx, cancel := context.WithCancel(context.Background())
		loop.Go(func(t *Task) error {
			if i%2 == 0 {
				return errors.New("over")
			}
			cancel()
			return nil
		})
		if err := loop.Run(ctx); err == nil {
			t.Fatal("Run = nil")
		}
		cancel()
		NewLoop().Go(func(*Task) error { return nil }) // never run
	}
	efdUntil(func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := efdDescriptors(t) - descriptors; n != 1 { // fd
		t.Errorf("%d descriptors are left", n-1)
	}
}
