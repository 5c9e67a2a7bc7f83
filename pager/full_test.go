//go:build linux

package pager

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/store"
)

// readEach reads one byte of each of n pages from first, all at the same time.
func readEach(t *testing.T, r *Region, first, n int64) {
	var wg sync.WaitGroup
	for page := range n {
		wg.Go(func() {
			var b [1]byte
			if _, err := r.ReadAt(b[:], (first+page)*FrameSize); err != nil {
				t.Errorf("page %d: %v", first+page, err)
			}
		})
	}
	wg.Wait()
}

// Who waits longer than StallLimit because there are many before him, all of whom get
// through, is not told that nothing can leave.
func TestACrowdBeforeAFullRegion(t *testing.T) {
	const limit, latency, room, pages = 500 * time.Millisecond, 50 * time.Millisecond, 8, 160 // 1 s in all
	_, r, _ := mapMemory(t, pages, Options{Budget: 1024 * FrameSize, StallLimit: limit},
		store.FaultyOptions{Latency: latency}, RegionOptions{MaxResident: room * FrameSize})
	readEach(t, r, 0, pages)
}

// Nor is who waits for a device that takes longer.
func TestAFullRegionOverASlowDevice(t *testing.T) {
	const limit, room, pages = 50 * time.Millisecond, 4, 256
	p, r, s := mapMemory(t, pages, Options{Budget: 1024 * FrameSize, StallLimit: limit},
		store.FaultyOptions{}, RegionOptions{MaxResident: room * FrameSize})
	s.Hold(store.OnRead)
	done := make(chan struct{})
	go func() {
		defer close(done)
		readEach(t, r, 0, pages)
	}()
	eventually(t, "reads of what there is room for, and others in line", func() bool {
		return s.Counts().Held > 0 && p.waiting.Load() > 0
	})
	time.Sleep(8 * limit)
	s.Release()
	<-done
}

// A request for several pages of a full region has its turn although all that becomes free
// is enough for one page only.
func TestAFullRegionIsNotOnlyForSinglePages(t *testing.T) {
	const limit, room, pages = time.Second, 8, 512
	_, r, _ := mapMemory(t, pages, Options{Budget: 1024 * FrameSize, StallLimit: limit},
		store.FaultyOptions{Latency: 5 * time.Millisecond}, RegionOptions{MaxResident: room * FrameSize})
	var stop atomic.Bool
	var wg sync.WaitGroup
	for g := range int64(4 * room) {
		wg.Go(func() {
			var b [1]byte
			for page := g; !stop.Load(); page = (page + 4*room) % (pages - room) {
				if _, err := r.ReadAt(b[:], page*FrameSize); err != nil {
					t.Errorf("one page: %v", err)
					return
				}
			}
		})
	}
	within(t, time.Minute, "all the room there is, for one request", func() {
		for range 2 {
			pin, err := r.Acquire(context.Background(), (pages-room)*FrameSize, room*FrameSize)
			if err != nil {
				t.Error(err)
				break
			}
			pin.Release()
			readEach(t, r, 0, 4*room) // and away with it
		}
	})
	stop.Store(true)
	wg.Wait()
}

// Where pins keep a region full, those who wait are told, all of them after the limit
// and not one after the other.
func TestAFullRegionOfPins(t *testing.T) {
	const limit, room, crowd = time.Second, 4, 30
	p, r, _ := mapMemory(t, 64, Options{Budget: 1024 * FrameSize, StallLimit: limit},
		store.FaultyOptions{}, RegionOptions{MaxResident: room * FrameSize})
	ctx := context.Background()
	pin, err := r.Acquire(ctx, 0, room*FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	var wg sync.WaitGroup
	for page := range int64(crowd) {
		wg.Go(func() {
			var b [1]byte
			_, err := r.ReadAt(b[:], (room+page)*FrameSize)
			if !errors.Is(err, ErrBudget) {
				t.Errorf("page %d: %v", room+page, err)
			}
		})
	}
	wg.Wait()
	if d := time.Since(begun); d < limit || d > crowd/2*limit {
		t.Errorf("told after %v", d)
	}
	if _, err := r.Acquire(ctx, 0, (room+1)*FrameSize); !errors.Is(err, ErrBudget) || !strings.Contains(err.Error(), "16384 can be by MaxResident") {
		t.Errorf("more than MaxResident: %v", err)
	}
	pin.Release()
	readEach(t, r, room, crowd)
	if c := r.full.claim.Load(); c != 0 || p.waiting.Load() != 0 {
		t.Errorf("a claim of %d is left, and %d in line", c, p.waiting.Load())
	}
}
