package pager

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// When one region keeps others from being committed together with it, only what
// waits for that region fails.
func TestOneRegionsErrorIsNotTheOthers(t *testing.T) {
	ctx := context.Background()
	small := RegionOptions{Journal: JournalOptions{Interval: -1, Limit: 64 * FrameSize}, Writeback: Writeback{NoSteal: true}}
	for what, spoil := range map[string]func(b *Region) error{
		"before the cut": func(b *Region) error { return b.atomic.flushFailed(unix.EIO) },
		"in the cut": func(b *Region) error {
			for page := range 100 {
				fill(t, b, page, 1)
			}
			return ErrBudget
		},
	} {
		t.Run(what, func(t *testing.T) {
			p := newPager(t, Options{Budget: 512 * FrameSize})
			a, _, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Interval: -1}})
			b, _, _ := faultyAtomic(t, p, 128, small)
			want := spoil(b)
			if errors.As(want, new(*FaultError)) {
				want = unix.EIO
			}
			fill(t, a, 0, 1)
			ops := make([]*SyncOp, 2)
			for i, r := range []*Region{a, b} {
				var err error
				if ops[i], err = r.commitOp(-1); err != nil { // it waits, and nobody is about it
					t.Fatal(err)
				}
			}
			if err := p.Commit(ctx, a, b); !errors.Is(err, want) {
				t.Errorf("Commit of both: %v", err)
			}
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			if err := ops[0].Wait(ctx); err != nil {
				t.Errorf("the commit of the region that is well: %v", err)
			}
			if err := ops[1].Wait(ctx); !errors.Is(err, want) {
				t.Errorf("the commit of the other one: %v", err)
			}
		})
	}
}

// Who may go does not stand before a slot that the fault server fills, in a
// system call that a device may not let end: the committer does.
func TestWhoMayGoWaitsForNoSlot(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Interval: -1}})
	ctx := context.Background()
	fill(t, r, 0, 1)
	if err := r.Commit(ctx); err != nil { // makes the slots
		t.Fatal(err)
	}
	d, a := r.d, r.atomic
	fill(t, r, 1, 1)
	if n, _ := r.writeSlots([]dirtyPage{{d, 1}}, writeSync, nil); n != 1 {
		t.Fatal("the page was not written")
	}
	eventually(t, "an image in a loose slot", func() bool {
		return load64(&d.slotsLoose) == 1 && load64(&d.slotsFilling) == 0 && a.writers.Load() == 0
	})
	slot, was, res := takeSlot(d, 2, slotFilling, 0)
	if res != slotTaken {
		t.Fatal("no slot")
	}
	add64(&d.slotsFilling, -1) // as if the server had come after the first look

	a.turn <- struct{}{}
	rs := []*Region{r}
	if err := closeGates(rs, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	a.cutting.Store(true)
	bare.Store32(&d.cut, 1)
	c := r.newCut()
	c.hasty = true
	took := make(chan error, 1)
	go func() { took <- c.take() }()
	select {
	case err := <-took:
		if err != errHasty {
			t.Errorf("the cut was taken: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the cut waits for the server's slot")
	}
	add64(&d.slotsFilling, 1)
	untakeSlot(d, slot, was)
	if t.Failed() {
		<-took
	}
	bare.Store32(&d.cut, 0)
	a.cutting.Store(false)
	openGates(rs)
	c.undo()
	<-a.turn
	if err := r.Commit(ctx); err != nil {
		t.Error(err)
	}
}

// The age of dirty pages counts from when the region had none, also if it once
// had some and they were written by somebody else.
func TestAgeBeginsAnew(t *testing.T) {
	const age = time.Second
	needProtection(t)
	p, r, _ := mapMemory(t, 16, Options{Budget: 64 * FrameSize}, store.FaultyOptions{}, RegionOptions{Writeback: Writeback{Age: age}})
	touchPages(t, r, 1)
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(age + age/4)
	before := p.Stats().Writes
	at := time.Now()
	touchPages(t, r, 2)
	for time.Since(at) < age/2 {
		if wrote := p.Stats().Writes != before; wrote && time.Since(at) < age {
			t.Fatalf("a page was written when it had been dirty for %v", time.Since(at))
		}
		time.Sleep(time.Millisecond)
	}
	eventually(t, "the page is written", func() bool { return p.Stats().Writes > before })
}

// Pages that are on their way are pinned for those who wait for them. Who waits for room
// because of that waits as long as the device takes: nobody keeps the pins.
func TestASlowReadIsNoStall(t *testing.T) {
	const stall, pages = 100 * time.Millisecond, 8 // of 16 that may be pinned
	s := store.NewFaulty(store.NewMemory(64*FrameSize), store.FaultyOptions{})
	p, r := rawMap(t, Options{Budget: 2 * pages * FrameSize, StallLimit: stall}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	defer s.Release()
	s.Hold(store.OnRead)
	errs := make(chan error, pages+1)
	for page := range int64(pages + 1) {
		go func() {
			pin, err := r.Acquire(context.Background(), 2*page*FrameSize, 1)
			if err == nil {
				pin.Release()
			}
			errs <- err
		}()
	}
	eventually(t, "one waits for room", func() bool { return p.waiting.Load() == 1 && s.Counts().Held == pages })
	time.Sleep(5 * stall)
	s.Release()
	for range pages + 1 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
