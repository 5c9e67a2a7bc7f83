//go:build linux

package pager

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/prefetch"
)

// Reading ahead
//
// What a policy plans, and what the program asks for in advance, becomes jobs:
// runs of pages that are read when there is room. A job holds nothing; its
// pages are claimed only when a read for them can go out, so that a demand
// never waits behind more than what is already with the device. That is
// bounded three times: by 1/aheadShare of the queue depth, so that slots stay
// free; by a quarter of the budget; and by aheadFlight, or a little when
// misses come that nobody has foreseen, which would queue behind it in the
// device. What policies plan goes before what the program named in bulk, and
// beside surprises it may have more under way: somebody is about to need it.
const (
	maxJobs      = 4096
	aheadShare   = 2                     // prefetch takes at most 1/aheadShare of the queue
	aheadFlight  = 4 << 20               // bytes: four reads of a MiB are a device's full bandwidth, and are installed while still in the cache
	aheadPlans   = 4                     // plans run ahead of the reads by so many times what may be under way
	calmFlight   = 512 << 10             // bytes under way that were planned, while there are surprises …
	calmRun      = 256 << 10             // … in reads of so many
	calmBulk     = 128 << 10             // bytes of what was named: one read that a device is hardly longer busy with than with a page
	foreseenMost = 256                   // jobs that a page which is missed is looked for in
	surprise     = 50 * time.Millisecond // how long one is remembered: several reads of a slow device
)

type aheadJob struct {
	r    *Region
	next uint64
	end  uint64
	hint bool   // the program asked for it: flag the pages as touched, not prefetched
	mark uint64 // the page of it that is a marker, plus one; 0: none
}

type jobQueue struct {
	mu      sync.Mutex
	lists   [2]jobList   // what policies plan; what the program named
	pending atomic.Int32 // jobs in both
	planned atomic.Int64 // frames in the first
}

// jobList is a queue whose memory is used again and again.
type jobList struct {
	jobs []aheadJob // from head on
	head int
}

func (j *aheadJob) list() int {
	if j.hint {
		return 1
	}
	return 0
}

func (j *aheadJob) frames() int64 { return int64(j.end-j.next) * j.r.fpp }

// regionAhead is a region's side of prefetching.
type regionAhead struct {
	mu       sync.Mutex      // serialises the policy
	policy   prefetch.Policy // never nil
	normal   prefetch.Policy // while Advise(Sequential) has replaced policy
	learner  prefetch.Learner
	wants    atomic.Bool // the policy wants to see the bytes
	plan     prefetch.Plan
	jobs     []aheadJob // of the plan being queued
	told     prefetch.Feedback
	issued   atomic.Int64
	named    atomic.Int64 // of these, by the program: no merit of the policy
	used     atomic.Int64
	unused   atomic.Int64
	late     atomic.Int64
	disabled atomic.Bool // Advise(Random)

	// Events that came while the policy was busy, for whoever is done with it.
	missed   []prefetch.Event
	missedMu sync.Mutex
	missedN  atomic.Int32

	missedBack []prefetch.Event // the other half of a pair of slices; under mu
}

// maxMissed is how many events a busy policy is told of later; more are lost.
const maxMissed = 1024

func (r *Region) setPolicy(pol prefetch.Policy) {
	a := &r.ahead
	a.policy = pol
	a.learner, _ = pol.(prefetch.Learner)
	w, ok := pol.(prefetch.Wants)
	a.wants.Store(ok && w.WantsData())
}

// observe tells the policy of an event and queues what it plans. Somebody else
// being told something right now is no reason to wait: he is left the event.
func (r *Region) observe(ev prefetch.Event, wait bool) {
	a := &r.ahead
	if a.disabled.Load() {
		return
	}
	if wait {
		a.mu.Lock()
	} else if !a.mu.TryLock() {
		a.missedMu.Lock()
		if len(a.missed) < maxMissed {
			a.missed = append(a.missed, ev)
			a.missedN.Store(int32(len(a.missed)))
		}
		a.missedMu.Unlock()
		if !a.mu.TryLock() {
			return // he looks for it when he is done
		}
	} else {
		wait = true
	}
	if wait { // else the event is among the missed ones
		r.consult(ev)
	}
	for {
		r.tellMissed()
		a.mu.Unlock()
		// What has come between the last look and the unlock is nobody's yet.
		if a.missedN.Load() == 0 || !a.mu.TryLock() {
			return
		}
	}
}

// tellMissed tells the policy what came while it was busy. ahead.mu is held.
func (r *Region) tellMissed() {
	a := &r.ahead
	for a.missedN.Load() != 0 {
		a.missedMu.Lock()
		list := a.missed
		a.missed, a.missedBack = a.missedBack[:0], nil
		a.missedN.Store(0)
		a.missedMu.Unlock()
		for _, ev := range list {
			r.consult(ev)
		}
		a.missedBack = list
	}
}

// consult tells the policy of one event and takes over its plan. ahead.mu is held.
func (r *Region) consult(ev prefetch.Event) {
	a := &r.ahead
	if a.learner != nil {
		f := prefetch.Feedback{Issued: a.issued.Load() - a.named.Load(), Used: a.used.Load(), Unused: a.unused.Load(), Late: a.late.Load()}
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
	a.plan.Room = r.p.planRoom() / r.fpp
	a.plan.Budget = r.p.budget.Load() / r.fpp
	if ev.Kind == prefetch.Miss {
		ev.Late = r.p.foreseen(r, uint64(ev.Page))
	}
	a.policy.Observe(ev, &a.plan)
	if t != nil {
		r.p.hookDone(t)
	}
	r.queue(&a.plan)
	for _, run := range a.plan.Drop {
		r.cool(run)
	}
	// A miss that was planned, or could not be because more than can be read is
	// planned already, is no surprise: to read less ahead would bring more of them.
	if ev.Kind == prefetch.Miss && !ev.Late && len(a.plan.Runs) == 0 && a.plan.Room > 0 {
		r.p.surprised.Store(sinceStart())
	}
}

// queue makes jobs of a plan's runs. Markers are read with the run beside them.
func (r *Region) queue(plan *prefetch.Plan) {
	n := uint64(r.pageCount())
	jobs := r.ahead.jobs[:0]
	for _, run := range plan.Runs {
		if run.First >= 0 && run.N > 0 && uint64(run.First) < n {
			jobs = append(jobs, aheadJob{r: r, next: uint64(run.First), end: min(uint64(run.First+run.N), n)})
		}
	}
	if r.p.markerLimit(r) > 0 {
		for _, m := range plan.Marks {
			if m >= 0 && uint64(m) < n && !attach(jobs, uint64(m)) {
				r.p.addJob(aheadJob{r: r, next: uint64(m), end: uint64(m) + 1, mark: uint64(m) + 1})
			}
		}
	}
	for _, j := range jobs {
		r.p.addJob(j)
	}
	clear(jobs)
	r.ahead.jobs = jobs[:0]
}

// attach adds a marker to the first job beside it that has none.
func attach(jobs []aheadJob, mark uint64) bool {
	for i := range jobs {
		j := &jobs[i]
		switch {
		case j.mark != 0:
			continue
		case j.next == mark+1:
			j.next--
		case j.end == mark:
			j.end++
		default:
			continue
		}
		j.mark = mark + 1
		return true
	}
	return false
}

var started = time.Now()

// sinceStart is a monotonic clock in ns.
func sinceStart() int64 { return int64(time.Since(started)) }

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
	if r.ahead.disabled.Load() {
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
	if !r.ahead.wants.Load() || l.op.Err != nil || l.op.Buf == nil {
		return
	}
	for i := range l.gens {
		if pw, w := r.d.look(l.first + uint64(i)); pw == nil || !present(w) && !isMarker(w) {
			continue // it failed, or Verify refused it: nobody is to go by such bytes
		}
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
	l := &q.lists[j.list()]
	if k := len(l.jobs) - 1; k >= l.head && l.jobs[k].r == j.r && l.jobs[k].end == j.next && (j.mark == 0 || l.jobs[k].mark == 0) {
		l.jobs[k].end = j.end
		l.jobs[k].mark |= j.mark // one of them is 0
	} else if len(l.jobs)-l.head < maxJobs {
		if l.head > 0 && len(l.jobs) == cap(l.jobs) {
			l.jobs = l.jobs[:copy(l.jobs, l.jobs[l.head:])]
			l.head = 0
		}
		l.jobs = append(l.jobs, j)
		q.pending.Add(1)
	} else {
		q.mu.Unlock()
		return
	}
	if !j.hint {
		q.planned.Add(j.frames())
	}
	q.mu.Unlock()
}

// foreseen: the page is in a job of a policy's that waits for room, which is the
// next to go out from now on: who misses the page will need the rest of it.
func (p *Pager) foreseen(r *Region, page uint64) bool {
	q := &p.jobs
	if q.planned.Load() == 0 {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	l := &q.lists[0]
	for i := l.head; i < min(len(l.jobs), l.head+foreseenMost); i++ {
		if j := l.jobs[i]; j.r == r && page >= j.next && page < j.end {
			copy(l.jobs[l.head+1:i+1], l.jobs[l.head:i])
			l.jobs[l.head] = j
			return true
		}
	}
	return false
}

// first is the job whose turn it is. q.mu is held.
func (q *jobQueue) first() *aheadJob {
	for i := range q.lists {
		if l := &q.lists[i]; l.head < len(l.jobs) {
			return &l.jobs[l.head]
		}
	}
	return nil
}

// advance takes n pages off the front of a job, which may end it. q.mu is held.
func (q *jobQueue) advance(j *aheadJob, n uint64) {
	if !j.hint {
		q.planned.Add(-int64(n) * j.r.fpp)
	}
	if j.next += n; j.next < j.end {
		return
	}
	l := &q.lists[j.list()]
	*j = aheadJob{}
	if l.head++; l.head == len(l.jobs) {
		l.jobs, l.head = l.jobs[:0], 0
	}
	q.pending.Add(-1)
}

// dropJobs forgets the jobs of r.
func (p *Pager) dropJobs(r *Region) {
	q := &p.jobs
	q.mu.Lock()
	for i := range q.lists {
		l := &q.lists[i]
		kept := l.jobs[:0] // the head is behind: nothing is overwritten before it is read
		for _, j := range l.jobs[l.head:] {
			if j.r != r {
				kept = append(kept, j)
				continue
			}
			if !j.hint {
				q.planned.Add(-j.frames())
			}
			q.pending.Add(-1)
		}
		clear(l.jobs[len(kept):])
		l.jobs, l.head = kept, 0
	}
	q.mu.Unlock()
}

// aheadLimit is how many frames may be on their way in by prefetch.
func (p *Pager) aheadLimit() int64 {
	largest := p.largestPage.Load()
	if p.budget.Load() < 16*largest {
		return 0 // a few pages are for those who wait
	}
	return min(p.budget.Load()/4, max(aheadFlight>>frameShift, largest))
}

// aheadRoom is how many frames of j may be claimed now, and how many with one
// read: half of what may be under way, unless that is to be one read.
func (p *Pager) aheadRoom(j *aheadJob) (room, run int64) {
	room = p.aheadLimit()
	run = min(maxRun>>frameShift, max(room/2, j.r.fpp))
	if p.aheadLoads.Load() >= int32(max(1, p.opt.QueueDepth/aheadShare)) {
		return 0, run
	}
	if at := p.surprised.Load(); at != 0 && sinceStart()-at < int64(surprise) {
		flight, longest := int64(calmFlight), int64(calmRun)
		if j.hint {
			flight, longest = calmBulk, calmBulk
		}
		room, run = min(room, max(flight>>frameShift, j.r.fpp)), min(run, longest>>frameShift)
	}
	return room - p.aheadPages.Load(), run
}

// planRoom is what policies are told.
func (p *Pager) planRoom() int64 {
	return max(0, p.aheadLimit()*aheadPlans-p.aheadPages.Load()-p.jobs.planned.Load())
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
	holes := false // what was claimed last was less than it might have been
	for q.pending.Load() != 0 && p.waiting.Load() == 0 {
		q.mu.Lock()
		j := q.first()
		if j == nil {
			q.mu.Unlock()
			return
		}
		r := j.r
		if r.closing.Load() || p.aheadLimit() < r.fpp {
			q.advance(j, j.end-j.next)
			q.mu.Unlock()
			continue
		}
		room, run := p.aheadRoom(j)
		n := min(j.end-j.next, max(1, uint64(run/r.fpp)))
		if room < r.fpp || room < int64(n)*r.fpp && !holes {
			// A short read now would come back as room for another short one, until
			// there are nothing but reads of a page under way, each of which is
			// submitted by itself, and in front of every demand. What is under way
			// comes back as room for a long one. Where most of what is named is
			// there, the holes that make up one read go out together.
			q.mu.Unlock()
			return
		}
		first, hint, mark := j.next, j.hint, j.mark
		n = min(n, uint64(room/r.fpp))
		q.advance(j, n)
		q.mu.Unlock()
		if !r.enter() {
			continue
		}
		b.apart = run < maxRun>>frameShift // else it would become one long read after all
		got, ok := p.claimAhead(r, first, n, hint, mark, b)
		r.leave()
		if !ok {
			return
		}
		holes = got < n
	}
}

// claimAhead claims the Missing pages among n for prefetch, of which mark-1 may
// be a marker, and says how many there were. false: no frames.
func (p *Pager) claimAhead(r *Region, first, n uint64, hint bool, mark uint64, b *batch) (got uint64, ok bool) {
	have := int64(0) // frames
	for page := first; page < first+n; page++ {
		if pw, w := r.d.look(page); pw != nil && w&stateMask != stMissing {
			if hint {
				r.touchMarker(page)
			}
			continue
		}
		extra := flagPrefetched
		switch {
		case hint:
			extra = 0
		case page+1 == mark:
			extra |= flagMark
		}
		if have < r.fpp {
			// For all of them at once, so that whatever has to leave for them
			// leaves with few calls.
			want := int64(min(first+n-page, maxEvictBatch)) * r.fpp
			if p.reserve(r, want) != roomMade {
				if want = r.fpp; p.reserve(r, want) != roomMade {
					return got, false // have is 0
				}
			}
			have += want
		}
		_, gen, res := r.d.claim(page, extra)
		if res != claimed {
			continue
		}
		got++
		have -= r.fpp
		if r.d.past(page) {
			p.failPage(r, page, gen, stLoading, errRange)
			break
		}
		p.aheadPages.Add(r.fpp)
		r.ahead.issued.Add(1)
		p.stats.aheadIssued.Add(1)
		if hint {
			r.ahead.named.Add(1)
		}
		l := b.add(r, page, gen, ahead)
		l.marks = l.marks || extra&flagMark != 0
	}
	if have > 0 {
		p.unreserve(have)
	}
	return got, true
}

// readAhead queues a range that the program named, at most limit frames of it
// (0: half of the budget), and starts it as room allows.
func (r *Region) readAhead(pr pageRange, limit int64) {
	if limit == 0 {
		limit = r.p.budget.Load() / 2
	}
	pr.n = min(pr.n, max(1, uint64(limit/r.fpp)))
	r.p.addJob(aheadJob{r: r, next: pr.first, end: pr.first + pr.n, hint: true})
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
				r.p.addJob(aheadJob{r: r, next: page, end: page + 1, hint: true})
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
