package pager

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// What many scans at once depend on.

// A policy that is busy while readers go through what was read ahead, in whichever
// direction, is told of every page of it afterwards, in order.
func TestBusyPolicyLosesNoTouch(t *testing.T) {
	const each = 3 * maxMissed
	var seen []int64
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, store.NewMemory(64*FrameSize), RegionOptions{ReadOnly: true,
		Prefetch: prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) { seen = append(seen, e.Page) })})
	defer p.Close()
	var want []int64
	touch := func(page int64) {
		want = append(want, page)
		r.observe(prefetch.Event{Kind: prefetch.Touch, Page: page}, false)
	}
	r.ahead.mu.Lock() // the policy is busy
	for i := range int64(each) {
		touch(i)
	}
	for i := range int64(each) {
		touch(1<<20 - i)
	}
	touch(7)
	touch(9)
	touch(10)
	r.ahead.mu.Unlock()
	touch(5)
	// The one who found it at leisure goes before those who did not.
	want = append([]int64{5}, want[:len(want)-1]...)
	if len(seen) != len(want) {
		t.Fatalf("told of %d pages, want %d", len(seen), len(want))
	}
	for i := range want {
		if seen[i] != want[i] {
			t.Fatalf("told of page %d as number %d, want %d", seen[i], i, want[i])
		}
	}
}

// What a policy is done with leaves first, and a policy does not wait for a batch
// that is leaving in order to say so.
func TestDropDoesNotWaitForEviction(t *testing.T) {
	p, r := rawMap(t, Options{Budget: 256 * FrameSize}, store.NewMemory(512*FrameSize), RegionOptions{ReadOnly: true,
		Prefetch: prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
			if e.Page == 300 {
				plan.Behind(40, 10)
				plan.Behind(50, 10)
				plan.Behind(500, 100) // the end of it
			}
		})})
	defer p.Close()
	touchAll(t, r, "Acquire", ascending(128))
	p.evictMu.Lock()
	said := within(t, 20*time.Second, "observe", func() {
		r.observe(prefetch.Event{Kind: prefetch.Hint, Page: 300}, true)
	})
	p.evictMu.Unlock()
	if !said {
		return
	}
	p.evictSome(20)
	if n, _ := r.Residency(40*FrameSize, 20*FrameSize); n != 0 {
		t.Errorf("%d bytes of what the policy is done with are left", n)
	}
	if n, _ := r.Residency(0, 128*FrameSize); n != 108*FrameSize {
		t.Errorf("%d bytes are resident, want %d", n, 108*FrameSize)
	}

	// What is said of a closed region is forgotten, and what is said of no eviction
	// does not grow.
	for i := range int64(2 * maxDrops) {
		p.drops.add(r, []prefetch.Run{{First: i % 256 * 2, N: 1}})
	}
	if n := p.drops.n.Load(); n != maxDrops {
		t.Errorf("%d runs to be dropped are remembered, want %d", n, maxDrops)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if n := p.drops.n.Load(); n != 0 {
		t.Errorf("%d runs to be dropped are remembered of a closed region", n)
	}
}

// onEvict calls f before it evicts, once.
type onEvict struct {
	evict.Policy
	f atomic.Pointer[func()]
}

func (o *onEvict) Evict(n int, take func(evict.Page) evict.Verdict) int {
	if f := o.f.Swap(nil); f != nil {
		(*f)()
	}
	return o.Policy.Evict(n, take)
}

// Who misses a page of a run that is just being claimed misses something that is
// planned: the policy must not take it for a page that was evicted before its use.
func TestMissOfWhatIsBeingClaimed(t *testing.T) {
	const first, run = 1000, 32 // of which eight are read at once
	late := make(chan bool, 1)
	ev := &onEvict{Policy: evict.NewFIFO()}
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, store.NewMemory(2048*FrameSize), RegionOptions{ReadOnly: true, Evict: ev,
		Prefetch: prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
			switch {
			case e.Kind != prefetch.Miss:
			case e.Page == 500:
				plan.Add(first, run)
			case e.Page == first+4:
				late <- e.Late
			}
		})})
	defer p.Close()
	for page := int64(0); load64(&p.w.free) > 10; page++ { // not enough for eight pages, and more than the fault server's
		touchAll(t, r, "Acquire", []int64{page})
	}
	var all sync.WaitGroup
	told := false
	f := func() {
		all.Go(func() {
			pin, err := r.Acquire(context.Background(), (first+4)*FrameSize, 1)
			if err != nil {
				t.Error(err)
				return
			}
			pin.Release()
		})
		select {
		case l := <-late:
			if told = true; !l {
				t.Error("a miss of a run that is being claimed is not late")
			}
		case <-time.After(20 * time.Second):
		}
	}
	ev.f.Store(&f)
	touchAll(t, r, "Acquire", []int64{500})
	all.Wait()
	if !told {
		t.Error("the policy was not told of the miss while the run was being claimed")
	}
	if n := p.jobs.takenN.Load(); n != 0 || len(p.jobs.taken) != 0 {
		t.Errorf("%d runs are still being claimed", n)
	}
}

// Who misses a page that is planned and waits for room has its run read, with one read
// that goes out before the others and when there is room for it: so many streams wait
// once each for a run, and no more is under way because of them.
func TestMissOfWhatIsPlannedReadsItsRun(t *testing.T) {
	const runs, run, apart = 40, 64, 100
	first := func(i uint64) uint64 { return 100 + i*apart }
	s := store.NewFaulty(store.NewMemory(8192*FrameSize), store.FaultyOptions{})
	p, r := rawMap(t, Options{Budget: 128 << 20}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	defer s.Release()
	s.Hold(store.OnRead)
	for i := range uint64(runs) {
		p.addJob(aheadJob{r: r, next: first(i), end: first(i) + run})
	}
	p.addJob(aheadJob{r: r, next: first(runs), end: first(runs) + 5*run})
	p.pumpNow()
	if n := p.aheadPages.Load(); n != aheadFlight>>frameShift {
		t.Fatalf("%d pages are under way, want %d", n, aheadFlight>>frameShift)
	}
	wait := touchesUnderWay(t, r,
		first(30),           // the first of a run
		first(31)+run-1,     // the last of one
		first(32)+20,        // one between
		first(runs),         // of a longer one the first,
		first(runs)+5*run-1) // and the last
	eventually(t, "the runs wait for room", func() bool { return p.queue.n.Load() == 5 })
	if ahead, all := p.aheadOut.Load(), p.flight.Load(); ahead != aheadFlight || all != ahead {
		t.Errorf("%d bytes are under way, %d of them read ahead, want %d", all, ahead, aheadFlight)
	}
	for _, want := range []uint64{first(30), first(31), first(32), first(runs), first(runs) + 4*run} {
		for page := want; page < want+run; page++ {
			if pw, w := r.d.look(page); pw == nil || w&stateMask != stLoading {
				t.Fatalf("page %d of the run from %d is not on its way", page, want)
			}
		}
	}
	s.Release()
	wait()
	eventually(t, "all that was planned is there", func() bool { return p.jobs.pending.Load() == 0 && p.aheadLoads.Load() == 0 })
	if n := p.Stats().Reads; n != runs+3 {
		t.Errorf("%d reads, want %d", n, runs+3)
	}
	if n := p.aheadOut.Load(); n != 0 {
		t.Errorf("%d bytes are under way for ever", n)
	}
}

// touchesUnderWay begins to acquire pages, and returns how to wait for that.
func touchesUnderWay(t *testing.T, r *Region, pages ...uint64) (wait func()) {
	var wg sync.WaitGroup
	for _, page := range pages {
		wg.Go(func() {
			pin, err := r.Acquire(context.Background(), int64(page*FrameSize), 1)
			if err != nil {
				t.Error(err)
			}
			pin.Release()
		})
	}
	return wg.Wait
}

// Who is parked in raw memory found the page missing: when it has come by the time
// that somebody looks after him, the policy is told that it came too late, and does
// not conclude that it is told of hits.
func TestTouchOfWhatHasComeMeanwhileIsLate(t *testing.T) {
	var events []prefetch.Event
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, store.NewMemory(64*FrameSize), RegionOptions{ReadOnly: true,
		Prefetch: prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
			if events = append(events, e); e.Kind == prefetch.Miss {
				plan.Add(e.Page+1, 2)
			}
		})})
	defer p.Close()
	touchAll(t, r, "Acquire", []int64{10})
	eventually(t, "what was planned is there", func() bool {
		n, _ := r.Residency(10*FrameSize, 3*FrameSize)
		return n == 3*FrameSize
	})
	for page, parked := range map[uint64]bool{11: true, 12: false} {
		op := newOp(r)
		op.isPark = parked
		b := newBatch()
		if frames, _ := p.startPage(op, page, b); frames != 0 {
			t.Errorf("page %d is read again", page)
		}
		b.free()
		op.free()
		if e := events[len(events)-1]; e.Kind != prefetch.Touch || e.Page != int64(page) || e.Late != parked {
			t.Errorf("page %d: the policy is told of %+v, want late %v", page, e, parked)
		}
	}
	if late := r.Stats().Prefetch.Late; late != 1 {
		t.Errorf("%d pages came late, want 1", late)
	}
}

// Buffers that are needed again and again stay; those that are not go.
func TestIdleBuffersAreTrimmed(t *testing.T) {
	const n = 20
	bp := &bufferPool{armed: true} // it is trimmed by hand
	trim := func() {
		bp.trim()
		if bp.timer != nil {
			bp.timer.Stop()
		}
		bp.armed = true
	}
	var out []*buffer
	take := func() {
		for range n {
			out = append(out, bp.get(1<<20))
		}
	}
	giveBack := func() {
		for _, b := range out {
			bp.put(b)
		}
		out = out[:0]
	}
	for range 3 {
		take()
		giveBack()
		trim()
		if got := bp.bytes.Load(); got != n<<20 {
			t.Fatalf("%d bytes are left of %d that are needed all the time", got, n<<20)
		}
	}
	trim()
	if got := bp.bytes.Load(); got != bufferKeep || bp.idle != bufferKeep || bp.large != bufferKeep {
		t.Errorf("%d bytes (%d, %d idle) are left when nothing is needed, want %d", got, bp.idle, bp.large, bufferKeep)
	}
	for range bufferMost>>20 + 8 {
		out = append(out, bp.get(1<<20))
	}
	giveBack()
	if got := bp.bytes.Load(); got != bufferMost {
		t.Errorf("%d bytes are idle, want %d at most", got, bufferMost)
	}
	trim()
	trim()
	if got := bp.bytes.Load(); got != bufferKeep {
		t.Errorf("%d bytes are left in the end", got)
	}
	out = append(out, bp.get(1<<20))
	giveBack()
	for bp.free[8] != nil { // the test's own
		bp.unmap(bp.get(1 << 20))
	}
}

// What many scans leave behind them leaves by several windows at a time, and what
// random work does as it was; an order that is asked for is kept.
func TestScansLeaveByWindows(t *testing.T) {
	const pages, scans = 1 << 15, 16
	perBatch := func(o Options, order []int64) int64 {
		o.Budget = pages / 2 * FrameSize
		p, r := rawMap(t, o, store.NewMemory(pages*FrameSize), RegionOptions{ReadOnly: true})
		defer p.Close()
		touchAll(t, r, "Acquire", order)
		s := p.Stats()
		if s.EvictBatches == 0 || s.PeakResident > s.Budget {
			t.Fatalf("%d evictions, %d bytes resident", s.Evictions, s.PeakResident)
		}
		return s.Evictions / s.EvictBatches
	}
	var interleaved []int64
	for i := int64(0); i < pages/scans; i += 32 {
		for s := range int64(scans) {
			for k := range int64(32) {
				interleaved = append(interleaved, s*pages/scans+i+k)
			}
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	random := make([]int64, pages)
	for i := range random {
		random[i] = rng.Int64N(pages)
	}
	if n := perBatch(Options{}, interleaved); n < 2*64 {
		t.Errorf("%d pages of scans leave with one call", n)
	}
	if n := perBatch(Options{}, random); n > 64 {
		t.Errorf("%d random pages leave with one call", n)
	}
	if n := perBatch(Options{EvictBatch: 32}, interleaved); n > 64 {
		t.Errorf("%d pages leave with one call, where 32 are asked for", n)
	}
}
