package prefetch

import "math/bits"

// span is the pages lo..hi, both included.
type span struct{ lo, hi int64 }

// near reports whether p is in the span or at most d pages from it. One
// unsigned comparison: which side a random page lies on cannot be predicted,
// and 128 mispredicted branches cost more than all the rest.
func (s *span) near(p, d int64) bool {
	return uint64(p-s.lo+d) <= uint64(s.hi-s.lo+2*d)
}

// run is what is known of a span in which misses were near to each other.
type run struct {
	misses   int32
	up, down int32 // how often it grew at its high and its low end
	recent   bool  // grew since the replacement hand last passed
}

// runTable remembers the latest misses as runs that may become streams. It
// grows to its size only with use.
type runTable struct {
	spans []span // apart from runs: a search reads nothing else
	runs  []run
	hand  int
	// near counts the runs that a page of a block of 8 may be near to, by the
	// low bits of the block: four of five random misses need not look at the
	// spans at all.
	near [1024]uint8
}

const (
	maxRuns     = 128 // less than a count of near can hold
	gap         = 3   // pages between two misses that are still neighbours
	minEvidence = 3   // misses
	// maxSparse is the length from which a run that has too many holes is not
	// followed any further.
	maxSparse = 64
)

// observe adds a miss and returns the run it completed, with the direction in
// which it grows, or 0.
func (t *runTable) observe(p int64, need int, pages int64) (span, int64) {
	i := t.find(p)
	if i < 0 {
		t.add(p, pages)
		return span{}, 0
	}
	s, r := t.spans[i], &t.runs[i]
	r.recent = true
	r.misses++
	switch {
	case p > s.hi:
		s.hi = p
		r.up++
	case p < s.lo:
		s.lo = p
		r.down++
	}
	if length := s.hi - s.lo + 1; length <= 2*int64(r.misses) {
		if dir := r.direction(need); dir != 0 {
			t.remove(i)
			return s, dir
		}
	} else if length > maxSparse {
		s, *r = span{p, p}, run{misses: 1, recent: true}
	}
	t.set(i, s)
	return span{}, 0
}

func (t *runTable) find(p int64) int {
	if t.near[block(p)] == 0 {
		return -1
	}
	for i := range t.spans {
		if t.spans[i].near(p, gap) {
			return i
		}
	}
	return -1
}

func block(p int64) uint64 { return uint64(p) >> 3 % 1024 }

// set changes the span of run i.
func (t *runTable) set(i int, s span) {
	if t.spans[i] == s {
		return
	}
	t.count(t.spans[i], -1)
	t.spans[i] = s
	t.count(s, 1)
}

func (t *runTable) count(s span, by int8) {
	for b := (s.lo - gap) >> 3; b <= (s.hi+gap)>>3; b++ {
		t.near[uint64(b)%1024] += uint8(by)
	}
}

// direction says whether the run is sequential: it must have grown twice at its
// front. One copy can extend it backwards once, by touching its last page
// first, whichever way the program goes.
func (r *run) direction(need int) int64 {
	switch {
	case int(r.misses) < need:
		return 0
	case r.up >= 2 && r.up > r.down:
		return 1
	case r.down >= 2 && r.down > 2*r.up:
		return -1
	}
	return 0
}

// add remembers a miss that has no neighbour. In a small region fewer are
// remembered, because random pages would be neighbours too often.
func (t *runTable) add(p, pages int64) {
	most := int(min(max(pages/64, 4), maxRuns))
	if len(t.spans) < most {
		t.spans = append(t.spans, span{p, p})
		t.runs = append(t.runs, run{misses: 1})
		t.count(span{p, p}, 1)
		return
	}
	for {
		if t.hand >= len(t.spans) {
			t.hand = 0
		}
		r := &t.runs[t.hand]
		if !r.recent {
			break
		}
		r.recent = false
		t.hand++
	}
	t.set(t.hand, span{p, p})
	t.runs[t.hand] = run{misses: 1}
	t.hand++
}

// chance is how many misses more a stream must have where random ones are often
// near to one of those that are remembered: one for 3 % of them, two for 6 %.
func (t *runTable) chance(pages int64) int {
	const near = 2*gap + 1
	return bits.Len64(uint64(int64(len(t.spans)) * near * 32 / max(pages, 1)))
}

func (t *runTable) remove(i int) {
	t.count(t.spans[i], -1)
	last := len(t.spans) - 1
	t.spans[i], t.runs[i] = t.spans[last], t.runs[last]
	t.spans, t.runs = t.spans[:last], t.runs[:last]
}
