//go:build linux

package pager

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/uffd"
)

// A burst of prefetch that the device is slow with leaves slots of the queue
// free: a demand read goes out at once and comes back before it.
func TestPrefetchLeavesSlotsFree(t *testing.T) {
	const depth = 8
	s := store.NewFaulty(store.NewMemory(4096*FrameSize), store.FaultyOptions{})
	p, r := rawMap(t, Options{Budget: 2048 * FrameSize, QueueDepth: depth}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	defer s.Release()
	s.Hold(store.OnRead)
	var offs []int64
	for page := range int64(200) {
		offs = append(offs, 2*page*FrameSize) // no two in one read
	}
	r.Prefetch(offs, 1)
	if n := s.Counts().Held; n != depth/aheadShare {
		t.Errorf("%d reads ahead are under way, want %d of %d slots", n, depth/aheadShare, depth)
	}
	const wanted = 4000
	got := make(chan error, 1)
	go func() {
		pin, err := r.Acquire(context.Background(), wanted*FrameSize, 1)
		if err == nil {
			pin.Release()
		}
		got <- err
	}()
	eventually(t, "the demand read goes out", func() bool {
		return s.StepOp(func(code aio.Code, off int64, _ int) bool { return off == wanted*FrameSize }) == 1
	})
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if n := s.Counts().Held; n != depth/aheadShare {
		t.Errorf("%d reads ahead are under way after the demand read", n)
	}
	s.Release()
	eventually(t, "all that was named is there", func() bool {
		n, _ := r.Residency(0, 400*FrameSize)
		return n == 200*FrameSize
	})
}

// What is named in bulk goes out as reads of a MiB up to what fills the device,
// with one submission; while misses come that nobody has foreseen, as one short
// read at a time, so that such a miss has no more than that before it.
func TestBulkGivesWayToSurprises(t *testing.T) {
	s := store.NewFaulty(store.NewMemory(64<<20), store.FaultyOptions{})
	p, r := rawMap(t, Options{Budget: 128 << 20}, s, RegionOptions{ReadOnly: true})
	defer p.Close()
	defer s.Release()
	s.Hold(store.OnRead)
	p.surprised.Store(1 << 62) // one that is never forgotten
	if err := r.Advise(0, 32<<20, WillNeed); err != nil {
		t.Fatal(err)
	}
	for turn := range 3 {
		if n := p.aheadPages.Load() << frameShift; n != calmBulk {
			t.Errorf("after %d reads %d bytes are under way beside surprises, want %d", turn, n, calmBulk)
		}
		if n := s.Counts().Held; n != 1 {
			t.Errorf("after %d reads %d are under way, want 1", turn, n)
		}
		s.Step(1)
	}
	p.surprised.Store(0)
	s.Step(1)
	eventually(t, "the device is full of reads", func() bool { return p.aheadPages.Load()<<frameShift > aheadFlight-maxRun })
	if n := p.aheadPages.Load() << frameShift; n > aheadFlight {
		t.Errorf("%d bytes are under way, want at most %d", n, aheadFlight)
	}
	s.Release()
	eventually(t, "all that was named is there", func() bool {
		n, _ := r.Residency(0, 32<<20)
		return n == 32<<20
	})
	if n := s.Counts().Reads; n > 32+6 {
		t.Errorf("%d reads for 32 MiB", n)
	}

	// What a policy plans has a little more: it is about to be needed.
	s.Hold(store.OnRead)
	defer s.Release()
	p.surprised.Store(1 << 62)
	p.addJob(aheadJob{r: r, next: 40 << 20 >> frameShift, end: 48 << 20 >> frameShift})
	p.pumpNow()
	if n := p.aheadPages.Load() << frameShift; n != calmFlight {
		t.Errorf("%d planned bytes are under way beside surprises, want %d", n, calmFlight)
	}
	if n := s.Counts().Held; n != calmFlight/calmRun {
		t.Errorf("%d planned reads are under way, want %d", n, calmFlight/calmRun)
	}
}

// A policy that takes its time holds up nobody, and is told afterwards of all
// that happened meanwhile.
func TestBusyPolicyIsToldLater(t *testing.T) {
	const pages = 300
	gate, busy := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var seen []int64
	policy := prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
		mu.Lock()
		seen = append(seen, e.Page)
		first := len(seen) == 1
		mu.Unlock()
		if first {
			close(busy)
			<-gate
		}
	})
	p, r := rawMap(t, Options{Budget: 1024 * FrameSize}, store.NewMemory(1024*FrameSize), RegionOptions{ReadOnly: true, Prefetch: policy})
	defer p.Close()
	read := func(page int64) {
		pin, err := r.Acquire(context.Background(), page*FrameSize, 1)
		if err != nil {
			t.Error(err)
			return
		}
		pin.Release()
	}
	var all sync.WaitGroup
	all.Go(func() { read(0) })
	<-busy
	for page := int64(1); page < pages; page++ {
		read(page) // would hang here
	}
	close(gate)
	all.Wait()
	told := func() []int64 {
		mu.Lock()
		defer mu.Unlock()
		l := slices.Clone(seen)
		slices.Sort(l)
		return l
	}
	eventually(t, "the policy knows all misses", func() bool { return len(told()) >= pages })
	for i, page := range told() {
		if int64(i) != page {
			t.Fatalf("told of page %d as number %d", page, i)
		}
	}
}

// Neighbours leave as one range, in whichever direction they come.
func TestNeighboursLeaveAsOneRange(t *testing.T) {
	p, r := rawMap(t, Options{Budget: 512 * FrameSize}, store.NewMemory(256*FrameSize), RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	if _, err := r.ReadAt(make([]byte, 1), 200*FrameSize); err != nil { // so that the page table does not leave as well
		t.Fatal(err)
	}
	up := []uint64{0, 1, 2, 3, 4, 5, 6, 7}
	down := slices.Clone(up)
	slices.Reverse(down)
	for _, c := range []struct {
		what  string
		pages []uint64
		want  int
	}{
		{"forward", up, 1},
		{"backward", down, 1},
		{"with a hole", []uint64{0, 1, 2, 5, 6}, 2},
		{"apart", []uint64{1, 3, 5, 7}, 4},
		{"to and fro", []uint64{4, 5, 3, 6, 2}, 1},
	} {
		buf := make([]byte, 8*FrameSize)
		if _, err := r.ReadAt(buf, 0); err != nil {
			t.Fatal(err)
		}
		var batch []zapEntry
		for _, page := range c.pages {
			_, w := r.d.look(page)
			batch = append(batch, zapEntry{d: r.d, page: page, seen: w})
		}
		ranges := make([]uffd.Range, len(batch))
		p.lockEvict()
		frames, _ := zapBatch(&batch[0], len(batch), &ranges[0], nil)
		for _, e := range batch {
			r.domain.policy.Remove(pageKey(e.d, e.page))
		}
		p.evictMu.Unlock()
		p.unreserve(frames)
		n, bytes := 0, uintptr(0)
		for _, g := range ranges {
			if g.Len != 0 {
				n++
				bytes += uintptr(g.Len)
			}
		}
		if n != c.want || bytes != uintptr(len(c.pages))*FrameSize || frames != int64(len(c.pages)) {
			t.Errorf("%s: %d ranges of %d bytes and %d frames, want %d ranges", c.what, n, bytes, frames, c.want)
		}
		for _, page := range c.pages {
			if pw, w := r.d.look(page); pw != nil && bare.Load64(pw)&stateMask != stMissing {
				t.Errorf("%s: page %d is still in state %d", c.what, page, w&stateMask)
			}
		}
	}
}

// Advise changes the policy under those who read. (It is the race detector that
// notices what goes wrong here.)
func TestAdviseAmongReaders(t *testing.T) {
	name, _ := stampFile(t, 64*FrameSize)
	_, r := mapFile(t, name, Options{Budget: 32 * FrameSize}, RegionOptions{ReadOnly: true})
	var wg sync.WaitGroup
	var done atomic.Int32
	for w := range int64(2) {
		wg.Go(func() {
			defer done.Add(1)
			for i := range int64(600) {
				if _, err := r.ReadAt(make([]byte, 1), (i+w*32)%64*FrameSize); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for done.Load() < 2 {
		for _, a := range []Advice{Sequential, Normal} {
			if err := r.Advise(0, 0, a); err != nil {
				t.Error(err)
			}
		}
		runtime.Gosched()
	}
	wg.Wait()
}

// Whatever a policy plans within the room it is told is read, also when no two of
// the pages are neighbours, so that each is a job by itself: there is no more room than
// places for those.
func TestWhatIsPlannedWithinTheRoomIsRead(t *testing.T) {
	const pages = 1 << 15
	planned := int64(0)
	policy := prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
		for n := plan.Room; n > 0 && 2*planned < pages; n-- {
			plan.Add(2*planned, 1)
			planned++
		}
	})
	s := store.NewFaulty(store.NewMemory(pages*FrameSize), store.FaultyOptions{})
	p, r := rawMap(t, Options{Budget: 2 * pages * FrameSize}, s, RegionOptions{ReadOnly: true, Prefetch: policy})
	defer p.Close()
	defer s.Release()
	s.Hold(store.OnRead)
	for range 3 {
		r.observe(prefetch.Event{Kind: prefetch.Miss, Page: 1}, true)
		p.pumpNow()
	}
	if planned < maxJobs/2 {
		t.Errorf("room for %d pages", planned)
	}
	s.Release()
	eventually(t, "all that was planned is there", func() bool {
		n, _ := r.Residency(0, pages*FrameSize)
		return n == planned*FrameSize
	})
}
