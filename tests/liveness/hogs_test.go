package liveness

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestMissesAmongHogs: goroutines that only compute take the Ps, and faults
// are still served. How soon a goroutine runs again is the scheduler's affair;
// that its page comes is ours.
func TestMissesAmongHogs(t *testing.T) {
	for _, procs := range []int{1, 2} {
		for _, way := range append(explicit[:len(explicit):len(explicit)], raw...) {
			t.Run(fmt.Sprintf("procs=%d/%s", procs, way.name), func(t *testing.T) {
				if child.Isolate(t, child.Options{Procs: procs}) {
					return
				}
				p := fixture.Pager(t, pager.Options{Budget: 32 * page})
				r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 400*page, 1), store.FileOptions{ReadOnly: true}), quiet)
				fixture.NeedRaw(t, r)
				var stop atomic.Bool
				var wg sync.WaitGroup
				defer wg.Wait()
				defer stop.Store(true)
				for range 4 * procs {
					wg.Go(func() {
						for !stop.Load() {
						}
					})
				}
				// Eight at a time, so that the hogs' time slices are not
				// waited for one by one.
				errs := make(chan error, 8)
				for i := range int64(8) {
					go func() {
						var err error
						for k := range int64(12) {
							err = errors.Join(err, way.read(context.Background(), r, (i*50+k)*page))
						}
						errs <- err
					}()
				}
				for range 8 {
					if err := <-errs; err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// TestFaultsUnderLocks: code that faults while it holds a lock others want.
func TestFaultsUnderLocks(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 1}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 8 * page})
	r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 200*page, 1), store.FileOptions{ReadOnly: true}), quiet)
	fixture.NeedRaw(t, r)
	fixture.CollectGarbage(t)
	var mu sync.RWMutex
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() {
			for k := range 100 {
				off := int64((i*13+k*7)%200) * page
				if k%4 == 0 {
					mu.Lock()
				} else {
					mu.RLock()
				}
				err := raw[k%2].read(context.Background(), r, off)
				if k%4 == 0 {
					mu.Unlock()
				} else {
					mu.RUnlock()
				}
				if err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestFaultsInOddPlaces: timers, finalizers, deferred calls and panics run
// Go code as well.
func TestFaultsInOddPlaces(t *testing.T) {
	for _, procs := range []int{1, 2} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: procs}) {
				return
			}
			p := fixture.Pager(t, pager.Options{Budget: 8 * page})
			r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 400*page, 1), store.FileOptions{ReadOnly: true}), quiet)
			fixture.NeedRaw(t, r)
			fixture.CollectGarbage(t)
			mem := r.Bytes()
			look := func(i int64) error { return fixture.Check(mem[i*page:(i+1)*page], i*page, 1) }
			errs := make(chan error, 200)
			for i := range int64(50) {
				time.AfterFunc(time.Duration(i)*100*time.Microsecond, func() { errs <- look(i) })
				finalized(func() { errs <- look(50 + i) })
				go func() {
					defer func() { errs <- look(100 + i) }()
					_ = look(200 + i)
				}()
				go func() {
					defer func() {
						_ = recover()
						errs <- look(150 + i)
					}()
					panic(mem[(250+i)*page])
				}()
			}
			for range 200 {
				if err := <-errs; err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
