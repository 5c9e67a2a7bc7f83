package prefetch

// simulator is a pager reduced to what a policy can tell: a budget of pages, a
// device, one program. Time is counted in microseconds of a model, never
// measured.
type simulator struct {
	policy  Policy
	pages   int64 // in the region
	budget  int
	sees    bool    // first touches of prefetched pages are reported (Acquire)
	holds   bool    // markers are read with their neighbours, and not mapped
	think   float64 // between two accesses, µs
	data    func(page int64) []byte
	now     float64
	device  device
	plan    Plan
	frames  map[int64]*frame
	queue   []int64 // in order of installation; may name pages that are gone
	cold    []int64 // dropped behind: first out
	flying  []int64 // prefetched, not yet known to have arrived
	told    Feedback
	wants   bool
	stats   simStats
	pending bool // Feedback has changed
}

type frame struct {
	arrives float64
	early   bool // prefetched and not used yet
	mark    bool // not mapped: its first touch is seen
}

type simStats struct {
	accesses, misses, late int64
	issued, used, unused   int64
	dropped                int64 // pages offered for eviction first
	waited                 float64
}

// device serves transfers one after another at 1.4 GB/s or 11 µs, whichever
// takes longer, each after a latency of 70 µs.
type device struct{ busy float64 }

func (d *device) read(now float64, pages int64) float64 {
	d.busy = max(d.busy, now) + max(11, float64(pages)*4096/1400)
	return d.busy + 70
}

func newSimulator(p Policy, pages int64, budget int) *simulator {
	s := &simulator{policy: p, pages: pages, budget: budget, think: 0.5, frames: map[int64]*frame{}}
	if w, ok := p.(Wants); ok {
		s.wants = w.WantsData()
	}
	return s
}

// run makes the accesses in order, in the time of one goroutine.
func (s *simulator) run(accesses []int64) simStats {
	for _, p := range accesses {
		s.access(p)
	}
	for _, f := range s.frames {
		if f.early {
			s.stats.unused++
		}
	}
	return s.stats
}

func (s *simulator) access(p int64) {
	s.now += s.think
	s.stats.accesses++
	s.arrivals()
	f := s.frames[p]
	switch {
	case f == nil:
		s.stats.misses++
		done := s.device.read(s.now, 1)
		s.install(p, &frame{arrives: done})
		s.observe(Event{Kind: Miss, Page: p})
		s.wait(done)
		if s.wants {
			s.observe(Event{Kind: Arrived, Page: p, Data: s.data(p), Demand: true})
		}
	case f.arrives > s.now:
		s.stats.late++
		s.told.Late++
		s.use(p, f, true)
		s.wait(f.arrives)
	case f.early:
		s.use(p, f, false)
	}
}

func (s *simulator) use(p int64, f *frame, late bool) {
	if !f.early {
		return
	}
	f.early = false
	s.stats.used++
	if late || s.sees || f.mark {
		s.told.Used++
		s.pending = true
		s.observe(Event{Kind: Touch, Page: p, Late: late})
	}
}

func (s *simulator) wait(until float64) {
	s.stats.waited += max(0, until-s.now)
	s.now = max(s.now, until)
	s.arrivals()
}

// arrivals tells of the prefetched pages that have come in.
func (s *simulator) arrivals() {
	for len(s.flying) > 0 {
		p := s.flying[0]
		f := s.frames[p]
		if f != nil && f.arrives > s.now {
			return // the device works in order
		}
		s.flying = s.flying[1:]
		if f != nil && s.wants {
			s.observe(Event{Kind: Arrived, Page: p, Data: s.data(p)})
		}
	}
}

// maxFlying bounds the pages being prefetched, as the pager's room.
const maxFlying = 4096

func (s *simulator) observe(e Event) {
	if l, ok := s.policy.(Learner); ok && s.pending {
		l.Learn(s.told)
		s.pending = false
	}
	s.plan.Reset()
	s.plan.Pages, s.plan.Budget = s.pages, int64(s.budget)
	s.plan.Room = min(maxFlying, int64(s.budget)/2) - int64(len(s.flying))
	s.policy.Observe(e, &s.plan)
	for _, r := range s.plan.Drop {
		for p := r.First; p < r.First+r.N; p++ {
			s.stats.dropped++
			s.cold = append(s.cold, p)
		}
	}
	if s.holds {
		for _, m := range s.plan.Marks {
			s.readAhead(Run{m, 1})
			if f := s.frames[m]; f != nil && f.early {
				f.mark = true
				s.device.busy -= 8 // it rides along with its neighbours
			}
		}
	}
	for _, r := range s.plan.Runs {
		s.readAhead(r)
	}
}

// readAhead reads what is missing of a run, each contiguous piece by one
// transfer of at most 64 pages.
func (s *simulator) readAhead(r Run) {
	lo, hi := max(r.First, 0), min(r.First+r.N, s.pages)
	for p := lo; p < hi; {
		n := int64(0)
		for p+n < hi && n < 64 && s.frames[p+n] == nil {
			n++
		}
		if n == 0 {
			p++
			continue
		}
		done := s.device.read(s.now, n)
		for range n {
			if len(s.flying) >= s.budget/2 {
				return
			}
			s.install(p, &frame{arrives: done, early: true})
			s.flying = append(s.flying, p)
			s.stats.issued++
			s.told.Issued++
			s.pending = true
			p++
		}
	}
}

func (s *simulator) install(p int64, f *frame) {
	for len(s.frames) >= s.budget {
		s.evict()
	}
	s.frames[p] = f
	s.queue = append(s.queue, p)
}

func (s *simulator) evict() {
	from := &s.queue
	if len(s.cold) > 0 {
		from = &s.cold
	}
	p := (*from)[0]
	*from = (*from)[1:]
	f := s.frames[p]
	switch {
	case f == nil:
	case f.arrives > s.now:
		s.queue = append(s.queue, p)
	default:
		if f.early {
			s.stats.unused++
		}
		if f.early || !s.sees {
			s.told.Unused++ // raw uses leave no trace
			s.pending = true
		}
		delete(s.frames, p)
	}
}
