//go:build linux

package pager

import (
	"sync"
	"sync/atomic"
)

// Jobs of reading ahead, and how many of them may be under way; see ahead.go.

type aheadJob struct {
	r    *Region
	next uint64
	end  uint64
	hint bool   // the program asked for it: flag the pages as touched, not prefetched
	mark uint64 // the page of it that is a marker, plus one; 0: none
}

type jobQueue struct {
	mu       sync.Mutex
	lists    [2]jobList   // what policies plan; what the program named
	pending  atomic.Int32 // jobs in both
	planned  atomic.Int64 // frames in the first
	plannedN atomic.Int32 // jobs in it
	taken    []aheadJob   // what policies plan and is being claimed
	takenN   atomic.Int32
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
		q.count(&j, 1)
	} else {
		q.mu.Unlock()
		return
	}
	if !j.hint {
		q.planned.Add(j.frames())
	}
	q.mu.Unlock()
}

// count counts n jobs like j. q.mu is held.
func (q *jobQueue) count(j *aheadJob, n int32) {
	if !j.hint {
		q.plannedN.Add(n)
	}
	q.pending.Add(n)
}

// foreseen: the page is in a job of a policy's that waits for room, which is the
// next to go out from now on: who misses the page will need the rest of it. Or it
// is on its way out.
func (p *Pager) foreseen(r *Region, page uint64) bool {
	q := &p.jobs
	if q.planned.Load() == 0 && q.takenN.Load() == 0 {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.taken {
		if j := &q.taken[i]; j.r == r && page >= j.next && page < j.end {
			return true
		}
	}
	i := q.find(r, page)
	if i >= 0 {
		q.toFront(i)
	}
	return i >= 0
}

// take takes a run of at most most pages, with page in it, off one end of a job of a
// policy's that waits for room, and notes that it is being claimed. n is 0 where there is
// none, or none of several pages.
func (q *jobQueue) take(r *Region, page, most uint64) (first, n, mark uint64) {
	if q.planned.Load() == 0 {
		return 0, 0, 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	i := q.find(r, page)
	if i < 0 {
		return 0, 0, 0
	}
	l := &q.lists[0]
	j := &l.jobs[i]
	first, n, mark = j.next, min(j.end-j.next, most), j.mark
	switch behind := page >= j.end-n; {
	case n < 2 || page >= first+n && !behind:
		return 0, 0, 0
	case page >= first+n: // who reads backward
		first = j.end - n
		j.end = first
		q.planned.Add(-int64(n) * r.fpp)
	default:
		q.toFront(i)
		q.advance(&l.jobs[l.head], n)
	}
	q.taken = append(q.taken, aheadJob{r: r, next: first, end: first + n})
	q.takenN.Add(1)
	return first, n, mark
}

// find is the index of the job of a policy's that page is in, if it is among those
// that go out next; -1: it is not. q.mu is held.
func (q *jobQueue) find(r *Region, page uint64) int {
	l := &q.lists[0]
	for i := l.head; i < min(len(l.jobs), l.head+foreseenMost); i++ {
		if j := &l.jobs[i]; j.r == r && page >= j.next && page < j.end {
			return i
		}
	}
	return -1
}

// toFront makes the i-th job of the policies' the next to go out. q.mu is held.
func (q *jobQueue) toFront(i int) {
	l := &q.lists[0]
	j := l.jobs[i]
	copy(l.jobs[l.head+1:i+1], l.jobs[l.head:i])
	l.jobs[l.head] = j
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
	q.count(j, -1)
	*j = aheadJob{}
	if l.head++; l.head == len(l.jobs) {
		l.jobs, l.head = l.jobs[:0], 0
	}
}

// untake ends what pumpInto has said of a run that begins at first.
func (q *jobQueue) untake(r *Region, first uint64) {
	q.mu.Lock()
	last := len(q.taken) - 1
	for i := range q.taken {
		if j := &q.taken[i]; j.r == r && j.next == first {
			*j, q.taken[last] = q.taken[last], aheadJob{}
			q.taken = q.taken[:last]
			q.takenN.Add(-1)
			break
		}
	}
	q.mu.Unlock()
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
			q.count(&j, -1)
		}
		clear(l.jobs[len(kept):])
		l.jobs, l.head = kept, 0
	}
	q.mu.Unlock()
}

// aheadLimit is how many frames may be on their way in by prefetch.
func (p *Pager) aheadLimit() int64 {
	largest, budget := p.largestPage.Load(), p.budget.Load()
	if budget < 16*largest {
		return 0 // a few pages are for those who wait
	}
	flight := int64(aheadFlight >> frameShift)
	if p.moves.Load() {
		flight = movedFlight >> frameShift
	}
	return min(budget/aheadQuarter, max(flight, largest))
}

// aheadRoom is how many frames of j may be claimed now, and how many with one
// read: half of what may be under way, unless that is to be one read.
func (p *Pager) aheadRoom(j *aheadJob) (room, run int64) {
	room = p.aheadLimit()
	run = min(maxRun>>frameShift, max(room/2, j.r.fpp))
	if p.aheadLoads.Load() >= p.aheadReads() {
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

// planRoom is what policies are told, in pages of r. Each of them may become a job
// by itself; one for which there is no place would be forgotten here and taken for
// read there.
func (p *Pager) planRoom(r *Region) int64 {
	frames := p.aheadLimit()*aheadPlans - p.aheadPages.Load() - p.jobs.planned.Load()
	return max(0, min(frames/r.fpp, p.jobs.places()))
}

// places is how many more jobs of policies there may be, besides markers and what
// is planned at the same time for other regions.
func (q *jobQueue) places() int64 {
	return int64(maxJobs - jobsSpare - q.plannedN.Load())
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
		if !hint {
			q.taken = append(q.taken, aheadJob{r: r, next: first, end: first + n})
			q.takenN.Add(1)
		}
		q.mu.Unlock()
		got, ok := uint64(0), true
		if r.enter() {
			b.apart = run < maxRun>>frameShift // else it would become one long read after all
			got, ok = p.claimAhead(r, first, n, hint, mark, b)
			r.leave()
		}
		if !hint {
			q.untake(r, first)
		}
		if !ok {
			return
		}
		holes = got < n
	}
}

// claimPlanned claims a run with page in it, which is missed, into b, if that is planned
// and waits for room.
func (p *Pager) claimPlanned(r *Region, page uint64, b *batch) bool {
	room := p.wantedRoom()
	if room < 2*r.fpp {
		return false
	}
	first, n, mark := p.jobs.take(r, page, uint64(room/r.fpp))
	if n == 0 {
		return false
	}
	b.apart = true
	_, ok := p.claimAhead(r, first, n, false, mark, b)
	p.jobs.untake(r, first)
	return ok
}

// wantedRoom is how many frames may be claimed now for who misses what is planned. That
// may be more than is to be under way, but holds frames while it waits: so no more of
// the budget and of the queue depth than is ever read ahead. And nothing while others
// wait for frames, nor while demands wait for the queue depth: the run would wait behind
// them, where the page alone is one of them.
func (p *Pager) wantedRoom() int64 {
	if p.aheadLimit() == 0 || p.waiting.Load() != 0 || p.queue.demand.Load() != 0 || p.aheadLoads.Load() >= p.aheadReads() {
		return 0
	}
	return min(wantedRun>>frameShift, p.budget.Load()/aheadQuarter-p.aheadPages.Load())
}

// aheadReads is how many reads ahead there may be.
func (p *Pager) aheadReads() int32 { return int32(max(1, p.opt.QueueDepth/aheadShare)) }

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
			if r.full.claim.Load() != 0 {
				return got, false
			}
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
