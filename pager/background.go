//go:build linux

package pager

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/pager/writeback"
)

// Writing in the background
//
// At each tick the housekeeper looks at every region that has dirty pages.
// Either the clock, the share of dirty pages, or the region's policy says what
// is to be written: the sweep. It goes out as reads leave room: nothing while
// reads wait for the device, else at most a quarter of the queue depth at a
// time, and no faster than Writeback.Rate.

// background is the housekeeper's side of one region's writing. Nobody else
// looks at it.
type background struct {
	since  time.Time // when the region was last seen without dirty pages, or swept
	begun  time.Time // of the sweep
	sweep  []dirtyPage
	tokens int64 // bytes that Rate allows now
	filled time.Time

	plan  writeback.Plan
	shown map[uint64]uint64 // by group: pages the policy takes for dirty
}

const (
	backgroundShare = 4 // background writes take at most 1/backgroundShare of the queue
	defaultShare    = 0.25
	defaultAge      = 5 * time.Second
)

// flushTick is the housekeeper's look at dirty pages.
func (p *Pager) flushTick() {
	if load64(&p.w.dirty) == 0 && !p.flush.sweeping && !p.flush.aging {
		return
	}
	now := time.Now()
	sweeping, aging := false, false
	for _, r := range p.regionList() {
		if r.opt.ReadOnly || !r.enter() {
			continue
		}
		r.background(now)
		sweeping = sweeping || len(r.write.back.sweep) > 0 || len(r.write.back.shown) > 0
		aging = aging || !r.write.back.since.IsZero()
		r.leave()
	}
	p.flush.sweeping, p.flush.aging = sweeping, aging
}

// background starts what is to be written of r now.
func (r *Region) background(now time.Time) {
	b, o := &r.write.back, &r.opt.Writeback
	if o.Policy != nil {
		r.askPolicy(now)
	}
	dirty := load64(&r.d.dirty)
	if dirty == 0 {
		b.since, b.sweep = time.Time{}, b.sweep[:0]
		return
	}
	if b.since.IsZero() {
		b.since = now
	}
	age := o.Age
	if age == 0 {
		age = defaultAge
		if r.atomic != nil {
			age = -1 // what is stored to again before the commit would be written twice
		}
	}
	if o.Policy == nil && !o.NoSteal && len(b.sweep) == 0 {
		switch limit := r.shareLimit(); {
		case age > 0 && now.Sub(b.since) > age:
			b.since, b.begun = now, now
			b.sweep = r.p.collectDirty(b.sweep[:0], r.d, 0)
		case dirty > limit:
			b.begun = now
			b.sweep = r.p.collectDirty(b.sweep[:0], r.d, int(min(1024, (dirty-limit)/r.fpp+1)))
		}
	}
	r.write.mu.Lock()
	wait := now.Before(r.write.retryAt)
	r.write.mu.Unlock()
	if len(b.sweep) == 0 || wait || o.NoSteal {
		return
	}
	overdue := age > 0 && now.Sub(b.begun) > age
	writes, frames := r.p.backgroundRoom(overdue)
	frames += r.fpp - 1 // one page may be larger than what all writes together are to have
	n := min(r.within(b.sweep, writes), frames/r.fpp, r.refill(now)>>r.shift)
	if n <= 0 {
		return
	}
	// What has become clean meanwhile is not written, and not paid for.
	b.tokens -= int64(r.p.writeBack(b.sweep[:n], writeAge)) << r.shift
	b.sweep = b.sweep[n:]
	if len(b.sweep) == 0 {
		b.sweep = nil
	}
}

// shareLimit is how many dirty frames of the region are left alone by background
// writing.
func (r *Region) shareLimit() int64 {
	share := r.opt.Writeback.DirtyShare
	if share == 0 {
		share = defaultShare
	}
	return int64(share * float64(r.p.budget.Load()))
}

// backgroundRoom is how many writes may be started in the background now, and of how
// many frames.
func (p *Pager) backgroundRoom(overdue bool) (writes, frames int64) {
	if p.queue.n.Load() != 0 && !overdue {
		return 0, 0
	}
	writes = int64(max(1, p.opt.QueueDepth/backgroundShare)) - p.flush.ios.Load()
	return writes, min(writes*copyMax, p.writeRoom())
}

// within is how many pages of list, from the first on, so many writes are enough for.
func (r *Region) within(list []dirtyPage, writes int64) (n int64) {
	if r.atomic != nil {
		return int64(len(list)) // into slots that follow one another, wherever they are from
	}
	last := uint64(math.MaxUint64 - 1) // the page that was counted last
	for _, pg := range list {
		if r.dirtyRun(pg.page, 1) == 1 {
			if pg.page != last+1 {
				writes--
			}
			last = pg.page
		}
		if writes < 0 {
			break
		}
		n++
	}
	return n
}

// refill adds what Rate allows since the last time and returns the tokens. They
// are kept for a quarter of a second, or one page.
func (r *Region) refill(now time.Time) int64 {
	b, rate := &r.write.back, r.opt.Writeback.Rate
	if rate == 0 {
		return 1 << 62
	}
	most := max(rate/4, 1<<r.shift)
	if b.filled.IsZero() {
		b.tokens = most
	} else {
		d := min(now.Sub(b.filled), time.Second)
		b.tokens = min(most, b.tokens+int64(float64(rate)*d.Seconds()))
	}
	b.filled = now
	return b.tokens
}

// began counts a write that is about to start.
func (p *Pager) began(why writeWhy) {
	if why == writeAge {
		p.flush.ios.Add(1)
	}
}

// backgroundDone is told of the end of each write in the background: the
// housekeeper goes on with its sweeps before they have run dry.
func (p *Pager) backgroundDone() {
	if n := p.flush.ios.Add(-1); n <= int64(p.opt.QueueDepth/backgroundShare/2) {
		p.rouse()
	}
}

// askPolicy tells the region's policy what has changed, and makes what it
// plans the sweep.
func (r *Region) askPolicy(now time.Time) {
	b := &r.write.back
	plan := &b.plan
	r.p.hook("writeback.Policy", r, 0, 0, func() { r.tellPolicy(now, plan) })
	b.sweep, b.begun = b.sweep[:0], now
	for _, run := range plan.Runs {
		first, end := max(0, run.First), min(run.First+run.N, plan.Pages)
		for page := first; page < end; page++ {
			if b.shown[uint64(page)>>leafShift]>>(page&(leafPages-1))&1 != 0 && r.d.mayClean(uint64(page)) {
				b.sweep = append(b.sweep, dirtyPage{r.d, uint64(page)})
			}
		}
	}
}

// tellPolicy tells the policy what has changed, which makes it plan.
func (r *Region) tellPolicy(now time.Time, plan *writeback.Plan) {
	b := &r.write.back
	if b.shown == nil {
		b.shown = map[uint64]uint64{}
	}
	plan.Reset()
	plan.Dirty, plan.Writing = load64(&r.d.dirty)/r.fpp, r.write.inflight.Load()
	plan.Limit, plan.Pages = r.p.pinnable.Load()/r.fpp, int64(r.pageCount())
	plan.Reads = int64(r.p.inflight.Load()) + int64(r.p.queue.n.Load())
	ev := writeback.Event{Now: now.Sub(r.begun)}
	tell := func(kind writeback.Kind, group, bits uint64) {
		ev.Kind = kind
		for k := range uint64(leafPages) {
			if bits>>k&1 != 0 {
				ev.Page = int64(group<<leafShift + k)
				r.opt.Writeback.Policy.Observe(ev, plan)
			}
		}
	}
	for group, was := range b.shown {
		is := r.dirtyBits(group)
		tell(writeback.Clean, group, was&^is)
		if b.shown[group] = was & is; was&is == 0 {
			delete(b.shown, group)
		}
	}
	for leaf := uint32(1); leaf <= atomic.LoadUint32(&sp.leafUsed); leaf++ {
		m := metaOf(leaf)
		bits, group := atomic.LoadUint64(&m.dirty), atomic.LoadUint64(&m.group)
		if bits == 0 || atomic.LoadUint32(&m.desc) != r.d.index || !r.d.owns(leaf, group) {
			continue
		}
		if fresh := bits &^ b.shown[group]; fresh != 0 {
			b.shown[group] |= fresh
			tell(writeback.Dirty, group, fresh)
		}
	}
	// What the policy has been told, and not what has happened meanwhile.
	plan.Dirty = plan.Writing
	for _, group := range b.shown {
		plan.Dirty += int64(bits.OnesCount64(group))
	}
	ev.Kind, ev.Page = writeback.Tick, 0
	r.opt.Writeback.Policy.Observe(ev, plan)
}

// dirtyBits is which pages of a group have changes that are in no write.
func (r *Region) dirtyBits(group uint64) uint64 {
	leaf := uint32(atomic.LoadUint64(r.d.dirEntry(group<<leafShift))) & dirLeafMask
	if leaf == 0 {
		return 0
	}
	m := metaOf(leaf)
	bits := atomic.LoadUint64(&m.dirty)
	if atomic.LoadUint32(&m.desc) != r.d.index || atomic.LoadUint64(&m.group) != group {
		return 0
	}
	return bits
}
