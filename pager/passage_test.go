//go:build linux

package pager

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
)

// A Commit that would wait for its own goroutine says so.
func TestCommitWithinAPassage(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{})
	ctx := context.Background()
	if coro.CurrentG() == 0 {
		t.Skip("goroutines cannot be told apart here")
	}
	pin, err := r.AcquireWrite(ctx, 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx); !errors.Is(err, ErrBusy) {
		t.Errorf("Commit by the holder of a write pin: %v", err)
	}
	if err := p.Commit(ctx, r); !errors.Is(err, ErrBusy) {
		t.Errorf("Pager.Commit by the holder of a write pin: %v", err)
	}
	// Another goroutine's Commit waits, for as long as its context says, and
	// the holder's other writes go on meanwhile.
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	done := make(chan error)
	go func() { done <- r.Commit(short) }()
	for i := range 5 {
		fill(t, r, 1+i, 7)
		time.Sleep(10 * time.Millisecond)
	}
	// A goroutine that is not inside is let in between two attempts.
	wrote := make(chan error)
	go func() { _, err := r.WriteAt([]byte{1}, 9*FrameSize); wrote <- err }()
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Commit beside a write pin: %v", err)
	}
	pin.Release()
	if err := r.Commit(ctx); err != nil {
		t.Errorf("Commit after Release: %v", err)
	}
	if raw := r.Raw(); raw == nil {
		err := r.Update(ctx, func([]byte) error { return r.Sync(ctx) })
		if !errors.Is(err, ErrBusy) {
			t.Errorf("Sync within an Update: %v", err)
		}
	}
}

// An Update that waits for another goroutine's WriteAt does not keep a Commit
// from coming to an end, nor the other way round.
func TestPassageThatWaitsForAnother(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{})
	ctx := context.Background()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			pin, err := r.AcquireWrite(ctx, 0, 8)
			if err != nil {
				t.Error(err)
				return
			}
			inner := make(chan error)
			go func() { _, err := r.WriteAt([]byte{1}, 2*FrameSize); inner <- err }()
			if err := <-inner; err != nil {
				t.Error(err)
			}
			pin.Release()
		}
	})
	for range 30 {
		if err := r.Commit(ctx); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	wg.Wait()
}

// Stores outside of passages: as far as a goroutine can be parked, the cut has
// no later store of it without its earlier ones.
func TestCutKeepsTheOrderOfStores(t *testing.T) {
	if active, why := coro.ParkStatus(); !active {
		t.Skipf("goroutines are not parked in place here: %s", why)
	}
	// Every other page, in no order: no two are copied with one call, and an
	// earlier store may be to a page that is copied late.
	const pages = 160
	order := rand.New(rand.NewPCG(3, 3)).Perm(pages)
	p := newPager(t, Options{Budget: 1024 * FrameSize})
	if p.Stats().ParkMode != coro.InPlace {
		t.Skip("park mode " + p.Stats().Park)
	}
	o := RegionOptions{Journal: JournalOptions{Limit: 4 << 20, Interval: 3 * time.Millisecond}}
	a := mapAtomic(t, p, make([]byte, 2*pages*FrameSize), nil, o)
	mem := a.Bytes()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { // no page has less than the next in the order, nor two more
		for v := byte(1); !stop.Load(); v++ {
			for _, i := range order {
				mem[2*i*FrameSize] = v
			}
		}
	})
	for round := range longer(8) {
		waited := p.Stats().Faults.Blocked
		if err := a.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		waited = p.Stats().Faults.Blocked - waited
		data, journal := a.frozen()
		c, err := tryMapAtomic(p, data, journal, o)
		if err != nil {
			t.Fatal(err)
		}
		var first, last [1]byte
		drops := 0
		for k, i := range order {
			if _, err := c.ReadAt(last[:], int64(2*i*FrameSize)); err != nil {
				t.Fatal(err)
			}
			switch {
			case k == 0:
				first = last
			case last[0] == first[0]-1:
				drops++
				first = last
			case last != first:
				drops += 2
			}
		}
		c.Close()
		if drops > 1 && waited == 0 {
			t.Errorf("round %d: the cut has later stores without earlier ones", round)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
}

// What Close cuts short, a WriteAt over two pages, is in no commit: one that waits for
// it fails.
func TestNoCommitOfWhatCloseCutsShort(t *testing.T) {
	for what, ctx := range contexts(t) {
		t.Run(what, func(t *testing.T) {
			for range 10 {
				p := newPager(t, Options{Budget: 64 * FrameSize})
				data := make([]byte, 16*FrameSize)
				a := mapAtomic(t, p, data, nil, RegionOptions{})
				if a.Raw() != nil {
					t.Skip("needs Update")
				}
				inside, committed := make(chan struct{}), make(chan error, 1)
				go func() {
					<-inside
					committed <- a.Commit(ctx)
				}()
				closed := make(chan error, 1)
				err := a.Update(context.Background(), func(mem []byte) error {
					mem[0] = 1
					close(inside)
					time.Sleep(2 * time.Millisecond) // the commit waits for this
					go func() { closed <- a.Close() }()
					for !a.closing.Load() {
						time.Sleep(10 * time.Microsecond)
					}
					_, err := a.WriteAt([]byte{1}, FrameSize)
					return err
				})
				got := <-committed
				if err := <-closed; err != nil {
					t.Fatal(err)
				}
				if !errors.Is(err, ErrClosed) {
					continue // Close let it go on: it is whole
				}
				if !errors.Is(got, ErrClosed) {
					t.Fatalf("Commit of an Update that Close has cut short: %v", got)
				}
			}
		})
	}
}
