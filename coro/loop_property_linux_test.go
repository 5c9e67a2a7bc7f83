package coro

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// efdModel is what eventfd(2) and the documentation of Await promise about one
// eventfd: a counter and a line of waiters.
type efdModel struct {
	semaphore bool
	count     uint64
	line      []int // waiters, oldest first
}

// settle hands out what the counter holds and says who gets what.
func (m *efdModel) settle() (woken []efdResult) {
	for m.count > 0 && len(m.line) > 0 {
		take := m.count
		if m.semaphore {
			take = 1
		}
		m.count -= take
		woken = append(woken, efdResult{m.line[0], take, nil})
		m.line = m.line[1:]
	}
	return woken
}

// Random histories of waits, signals and cancellations in a loop against the
// model: after each step exactly the coroutines that the model wakes are
// woken, with the values and in the order that it says.
func TestLoopWakesAsTheModel(t *testing.T) {
	efdDeadline(t)
	rapid.Check(t, func(r *rapid.T) {
		const fds = 3
		var model [fds]efdModel
		var fd [fds]int
		for i := range fd {
			flags := 0
			if model[i].semaphore = rapid.Bool().Draw(r, "semaphore"); model[i].semaphore {
				flags = unix.EFD_SEMAPHORE
			}
			var err error
			if fd[i], err = unix.Eventfd(0, flags|unix.EFD_CLOEXEC); err != nil {
				r.Fatal(err)
			}
			defer unix.Close(fd[i])
		}
		type step struct {
			kind  int
			on    int
			times int
			n     uint64
		}
		steps := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) step {
			return step{
				rapid.IntRange(0, 3).Draw(r, "kind"), rapid.IntRange(0, fds-1).Draw(r, "eventfd"),
				rapid.IntRange(1, 4).Draw(r, "times"), rapid.Uint64Range(1, 5).Draw(r, "n"),
			}
		}), 1, 40).Draw(r, "steps")

		var failure string
		loop := NewLoop()
		loop.Go(func(driver *Task) error {
			var got []efdResult
			cancels := map[int]context.CancelFunc{}
			next := 0
			for _, s := range steps {
				m := &model[s.on]
				var want []efdResult
				switch s.kind {
				case 0: // some begin to wait
					for range s.times {
						who := next
						next++
						ctx, cancel := context.WithCancel(context.Background())
						defer cancel()
						cancels[who] = cancel
						driver.Go(func(t *Task) error {
							v, err := t.AwaitContext(ctx, fd[s.on])
							if t.Context().Err() == nil {
								got = append(got, efdResult{who, v, err})
							}
							return nil
						})
						m.line = append(m.line, who)
					}
				case 1: // signals, one after the other, before anybody can be woken
					for range s.times {
						efdSignal(t, fd[s.on], s.n)
						m.count += s.n
					}
				case 2: // signals from another goroutine
					done := make(chan struct{})
					go func() { efdSignal(t, fd[s.on], s.n); close(done) }()
					<-done
					m.count += s.n
				case 3: // one gives up
					if len(m.line) > 0 {
						i := s.times % len(m.line)
						who := m.line[i]
						m.line = slices.Delete(m.line, i, i+1)
						cancels[who]()
						want = append(want, efdResult{who, 0, context.Canceled})
					}
				}
				want = append(want, m.settle()...)
				for len(got) < len(want) {
					driver.Yield()
				}
				for range 3 * pollEvery { // room for whoever ought not to be woken
					driver.Yield()
				}
				if !slices.Equal(got, want) {
					failure = fmt.Sprintf("%+v: woken %+v, want %+v", s, got, want)
					break
				}
				got = got[:0]
			}
			return errors.New("the end") // cancels those who still wait
		})
		loop.Run(context.Background())
		if failure != "" {
			r.Fatal(failure)
		}
		for i, m := range model {
			if left := efdLeft(t, fd[i]); failure == "" && left != m.count {
				r.Fatalf("eventfd %d counts %d at the end, want %d", i, left, m.count)
			}
		}
	})
}

// Two loops, plain goroutines, concurrent signals and cancellations on the
// same few eventfds: every unit that was signalled is taken once or is still
// in the counter, and in the end nobody waits for an eventfd that counts.
func TestNoWakeupIsLostAmongLoopsAndGoroutines(t *testing.T) {
	efdDeadline(t)
	rounds := 2000
	if efdTorture() {
		rounds = 200000
	}
	fds := []int{efdNew(t, 0), efdNew(t, unix.EFD_SEMAPHORE), efdNew(t, unix.EFD_NONBLOCK), efdNew(t, 0)}
	taken := make([]atomic.Uint64, len(fds))
	waiting := make([]atomic.Int64, len(fds))
	sent := make([]atomic.Uint64, len(fds))
	wait := func(ctx context.Context, i int, await func(context.Context, int) (uint64, error)) bool {
		waiting[i].Add(1)
		v, err := await(ctx, fds[i])
		waiting[i].Add(-1)
		if (err == nil) != (v > 0) || err != nil && err != context.Canceled {
			t.Errorf("await = %d, %v", v, err)
		}
		taken[i].Add(v)
		return err == nil
	}
	whole, end := context.WithCancel(context.Background())
	var waiters, senders sync.WaitGroup
	// worker waits again and again, now and then with a context that ends early.
	worker := func(i int, await func(context.Context, int) (uint64, error)) {
		for n := 0; whole.Err() == nil; n++ {
			if n%3 == 0 {
				wait(whole, i, await)
				continue
			}
			ctx, cancel := context.WithCancel(whole)
			go cancel()
			wait(ctx, i, await)
			cancel()
		}
	}
	for range 2 {
		loop := NewLoop()
		for n := range 40 {
			loop.Go(func(t *Task) error { worker(n%len(fds), t.AwaitContext); return nil })
		}
		waiters.Go(func() { loop.Run(whole) })
	}
	for n := range 40 {
		waiters.Go(func() { worker(n%len(fds), Await) })
	}
	for range 3 {
		senders.Go(func() {
			for range rounds {
				i, n := rand.IntN(len(fds)), rand.Uint64N(3)+1
				efdSignal(t, fds[i], n)
				sent[i].Add(n)
			}
		})
	}
	senders.Wait()
	for i := range fds {
		efdUntil(func() bool { return taken[i].Load() == sent[i].Load() })
	}
	end()
	waiters.Wait()
	for i, fd := range fds {
		if left := efdLeft(t, fd); left != 0 || taken[i].Load() != sent[i].Load() || waiting[i].Load() != 0 {
			t.Errorf("eventfd %d: sent %d, taken %d, left %d, waiting %d",
				i, sent[i].Load(), taken[i].Load(), left, waiting[i].Load())
		}
	}
}
