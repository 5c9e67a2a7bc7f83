//go:build linux

package pager

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// tightRegion is a region of 32 pages under a budget of 8, four of which are
// pinned, so that no credit is left. Pages 4 and 5 are Dirty by the slack of
// blocked stores, of which nothing is left either.
func tightRegion(t *testing.T) (p *Pager, r *Region, s *store.Faulty, unpin func()) {
	t.Helper()
	s = store.NewFaulty(store.NewMemory(32*FrameSize), store.FaultyOptions{Kernel: true})
	p, r = rawMap(t, Options{Budget: 8 * FrameSize, StallLimit: 10 * time.Second}, s,
		RegionOptions{Prefetch: prefetch.None(), Writeback: Writeback{Age: -1, DirtyShare: 1}})
	t.Cleanup(func() { p.Close() })
	needRaw(t, r) // else no store blocks, and no page is left to blocked stores
	var pins []Pin
	unpin = func() {
		pins[0].Release()
		pins = pins[1:]
	}
	t.Cleanup(func() {
		s.Release()
		for len(pins) > 0 {
			unpin()
		}
	})
	for page := range p.pinnable.Load() {
		pin, err := r.Acquire(context.Background(), page*FrameSize, 1)
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, pin)
	}
	slack := load64(&p.w.creditSlack)
	if len(pins) != 4 || slack != 2 || load64(&p.w.creditTight) != 0 {
		t.Fatalf("%d pins, slack %d, tight below %d: the test wants 4, 2, 0", len(pins), slack, -load64(&p.w.creditTight))
	}
	dirtyAsABlockedStore(t, r, 4)
	dirtyAsABlockedStore(t, r, 5)
	if !p.w.tight() {
		t.Fatalf("%d credits, and they are not tight", load64(&p.w.credits))
	}
	return p, r, s, unpin
}

// dirtyAsABlockedStore does to a page what serveWrite does for a store to it.
func dirtyAsABlockedStore(t *testing.T, r *Region, page uint64) {
	t.Helper()
	if err := r.need(page); err != nil {
		t.Fatal(err)
	}
	pw, w := r.d.look(page)
	if !unlockPage(r.d, pw, w, page, -load64(&r.p.w.creditSlack), true) {
		t.Fatalf("no credit for page %d; %d left", page, load64(&r.p.w.credits))
	}
}

func (r *Region) stateOf(page uint64) word {
	_, w := r.d.look(page)
	return w & stateMask
}

// TestTightCreditsAreNotClaimed: what blocked stores have beyond the limit stays
// theirs: their pages are not pinned and do not go on their way.
func TestTightCreditsAreNotClaimed(t *testing.T) {
	limit := reliefLimit
	t.Cleanup(func() { reliefLimit = limit })
	reliefLimit = time.Hour
	p, r, s, unpin := tightRegion(t)
	p.rescueNoMore() // it would clean pages now and then
	if pin, ok := r.TryAcquire(4*FrameSize, 1); ok {
		t.Error("a fifth page was pinned")
		pin.Release()
	}
	s.Hold(store.OnWrite)
	defer s.Release()
	p.flushForRoom()
	if a, b := r.stateOf(4), r.stateOf(5); a != stDirty || b != stDirty {
		t.Errorf("a page is on its way although blocked stores have no other to clean: states %d, %d", a, b)
	}

	// Somebody stands in line: what comes back pays for the slack first.
	got := make(chan error, 1)
	go func() {
		pin, err := r.Acquire(context.Background(), 9*FrameSize, 1)
		if err == nil {
			pin.Release()
		}
		got <- err
	}()
	eventually(t, "a request in line", func() bool { return p.lineLen[lineCredits].Load() == 1 })
	p.line.mu.Lock() // nobody writes back or serves the line meanwhile
	before := load64(&p.w.credits)
	p.line.mu.Unlock()
	unpin()
	p.line.mu.Lock()
	op := p.line.queue[lineCredits].head
	saved := op == nil || op.saved != 0
	p.line.mu.Unlock()
	if saved || load64(&p.w.credits) != before+1 {
		t.Errorf("a credit that came back went to the line with the stock at %d", before)
	}
	// Now one of the two may go, and one only.
	eventually(t, "a page on its way", func() bool { return r.stateOf(4) == stWriting || r.stateOf(5) == stWriting })
	p.flushForRoom()
	if r.stateOf(4) == r.stateOf(5) {
		t.Errorf("both pages are in state %d: none is left for a blocked store", r.stateOf(4))
	}
	s.Release()
	unpin() // room for the one in line
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestSyncOfTightPages: a Sync ends although its caller holds the pins, and the
// pages are not claimed for it: the rescuer writes them.
func TestSyncOfTightPages(t *testing.T) {
	p, r, _, _ := tightRegion(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if n := load64(&p.w.dirty); n != 0 {
		t.Errorf("%d frames are dirty after Sync", n)
	}
	if n := p.stats.writes.Load(); n != 2 {
		t.Errorf("%d writes: the rescuer writes pages one by one, the two of a Sync are one", n)
	}
}

// TestReadsOfTightPages: who needs a frame, and no credit, gets one of those that
// only blocked stores may clean: the rescuer cleans it.
func TestReadsOfTightPages(t *testing.T) {
	limit := reliefLimit
	t.Cleanup(func() { reliefLimit = limit })
	reliefLimit = time.Hour
	p, r, _, _ := tightRegion(t)
	// Once more, and so that nothing makes the rescuer look of itself.
	p.rescueNoMore()
	for page := uint64(4); page < 6; page++ {
		if r.stateOf(page) != stDirty {
			dirtyAsABlockedStore(t, r, page)
		}
	}
	eventually(t, "the rescuer rests", func() bool { return bare.Load32(&rescuer.armed) == 0 })
	p.rescueFrom()
	b := make([]byte, 1)
	for page := range int64(20) {
		if _, err := r.ReadAt(b, (10+page)*FrameSize); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTightCreditsLieWhereStoresFindThem: while they are tight no shard keeps any
// back.
func TestTightCreditsLieWhereStoresFindThem(t *testing.T) {
	p, _, _, unpin := tightRegion(t)
	p.credits.batch.Store(8)
	atomic.StoreUint32(&p.w.scarce, 1) // else the page keeps its credit
	before := load64(&p.w.credits)
	unpin()
	if now := load64(&p.w.credits); now != before+1 {
		t.Errorf("%d credits in the stock after a Release, and %d before", now, before)
	}
}

// TestSetBudgetLeavesSlack: a budget is not smaller before what is pinned fits
// in its pinnable part: with what blocked stores have beyond that it would seem
// to, and nothing would be left for them.
func TestSetBudgetLeavesSlack(t *testing.T) {
	p, r := rawMap(t, Options{Budget: 32 * FrameSize, StallLimit: 100 * time.Millisecond}, store.NewMemory(64*FrameSize),
		RegionOptions{Prefetch: prefetch.None(), Writeback: Writeback{Age: -1, DirtyShare: 1}})
	defer p.Close()
	var pins []Pin
	for page := range int64(5) {
		pin, err := r.Acquire(context.Background(), page*FrameSize, 1)
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, pin)
	}
	if err := p.SetBudget(8 * FrameSize); !errors.Is(err, ErrBudget) {
		t.Errorf("SetBudget(8 pages) with five of them pinned: %v", err)
	}
	pins[0].Release()
	if err := p.SetBudget(8 * FrameSize); err != nil {
		t.Errorf("SetBudget(8 pages) with four of them pinned: %v", err)
	}
	if s, l, m := load64(&p.w.creditSlack), load64(&p.w.creditLast), load64(&p.w.frameSlack); s != 2 || l != 2 || m != 0 {
		t.Errorf("afterwards slack is %d, the last %d, frames %d; want 2, 2, 0", s, l, m)
	}
	for _, pin := range pins[1:] {
		pin.Release()
	}
}
