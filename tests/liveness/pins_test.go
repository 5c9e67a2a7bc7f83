package liveness

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// pinAll pins pages from page first on until no more can be pinned, and
// returns the pins. It may pin what Stats.Pinnable says, so it never waits.
func pinAll(t *testing.T, p *pager.Pager, r *pager.Region) []pager.Pin {
	t.Helper()
	var pins []pager.Pin
	for n := p.Stats().Pinnable / page; int64(len(pins)) < n; {
		pin, err := r.Acquire(context.Background(), int64(len(pins))*page, page)
		if err != nil {
			t.Fatalf("pin %d of %d: %v", len(pins), n, err)
		}
		pins = append(pins, pin)
	}
	return pins
}

// TestFaultsProgressWhileAllPinnableIsPinned: a part of the budget cannot be
// pinned, so that reading goes on whatever the holders of pins do.
func TestFaultsProgressWhileAllPinnableIsPinned(t *testing.T) {
	for _, budget := range []int64{4, 8, 31, 32, 100} {
		t.Run(fmt.Sprintf("budget=%d", budget), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: 2}) {
				return
			}
			p := fixture.Pager(t, pager.Options{Budget: budget * page, StallLimit: 100 * time.Millisecond})
			r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 400*page, 1), store.FileOptions{ReadOnly: true}), quiet)
			fixture.NeedRaw(t, r)
			pins := pinAll(t, p, r)
			// The documented reserve: max(16 pages, 5 %), half below 32 pages.
			reserve := max(16, budget/20)
			if budget < 32 {
				reserve = budget / 2
			}
			if int64(len(pins)) > budget-reserve || len(pins) == 0 {
				t.Errorf("%d pages of %d can be pinned; the reserve is %d", len(pins), budget, reserve)
			}
			for i := int64(100); i < 400; i++ {
				if err := raw[i%2].read(context.Background(), r, i*page); err != nil {
					t.Fatalf("page %d: %v", i, err)
				}
				if err := explicit[2].read(context.Background(), r, (i-50)*page); err != nil {
					t.Fatalf("ReadAt page %d: %v", i-50, err)
				}
			}
			if s := p.Stats(); s.PeakResident > budget*page {
				t.Errorf("%d bytes resident at most under a budget of %d", s.PeakResident, budget*page)
			}
			// One pin more does not wait for ever for those who never let go …
			if pin, err := r.Acquire(context.Background(), 399*page, page); err == nil {
				pin.Release()
				t.Error("more was pinned than can be")
			} else if !errors.Is(err, pager.ErrBudget) {
				t.Errorf("one pin too many: %v, want ErrBudget", err)
			}
			if pin, ok := r.TryAcquire(398*page, page); ok {
				pin.Release()
				t.Error("TryAcquire pinned more than can be")
			}
			// … and those that are there are what they were.
			for i, pin := range pins {
				if err := fixture.Check(pin.Bytes(), int64(i)*page, 1); err != nil {
					t.Error(err)
				}
				pin.Release()
			}
			if pin, err := r.Acquire(context.Background(), 399*page, page); err != nil {
				t.Errorf("after Release: %v", err)
			} else {
				pin.Release()
			}
		})
	}
}

// TestHoldersThatWantMore: two holders of nearly half of what can be pinned
// each want as much again. Neither can have it; at least one is told so.
func TestHoldersThatWantMore(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 200 * page, StallLimit: 100 * time.Millisecond})
	r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 1000*page, 1), store.FileOptions{ReadOnly: true}), quiet)
	share := p.Stats().Pinnable / page * 2 / 5 * page
	ctx := context.Background()
	var ready, wg sync.WaitGroup
	ready.Add(2)
	errs := make([]error, 2)
	for i := range errs {
		wg.Go(func() {
			off := int64(i) * 2 * share
			first, err := r.Acquire(ctx, off, share)
			ready.Done()
			if err != nil {
				errs[i] = err
				return
			}
			defer first.Release()
			ready.Wait()
			second, err := r.Acquire(ctx, off+share, share)
			if err == nil {
				errs[i] = fixture.Check(second.Bytes(), off+share, 1)
				second.Release()
				return
			}
			errs[i] = err
		})
	}
	wg.Wait()
	refused := 0
	for _, err := range errs {
		if errors.Is(err, pager.ErrBudget) {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if refused == 0 {
		t.Error("both got what only one could have")
	}
	if s := p.Stats(); s.Pinned != 0 {
		t.Errorf("%d bytes are still pinned", s.Pinned)
	}
}

// TestWaitersHoldNothing: who waits in line for many frames does not keep
// others from the few they want for ever, nor is he passed for ever.
func TestWaitersHoldNothing(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 100 * page})
	r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 1000*page, 1), store.FileOptions{ReadOnly: true}), quiet)
	most := p.Stats().Pinnable
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 9)
	for i := range 8 {
		wg.Go(func() {
			for k := int64(0); ctx.Err() == nil; k++ {
				if err := explicit[0].read(ctx, r, (int64(i)*100+k%100)*page); err != nil && ctx.Err() == nil {
					errs[i] = err
					return
				}
			}
		})
	}
	for k := range int64(20) {
		pin, err := r.Acquire(ctx, k*13*page, most)
		if err != nil {
			errs[8] = err
			break
		}
		err = fixture.Check(pin.Bytes(), k*13*page, 1)
		pin.Release()
		if err != nil {
			errs[8] = err
			break
		}
	}
	cancel()
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestReadsProgressWhileAllIsDirty: all that can be dirty is dirty, and the
// device writes nothing. What needs no pin goes on.
func TestReadsProgressWhileAllIsDirty(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	const budget, pages = 64, 400
	p := fixture.Pager(t, pager.Options{Budget: budget * page, StallLimit: time.Minute})
	s := store.NewFaulty(fixture.Memory(t, pages*page, 1), store.FaultyOptions{Kernel: true})
	r := fixture.Map(t, p, s, quiet)
	fixture.NeedRaw(t, r)
	s.Hold(store.OnWrite)
	t.Cleanup(s.Release)
	ctx, cancel := context.WithCancel(context.Background())
	written := make(chan error, 1)
	go func() {
		b := make([]byte, page)
		for i := range int64(200) {
			fixture.Fill(b, i*page, 1) // what is there already
			if _, err := r.WriteAt(b, i*page); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	fixture.Eventually(t, "writes wait at the device", func() bool { return s.Counts().Held > 0 })
	for i := int64(200); i < pages; i++ {
		if err := explicit[2].read(ctx, r, i*page); err != nil {
			t.Fatalf("ReadAt: %v", err)
		}
		if err := raw[i%2].read(ctx, r, (i+37)%200*page+200*page); err != nil {
			t.Fatalf("%s: %v", raw[i%2].name, err)
		}
	}
	select {
	case err := <-written:
		t.Fatalf("200 pages were written (%v) under a budget of %d while the device took none", err, budget)
	default:
	}
	s.Release()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	cancel()
}
