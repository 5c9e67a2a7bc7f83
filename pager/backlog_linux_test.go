package pager

import (
	"context"
	"sync"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// More is planned than can be read ahead at once. Who misses a page in the midst of
// what waits for room has the rest of it read next; the policy is told that it need not plan
// it again; and neither that nor a miss for which there is no room to plan is a
// surprise, which would have still less read ahead.
func TestMissOfWhatWaitsForRoom(t *testing.T) {
	const run, long = 64, 256
	s := store.NewFaulty(store.NewMemory(16384*FrameSize), store.FaultyOptions{})
	var mu sync.Mutex
	late, room := map[int64]bool{}, map[int64]int64{}
	plans := map[int64][]int64{ // runs planned at the miss of a page
		0: {1000, 2000, 3000, 4000, 5000},
	}
	for i := range int64(150) { // more than is ever under way
		plans[1] = append(plans[1], 6000+i*(run+1))
	}
	p, r := rawMap(t, Options{Budget: 16384 * FrameSize, QueueDepth: 4}, s, RegionOptions{ReadOnly: true,
		Prefetch: prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
			if e.Kind != prefetch.Miss {
				return
			}
			mu.Lock()
			late[e.Page], room[e.Page] = e.Late, plan.Room
			mu.Unlock()
			plan.Known = e.Page == 4
			for _, first := range plans[e.Page] {
				n := int64(run)
				if first == 4000 {
					n = long
				}
				plan.Add(first, n)
			}
		})})
	defer p.Close()
	defer s.Release()
	s.Hold(store.OnRead)
	var all sync.WaitGroup
	miss := func(page int64) {
		all.Go(func() {
			pin, err := r.Acquire(context.Background(), page*FrameSize, 1)
			if err != nil {
				t.Error(err)
				return
			}
			pin.Release()
		})
		eventually(t, "the read of a miss goes out", func() bool {
			return s.StepOp(func(_ aio.Code, off int64, n int) bool { return off == page*FrameSize && n == FrameSize }) == 1
		})
		all.Wait()
	}
	goesOut := func(first int64) int { // and comes back
		return s.StepOp(func(_ aio.Code, off int64, n int) bool { return off>>frameShift == first && n > FrameSize })
	}
	miss(0) // half of four slots: the runs at 1000 and 2000 are under way
	miss(4000 + long/2)
	if !late[4000+long/2] || late[0] {
		t.Errorf("late: %v", late)
	}
	if goesOut(3000) != 0 || goesOut(1000) != 1 {
		t.Fatal("not the first two runs are under way")
	}
	if goesOut(3000) != 0 || goesOut(4000) != 1 || goesOut(4000+long/2+1) != 1 {
		t.Error("the run of which a page is missed is not the next")
	}
	if goesOut(3000) != 1 {
		t.Error("and the one before it not the one after it")
	}
	miss(1)
	miss(2)
	if room[2] != 0 {
		t.Fatalf("room for %d pages with so many planned", room[2])
	}
	if p.surprised.Load() != 0 {
		t.Error("a miss was a surprise although it was planned, or there was no room to plan it")
	}
	s.Release()
	eventually(t, "all that was planned has come", func() bool { return p.jobs.pending.Load() == 0 && p.aheadLoads.Load() == 0 })
	touchAll(t, r, "Acquire", []int64{4})
	if p.surprised.Load() != 0 {
		t.Error("a miss was a surprise although the policy knows it")
	}
	touchAll(t, r, "Acquire", []int64{3})
	if p.surprised.Load() == 0 {
		t.Error("a miss that nobody has foreseen is no surprise")
	}
}

// What is claimed for those who miss what is planned, and waits for its turn, takes
// neither the budget nor the queue depth away from a miss that nobody has planned.
func TestClaimsForMissesLeaveRoom(t *testing.T) {
	const run, wanted = 64, 7000
	for name, o := range map[string]Options{
		"in the budget":      {Budget: 256 * FrameSize},
		"in the queue depth": {Budget: 16384 * FrameSize, QueueDepth: 8},
	} {
		t.Run(name, func(t *testing.T) {
			s := store.NewFaulty(store.NewMemory(8192*FrameSize), store.FaultyOptions{})
			p, r := rawMap(t, o, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
			defer p.Close()
			defer s.Release()
			s.Hold(store.OnRead)
			for i := range uint64(20) {
				p.addJob(aheadJob{r: r, next: 100 * i, end: 100*i + run})
			}
			p.pumpNow()
			var waits []func()
			miss := func(page uint64) {
				before := p.stats.misses.Load() + p.stats.joined.Load()
				waits = append(waits, touchesUnderWay(t, r, page))
				eventually(t, "a page is on its way, or waits for room", func() bool {
					return p.stats.misses.Load()+p.stats.joined.Load() > before || p.waiting.Load() != 0
				})
			}
			for i := range uint64(3) {
				miss(100 * (15 + i))
			}
			if n, most := p.aheadPages.Load(), p.budget.Load()/aheadQuarter; n > most {
				t.Errorf("%d frames are taken by reads ahead, want %d at most", n, most)
			}
			if n, most := p.aheadLoads.Load(), p.aheadReads(); n > most {
				t.Errorf("there are %d reads ahead, want %d at most", n, most)
			}
			miss(wanted)
			if n := p.waiting.Load(); n != 0 {
				t.Error("a miss waits for frames that reads ahead have")
			}
			s.Release()
			for _, wait := range waits {
				wait()
			}
		})
	}
}

// Nothing is claimed in a budget of a few pages, whatever was planned before it was so
// small; nor while others wait for frames.
func TestNothingIsClaimedWhereFramesAreFew(t *testing.T) {
	p, r := rawMap(t, Options{Budget: 256 * FrameSize}, store.NewMemory(1024*FrameSize), RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	p.addJob(aheadJob{r: r, next: 100, end: 200})
	b := newBatch()
	p.waiting.Add(1)
	if p.claimPlanned(r, 100, b) {
		t.Error("a run is claimed while somebody waits for frames")
	}
	p.waiting.Add(-1)
	b.free()
	if err := p.SetBudget(8 * FrameSize); err != nil {
		t.Fatal(err)
	}
	touchAll(t, r, "Acquire", []int64{100})
	if n := p.Stats().Prefetch.Issued; n != 0 {
		t.Errorf("%d pages are read ahead in a budget of 8", n)
	}
}
