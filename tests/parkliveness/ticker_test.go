package parkliveness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const (
	goroutines = 1000
	touches    = 20 // pages that each goroutine reads
	size       = goroutines * touches * pager.FrameSize
	latency    = time.Millisecond

	// maxThreads is what a program may have, its Ps' and the pager's included,
	// however many goroutines wait.
	maxThreads = 20

	// What plain loads must come to, beside an idle ticker and Acquire, in the
	// best of some attempts: any of them may meet a busy machine. Asked for by
	// UFFDPAGER_TORTURE=1; without, only what no machine is too busy for.
	minTicks, maxTime             = 0.9, 1.3
	minTicksAnyway, maxTimeAnyway = 0.1, 4
	attempts                      = 6
	patience                      = 40 * time.Second // after which no other attempt begins
)

// TestWaitingTakesNoThread lets a thousand goroutines wait for a slow store by
// plain loads, and by Acquire for comparison, beside a ticker. What the ticker
// and the clock say depends on the machine and on who else is using it: the best
// of some attempts counts. The number of threads does not depend on that.
func TestWaitingTakesNoThread(t *testing.T) {
	for _, procs := range []int{1, 2} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: procs, Deadline: 2 * time.Minute}) {
				return
			}
			seed := fixture.Seed(t)
			region := func() (*pager.Pager, *pager.Region) {
				p := fixture.Pager(t, pager.Options{Budget: 16 << 20})
				s := store.NewFaulty(fixture.Memory(t, size, seed), store.FaultyOptions{Latency: latency, Kernel: true})
				r := fixture.Map(t, p, s, pager.RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
				fixture.NeedRaw(t, r)
				return p, r
			}
			enough, most := minTicksAnyway, float64(maxTimeAnyway)
			if fixture.Torture() {
				enough, most = minTicks, maxTime
			}
			ticks, took := 0.0, 1e9 // the best, of loads, as shares
			var p *pager.Pager
			for n, began := 0, time.Now(); n < attempts && time.Since(began) < patience && (ticks < enough || took > most); n++ {
				idle := beside(func() { time.Sleep(300 * time.Millisecond) })
				_, r := region()
				acquire := measure(t, seed, func(off int64) (byte, error) {
					pin, err := r.Acquire(context.Background(), off, 1)
					if err != nil {
						return 0, err
					}
					defer pin.Release()
					return pin.Bytes()[0], nil
				})
				p, r = region()
				mem := r.Bytes()
				load := measure(t, seed, func(off int64) (byte, error) { return mem[off], nil })
				t.Logf("%d loads: %v, %.2f of Acquire's %v; ticks/s: idle %.0f, Acquire %.2f of that, loads %.2f",
					goroutines*touches, load.took.Round(time.Millisecond), load.took.Seconds()/acquire.took.Seconds(), acquire.took.Round(time.Millisecond),
					idle.rate(), acquire.rate()/idle.rate(), load.rate()/idle.rate())
				ticks = max(ticks, load.rate()/idle.rate())
				took = min(took, load.took.Seconds()/acquire.took.Seconds())
			}
			if p.Stats().ParkMode == coro.InPlace && (ticks < enough || took > most) {
				t.Errorf("at best %.2f of the idle ticks and %.2f of Acquire's time, want at least %v and at most %v", ticks, took, enough, most)
			}

			threads := fixture.Threads(t) // Go keeps what it once had
			f := p.Stats().Faults
			t.Logf("%d threads; %d faults, %d parked, %d blocked %v", threads, f.Faults, f.Parked, f.Blocked, f.BlockedBy)
			if threads >= maxThreads {
				t.Errorf("%d threads for %d goroutines that wait", threads, goroutines)
			}
			if f.Parked < goroutines*touches/2 {
				t.Errorf("%d loads of absent pages have parked their goroutine %d times only", goroutines*touches, f.Parked)
			}
		})
	}
}

// measure reads every page once, each goroutine its share in an order of its
// own, and checks what it reads.
func measure(t *testing.T, seed uint64, read func(off int64) (byte, error)) span {
	t.Helper()
	pages := rand.New(rand.NewPCG(seed, 0)).Perm(goroutines * touches)
	errs := make([]error, goroutines)
	s := beside(func() {
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				for _, n := range pages[i*touches : (i+1)*touches] {
					off := int64(n)*pager.FrameSize + int64(n%pager.FrameSize)
					got, err := read(off)
					if want := fixture.Byte(off, seed); err == nil && got != want {
						err = fmt.Errorf("at %d: %#x, want %#x", off, got, want)
					}
					if err != nil {
						errs[i] = err
						return
					}
				}
			})
		}
		wg.Wait()
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return s
}

// span is how long something took, and how often a ticker fired meanwhile.
type span struct {
	took  time.Duration
	ticks int
}

func (s span) rate() float64 { return float64(s.ticks) / s.took.Seconds() }

// beside runs f beside a ticker of 200 µs.
func beside(f func()) span {
	var s span
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(200 * time.Microsecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				s.ticks++
			}
		}
	}()
	began := time.Now()
	f()
	s.took = time.Since(began)
	close(stop)
	<-done
	return s
}
