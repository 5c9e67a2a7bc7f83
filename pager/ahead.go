//go:build linux

package pager

import (
	"sync"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/prefetch"
)

// Reading ahead
//
// What a policy plans, and what the program asks for in advance, becomes jobs:
// runs of pages that are read when there is room. A job holds nothing; its
// pages are claimed only when a read for them can go out at once, so that a
// demand never waits behind more than what is already with the device, and
// that is bounded: aheadShare of the queue depth and a quarter of the budget.
const (
	maxJobs    = 4096
	aheadShare = 2 // prefetch takes at most 1/aheadShare of the queue
)

type aheadJob struct {
	r    *Region
	next uint64
	end  uint64
	hint bool // the program asked for it: flag the pages as touched, not prefetched
}

type jobQueue struct {
	mu      sync.Mutex
	jobs    []aheadJob // from head on
	head    int        // so that the slice's memory is used again and again
	pending atomic.Int32
}

// regionAhead is a region's side of prefetching.
type regionAhead struct {
	mu       sync.Mutex // serialises the policy
	policy   prefetch.Policy
	normal   prefetch.Policy // while Advise(Sequential) has replaced policy
	learner  prefetch.Learner
	wants    bool
	plan     prefetch.Plan
	told     prefetch.Feedback
	issued   atomic.Int64
	used     atomic.Int64
	unused   atomic.Int64
	late     atomic.Int64
	disabled atomic.Bool // Advise(Random)
}

func (r *Region) setPolicy(pol prefetch.Policy) {
	a := &r.ahead
	a.policy = pol
	a.learner, _ = pol.(prefetch.Learner)
	if w, ok := pol.(prefetch.Wants); ok {
		a.wants = w.WantsData()
	}
}

// observe tells the policy of events and queues what it plans. Somebody else
// being told something right now is a reason to skip a miss, not to wait.
func (r *Region) observe(ev prefetch.Event, wait bool) {
	a := &r.ahead
	if a.policy == nil || a.disabled.Load() {
		return
	}
	if wait {
		a.mu.Lock()
	} else if !a.mu.TryLock() {
		return
	}
	if a.learner != nil {
		f := prefetch.Feedback{Issued: a.issued.Load(), Used: a.used.Load(), Unused: a.unused.Load(), Late: a.late.Load()}
		if f != a.told {
			a.told = f
			a.learner.Learn(f)
		}
	}
	var t *tracked
	if r.opt.Prefetch != nil {
		t = r.p.hook("prefetch.Policy", r, uint64(ev.Page), 1)
	}
	a.plan.Reset()
	a.plan.Pages = int64(r.pageCount())
	a.plan.PageSize = int64(r.PageSize())
	a.plan.Room = r.p.aheadRoom() / r.fpp
	a.plan.Budget = r.p.budget.Load() / r.fpp
	a.policy.Observe(ev, &a.plan)
	if t != nil {
		r.p.hookDone(t)
	}
	n := uint64(r.pageCount())
	for _, run := range a.plan.Runs {
		if run.First < 0 || run.N <= 0 || uint64(run.First) >= n {
			continue
		}
		r.p.addJob(aheadJob{r, uint64(run.First), min(uint64(run.First+run.N), n), false})
	}
	for _, run := range a.plan.Drop {
		r.cool(run)
	}
	a.mu.Unlock()
}

// cool makes what the policy is done with leave first.
func (r *Region) cool(run prefetch.Run) {
	n := int64(r.pageCount())
	first, end := max(0, run.First), min(n, run.First+run.N)
	r.p.evictMu.Lock()
	drop := r.domain.policy.Cold
	if d, ok := r.domain.policy.(evict.Dropper); ok {
		drop = d.Drop
	}
	for page := first; page < end; page++ {
		if pw, w := r.d.look(uint64(page)); pw != nil && present(w) {
			drop(pageKey(r.d, uint64(page)))
		}
	}
	r.p.evictMu.Unlock()
}

// predict tells the policy of the misses in b and adds what it plans to b.
func (p *Pager) predict(r *Region, b *batch) {
	if r.ahead.policy == nil || r.ahead.disabled.Load() {
		return
	}
	for _, l := range b.loads {
		if l.kind != demand || l.r != r {
			continue
		}
		// One event for each page, but a long Acquire needs no forecast.
		for i := range min(len(l.gens), 4) {
			r.observe(prefetch.Event{Kind: prefetch.Miss, Page: int64(l.first) + int64(i)}, false)
		}
	}
	p.pumpInto(b)
}

// firstTouch: somebody uses a page that was read ahead. w is its word.
func (r *Region) firstTouch(pw *word, w word, page uint64) {
	if !bare.Cas64(pw, w, w&^flagPrefetched) {
		return
	}
	r.ahead.used.Add(1)
	r.p.stats.aheadUsed.Add(1)
	r.observe(prefetch.Event{Kind: prefetch.Touch, Page: int64(page)}, false)
	r.p.pumpNow()
}

// lateTouch: somebody waits for a page whose prefetch is under way.
func (r *Region) lateTouch(page uint64) {
	pw, w := r.d.look(page)
	if pw == nil || w&flagPrefetched == 0 || !bare.Cas64(pw, w, w&^flagPrefetched) {
		return
	}
	r.ahead.late.Add(1)
	r.ahead.used.Add(1)
	r.p.stats.aheadLate.Add(1)
	r.p.stats.aheadUsed.Add(1)
	r.observe(prefetch.Event{Kind: prefetch.Touch, Page: int64(page), Late: true}, false)
	r.p.pumpNow()
}

// arrived shows the policy the bytes of a finished load, which is still in its
// buffer.
func (r *Region) arrived(l *load) {
	if !r.ahead.wants || l.op.Err != nil || l.op.Buf == nil {
		return
	}
	for i := range l.gens {
		off := i << r.shift
		r.observe(prefetch.Event{Kind: prefetch.Arrived, Page: int64(l.first) + int64(i), Data: l.op.Buf[off : off+1<<r.shift], Demand: l.kind == demand}, true)
	}
}

func (p *Pager) addJob(j aheadJob) {
	if p.aheadLimit() < j.r.fpp {
		return
	}
	q := &p.jobs
	q.mu.Lock()
	if k := len(q.jobs) - 1; k >= q.head && q.jobs[k].r == j.r && q.jobs[k].end == j.next && q.jobs[k].hint == j.hint {
		q.jobs[k].end = j.end
	} else if len(q.jobs)-q.head < maxJobs {
		if q.head > 0 && len(q.jobs) == cap(q.jobs) {
			q.jobs = q.jobs[:copy(q.jobs, q.jobs[q.head:])]
			q.head = 0
		}
		q.jobs = append(q.jobs, j)
		q.pending.Add(1)
	}
	q.mu.Unlock()
}

// dropJobs forgets the jobs of r.
func (p *Pager) dropJobs(r *Region) {
	q := &p.jobs
	q.mu.Lock()
	kept := q.jobs[:0] // the head is behind: nothing is overwritten before it is read
	for _, j := range q.jobs[q.head:] {
		if j.r != r {
			kept = append(kept, j)
		}
	}
	clear(q.jobs[len(kept):])
	q.jobs, q.head = kept, 0
	q.pending.Store(int32(len(kept)))
	q.mu.Unlock()
}

// aheadLimit is how many frames may be on their way in by prefetch.
func (p *Pager) aheadLimit() int64 {
	if p.budget.Load() < 16*p.largestPage.Load() {
		return 0 // a few pages are for those who wait
	}
	return min(p.budget.Load()/4, int64(max(1, p.opt.QueueDepth/aheadShare))*maxRun>>frameShift/4)
}

func (p *Pager) aheadRoom() int64 {
	return max(0, p.aheadLimit()-p.aheadPages.Load())
}

// pumpNow starts jobs outside of a batch.
func (p *Pager) pumpNow() {
	if p.jobs.pending.Load() == 0 {
		return
	}
	b := newBatch()
	p.pumpInto(b)
	p.submit(b)
}

// pump is pumpInto for a batch whose ops are flushed by the caller and whose
// loads are launched here.
func (p *Pager) pump(b *batch) {
	if p.jobs.pending.Load() == 0 {
		return
	}
	from := len(b.loads)
	p.pumpInto(b)
	for _, l := range b.loads[from:] {
		l.begun = now()
		p.launch(l, b)
	}
	b.loads = b.loads[:from]
}

// pumpInto claims pages of jobs into b as far as there is room.
func (p *Pager) pumpInto(b *batch) {
	q := &p.jobs
	for q.pending.Load() != 0 && p.waiting.Load() == 0 {
		q.mu.Lock()
		if len(q.jobs) == q.head {
			q.mu.Unlock()
			return
		}
		j := &q.jobs[q.head]
		r := j.r
		room := p.aheadRoom() / r.fpp
		if r.closing.Load() || p.aheadLimit() < r.fpp {
			j.next = j.end
		} else if room <= 0 {
			q.mu.Unlock()
			return
		}
		first := j.next
		n := min(j.end-j.next, uint64(max(room, 0)), max(1, uint64(maxRun>>r.shift)))
		hint := j.hint
		j.next += n
		if j.next >= j.end {
			*j = aheadJob{}
			if q.head++; q.head == len(q.jobs) {
				q.jobs, q.head = q.jobs[:0], 0
			}
			q.pending.Add(-1)
		}
		q.mu.Unlock()
		if n == 0 || !r.enter() {
			continue
		}
		ok := p.claimAhead(r, first, n, hint, b)
		r.leave()
		if !ok {
			return
		}
	}
}

// claimAhead claims the Missing pages among n for prefetch. false: no frames.
func (p *Pager) claimAhead(r *Region, first, n uint64, hint bool, b *batch) bool {
	extra := flagPrefetched
	if hint {
		extra = 0
	}
	for page := first; page < first+n; page++ {
		if pw, w := r.d.look(page); pw != nil && w&stateMask != stMissing {
			continue
		}
		if p.reserve(r, r.fpp) != roomMade {
			return false
		}
		_, gen, got := r.d.claim(page, extra)
		if got != claimed {
			p.w.giveFrames(r.fpp)
			continue
		}
		if r.d.past(page) {
			p.failPage(r, page, gen, stLoading, errRange)
			return true
		}
		p.aheadPages.Add(r.fpp)
		r.ahead.issued.Add(1)
		p.stats.aheadIssued.Add(1)
		b.add(r, page, gen, ahead)
	}
	return true
}

// readAhead queues a range that the program named, at most limit frames of it
// (0: half of the budget), and starts it as room allows.
func (r *Region) readAhead(pr pageRange, limit int64) {
	if limit == 0 {
		limit = r.p.budget.Load() / 2
	}
	pr.n = min(pr.n, max(1, uint64(limit/r.fpp)))
	r.p.addJob(aheadJob{r, pr.first, pr.first + pr.n, true})
	r.p.pumpNow()
}

// Prefetch names ranges of n bytes at offs that will be needed: what is not
// resident is read in the background, with one submission as far as there is
// room. It never waits, and costs next to nothing for what is resident.
// Ranges outside the region are ignored.
func (r *Region) Prefetch(offs []int64, n int64) {
	if n <= 0 || r.closing.Load() {
		return
	}
	length := r.Len()
	any := false
	for _, off := range offs {
		if off < 0 || off >= length {
			continue
		}
		pr := r.pageRange(off, min(n, length-off))
		for page := pr.first; page < pr.first+pr.n; page++ {
			if pw, w := r.d.look(page); pw == nil || w&stateMask == stMissing {
				r.p.addJob(aheadJob{r, page, page + 1, true})
				any = true
			}
		}
	}
	if any && r.enter() {
		r.observe(prefetch.Event{Kind: prefetch.Hint, Page: offs[0] >> r.shift}, false)
		r.p.pumpNow()
		r.leave()
	}
}
