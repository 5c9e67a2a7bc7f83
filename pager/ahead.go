//go:build linux

package pager

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
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
//
// Who misses a page that is planned and had no room yet will need the rest of its
// run: all of it is claimed (claimPlanned) and read by one read, which goes before
// what nobody waits for, and may have to wait for its turn: then it is bounded by the
// queue depth and the budget alone (wantedRoom). So many streams that together are
// faster than the device each wait once for a run, and not for its pages one after
// the other.
const (
	maxJobs      = 4096                  // of policies, and as many that the program named
	jobsSpare    = 512                   // of these, for markers and for what is planned for two regions at once
	aheadShare   = 2                     // prefetch takes at most 1/aheadShare of the queue …
	aheadQuarter = 4                     // … and 1/aheadQuarter of the budget
	aheadFlight  = 4 << 20               // bytes: four reads of a MiB are a device's full bandwidth, and are installed while still in the cache
	movedFlight  = 8 << 20               // the same where pages are moved: the cache does not matter then, and four are not many
	wantedRun    = 256 << 10             // bytes of a read of what is planned and missed
	aheadPlans   = 8                     // plans run ahead of the reads by so many times what may be under way
	calmFlight   = 512 << 10             // bytes under way that were planned, while there are surprises …
	calmRun      = 256 << 10             // … in reads of so many
	calmBulk     = 128 << 10             // bytes of what was named: one read that a device is hardly longer busy with than with a page
	eventsMost   = 4                     // misses that a policy is told of for one call
	foreseenMost = 256                   // jobs that a page which is missed is looked for in
	surprise     = 50 * time.Millisecond // how long one is remembered: several reads of a slow device
)

// regionAhead is a region's side of prefetching.
type regionAhead struct {
	mu       sync.Mutex        // serialises the policy
	policy   prefetch.Policy   // never nil
	normal   prefetch.Policy   // while Advise(Sequential) has replaced policy, and …
	normals  prefetch.Feedback // … what became of its reads until then
	learner  prefetch.Learner
	wants    atomic.Bool // the policy wants to see the bytes
	plan     prefetch.Plan
	jobs     []aheadJob // of the plan being queued
	told     prefetch.Feedback
	before   prefetch.Feedback // of other policies: not policy's merit
	issued   atomic.Int64
	named    atomic.Int64 // of these, by the program: no merit of the policy
	used     atomic.Int64
	unused   atomic.Int64
	late     atomic.Int64
	disabled atomic.Bool // Advise(Random)
	copied   atomic.Bool // who came to a page last would have looked on the shelf

	// Events that came while the policy was busy, for whoever is done with it.
	missed   []missedEvents
	missedMu sync.Mutex
	missedN  atomic.Int32

	missedBack []missedEvents // the other half of a pair of slices; under mu
}

// missedEvents is an event, and more like it: of n pages, at distances of step.
type missedEvents struct {
	prefetch.Event
	n, step int64
}

// maxMissed is how many of them a busy policy is told of later; more are lost, and
// a stream that loses some is not found again before it has missed a few pages. Who
// goes through what was read ahead does so at the speed of memory, and the policy
// may be busy for as long as the scheduler likes.
const maxMissed = 4096

// add makes ev one of the events in m, if it goes on where they end.
func (m *missedEvents) add(ev prefetch.Event) bool {
	if ev.Kind != prefetch.Touch || m.Kind != prefetch.Touch || ev.Late || m.Late {
		return false
	}
	step := m.step
	if m.n == 1 {
		step = ev.Page - m.Page
	}
	if step != 1 && step != -1 || ev.Page != m.Page+m.n*step {
		return false
	}
	m.n, m.step = m.n+1, step
	return true
}

// setPolicy makes pol the policy. ahead.mu is held, or nobody else has the region yet.
func (r *Region) setPolicy(pol prefetch.Policy) {
	a := &r.ahead
	a.policy = pol
	a.learner, _ = pol.(prefetch.Learner)
	w, ok := pol.(prefetch.Wants)
	a.wants.Store(ok && w.WantsData())
}

// aheadCounts is what became of all that policies of the region have had read.
func (r *Region) aheadCounts() prefetch.Feedback {
	a := &r.ahead
	return prefetch.Feedback{Issued: a.issued.Load() - a.named.Load(), Used: r.aheadUsed(), Unused: a.unused.Load(), Late: a.late.Load()}
}

// aheadUsed is how many pages that were read ahead have been touched, by stores too.
func (r *Region) aheadUsed() int64 { return r.ahead.used.Load() + load64(&r.d.storeUsed) }

func minus(f, g prefetch.Feedback) prefetch.Feedback {
	return prefetch.Feedback{Issued: f.Issued - g.Issued, Used: f.Used - g.Used, Unused: f.Unused - g.Unused, Late: f.Late - g.Late}
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
		switch k := len(a.missed); {
		case k > 0 && a.missed[k-1].add(ev):
		case k < maxMissed:
			a.missed = append(a.missed, missedEvents{ev, 1, 0})
			a.missedN.Store(int32(k + 1))
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
		for _, m := range list {
			for ; m.n > 0; m.n-- {
				r.consult(m.Event)
				m.Page += m.step
			}
		}
		a.missedBack = list
	}
}

// consult tells the policy of one event and takes over its plan. ahead.mu is held.
func (r *Region) consult(ev prefetch.Event) {
	a := &r.ahead
	if a.learner != nil {
		if f := minus(r.aheadCounts(), a.before); f != a.told {
			a.told = f
			r.asPolicy(uint64(ev.Page), func() { a.learner.Learn(f) })
		}
	}
	a.plan.Reset()
	a.plan.Pages = int64(r.pageCount())
	a.plan.PageSize = int64(r.PageSize())
	a.plan.Room = r.p.planRoom(r)
	a.plan.Budget = r.p.budget.Load() / r.fpp
	if ev.Kind == prefetch.Miss {
		ev.Late = r.p.foreseen(r, uint64(ev.Page))
	}
	r.asPolicy(uint64(ev.Page), func() { a.policy.Observe(ev, &a.plan) })
	r.queue(&a.plan)
	r.p.drops.add(r, a.plan.Drop)
	// A miss that was planned, or could not be because more than can be read is
	// planned already, is no surprise: to read less ahead would bring more of them.
	if ev.Kind == prefetch.Miss && !ev.Late && a.plan.Room > 0 && len(a.plan.Runs) == 0 && !a.plan.Known {
		r.p.surprised.Store(sinceStart())
	}
}

// asPolicy calls fn, which calls the policy because of page.
func (r *Region) asPolicy(page uint64, fn func()) {
	if r.opt.Prefetch == nil {
		fn()
	} else {
		r.p.hook("prefetch.Policy", r, page, 1, fn)
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
		for i := range min(len(l.gens), eventsMost) {
			r.observe(prefetch.Event{Kind: prefetch.Miss, Page: int64(l.first) + int64(i)}, false)
		}
	}
	p.pumpInto(b)
}

// firstTouch: somebody uses a page that was read ahead. w is its word. false: it
// has changed.
func (r *Region) firstTouch(pw *word, w word, page uint64) bool {
	return r.touch(pw, w, page, false)
}

// lateTouch: somebody waits for a page whose prefetch is under way.
func (r *Region) lateTouch(page uint64) {
	if pw, w := r.d.look(page); pw != nil && w&flagPrefetched != 0 {
		r.touch(pw, w, page, true)
	}
}

// touch is the first touch of a page that was read ahead, and with late came too late
// for whoever touched it. false: w is not its word any more.
func (r *Region) touch(pw *word, w word, page uint64, late bool) bool {
	if !bare.Cas64(pw, w, w&^flagPrefetched) {
		return false
	}
	r.ahead.used.Add(1)
	r.p.stats.aheadUsed.Add(1)
	if late {
		r.ahead.late.Add(1)
		r.p.stats.aheadLate.Add(1)
	}
	r.observe(prefetch.Event{Kind: prefetch.Touch, Page: int64(page), Late: late}, false)
	r.p.pumpNow()
	return true
}

// arrived shows the policy the bytes of a finished load, which is still in its
// buffer.
func (r *Region) arrived(l *load) {
	if !r.ahead.wants.Load() || l.op.Err != nil || l.op.Buf == nil || l.kept || l.buf.spent {
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
	entered := false
	for _, off := range offs {
		if off < 0 || off >= length {
			continue
		}
		pr := r.pageRange(off, min(n, length-off))
		for page := pr.first; page < pr.first+pr.n; page++ {
			if pw, w := r.look(page); pw == nil || w&stateMask == stMissing {
				if !entered && !r.enter() {
					return
				}
				entered = true
				r.p.addJob(aheadJob{r: r, next: page, end: page + 1, hint: true})
				r.observe(prefetch.Event{Kind: prefetch.Hint, Page: int64(page)}, false)
			}
		}
	}
	if entered {
		r.p.pumpNow()
		r.leave()
	}
}
