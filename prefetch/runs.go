package prefetch

// span is the pages lo..hi, both included.
type span struct{ lo, hi int64 }

// run is what is known of a span in which misses were near to each other.
type run struct {
	misses   int32
	up, down int32 // how often it grew at its high and its low end
	recent   bool  // grew since the replacement hand last passed
}

// runTable remembers the latest misses as runs that may become streams. The
// spans stand apart, so that a random miss, which has to look at all of them,
// reads 2 KiB of consecutive memory. It grows to its size only with use.
type runTable struct {
	spans []span
	runs  []run
	hand  int
}

const (
	maxRuns     = 128
	gap         = 3 // pages between two misses that are still neighbours
	minEvidence = 3 // misses
)

// observe adds a miss and returns the run it completed, with the direction in
// which it grows, or 0.
func (t *runTable) observe(p int64, need int, pages int64) (span, int64) {
	for i := range t.spans {
		s := &t.spans[i]
		if p < s.lo-gap || p > s.hi+gap {
			continue
		}
		r := &t.runs[i]
		r.recent = true
		switch {
		case p > s.hi:
			s.hi = p
			r.up++
		case p < s.lo:
			s.lo = p
			r.down++
		}
		r.misses++
		dir := r.direction(need, s.hi-s.lo+1)
		found := *s
		if dir != 0 {
			t.remove(i)
		}
		return found, dir
	}
	t.add(p, pages)
	return span{}, 0
}

// direction says whether the run is sequential. It must have few holes, and
// have grown twice at its front. One copy can extend it backwards once, by
// touching its last page first, whichever way the program goes.
func (r *run) direction(need int, length int64) int64 {
	if int(r.misses) < need || length > 2*int64(r.misses) {
		return 0
	}
	switch {
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
		return
	}
	for {
		if t.hand >= len(t.spans) {
			t.hand = 0
		}
		if r := &t.runs[t.hand]; !r.recent {
			break
		} else {
			r.recent = false
		}
		t.hand++
	}
	t.spans[t.hand] = span{p, p}
	t.runs[t.hand] = run{misses: 1}
	t.hand++
}

func (t *runTable) remove(i int) {
	last := len(t.spans) - 1
	t.spans[i], t.runs[i] = t.spans[last], t.runs[last]
	t.spans, t.runs = t.spans[:last], t.runs[:last]
}
