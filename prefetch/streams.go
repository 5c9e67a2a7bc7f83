package prefetch

// stream is one reader that goes through pages with a fixed step. Its positions
// count steps, x = (page-base)/step, so that all arithmetic is that of a
// sequential reader going forward.
type stream struct {
	base    int64 // a page of the stream; 0 if |step| is 1
	step    int64 // 1: forward; -1: backward; others: see Stride
	start   int64 // where it began
	pos     int64 // the furthest page known to have been reached
	next    int64 // the first page not planned yet
	trail   int64 // where pos was when the boundary before the last was passed
	dropped int64 // pages before it have been dropped behind
	window  int64 // pages wanted ahead of pos

	// boundaries are the pages by which the reader enters the parts that are
	// planned, in order; where touches are not seen they are left out of the
	// reads.
	boundaries [maxBoundaries]int64
	n          int

	entered int64 // where pos was when the last boundary was passed
	touched int64 // touches seen since

	jump   int64 // where it was last seen too far ahead of pos to be believed at once
	thin   bool  // too few touches before the last boundary: see sparse
	sees   bool  // touches of prefetched pages are reported
	proven bool  // came as far as a boundary
	idle   bool  // not seen for a while: has no share of the room
	tick   uint64
}

const (
	maxBoundaries = 12
	// slack is how many pages behind pos the reader may still touch: one copy
	// touches its far end first.
	slack = 16
	// farAhead is how many pages ahead of pos a raw reader may be found at a page that
	// is late, without having come to a marker.
	farAhead = 4 * slack
	// maxStreams is more than the interleaved scans a program has, with some
	// room for false starts.
	maxStreams = 128
)

// addBoundary reports whether there was room to remember x.
func (s *stream) addBoundary(x int64) bool {
	if s.n == maxBoundaries {
		return false
	}
	s.boundaries[s.n] = x
	s.n++
	return true
}

// isBoundary reports whether x is a boundary that has not been passed.
func (s *stream) isBoundary(x int64) bool {
	for _, b := range s.boundaries[:s.n] {
		if b == x {
			return true
		}
	}
	return false
}

// passBoundaries forgets the boundaries up to x and reports whether there were
// any.
func (s *stream) passBoundaries(x int64) bool {
	k := 0
	for k < s.n && s.boundaries[k] <= x {
		k++
	}
	if k == 0 {
		return false
	}
	copy(s.boundaries[:], s.boundaries[k:s.n])
	s.n -= k
	return true
}

// minDensity: of a stream whose touches are seen, at least one of so many pages
// must be touched.
const minDensity = 2

// sparse: too few of the pages up to x have been touched.
func (s *stream) sparse(x int64) bool { return s.touched < (x-s.entered)/minDensity }

// refutedBy reports whether the event says that the stream is none, or has become
// somebody else's: a reader whose touches are seen does not come to the end of his
// window without any. Random work does, and so does who has gone over to a longer
// step; what it is has to be shown anew, as at the beginning of any stream.
func (s *stream) refutedBy(e Event) bool {
	if e.Kind != Miss || !s.sees {
		return false
	}
	x, _ := s.position(e.Page)
	return x >= s.next && s.sparse(x)
}

// goesOn reports whether somebody was near x before who was as far ahead of pos. Random
// work hits a large window by chance, be it mapped or not read yet, but seldom twice
// in a row at the same place; who reads in order does.
func (s *stream) goesOn(x int64) bool {
	was := s.jump
	s.jump = x
	return x <= was+slack && x >= was-slack
}

// restart lets the stream begin again at from, where two touched pages have been seen, up
// to x: what lies before is somebody else's, and has not been passed.
func (s *stream) restart(from, x int64) {
	s.passBoundaries(x)
	s.start, s.trail, s.dropped, s.entered = from, from, from, from
	s.touched = 2
}

func (s *stream) page(x int64) int64 { return s.base + x*s.step }

// position is the inverse of page; the second result is false for pages the
// stream does not step on.
func (s *stream) position(p int64) (int64, bool) {
	switch s.step {
	case 1:
		return p, true
	case -1:
		return -p, true
	}
	return (p - s.base) / s.step, (p-s.base)%s.step == 0
}

// pages is the span from x to y.
func (s *stream) pages(x, y int64) span {
	if s.step < 0 {
		x, y = y, x
	}
	return span{s.page(x), s.page(y)}
}

// runs gives add the pages from x up to y, not included.
func (s *stream) runs(x, y int64, add func(first, n int64)) {
	switch {
	case x >= y:
	case s.step == 1 || s.step == -1:
		add(s.pages(x, y-1).lo, y-x)
	default:
		for ; x < y; x++ {
			add(s.page(x), 1)
		}
	}
}

// end is the first position outside a region of that many pages.
func (s *stream) end(pages int64) int64 {
	if s.step < 0 {
		return s.base/-s.step + 1
	}
	return (pages - s.base + s.step - 1) / s.step
}

// zone is the span of pages whose events belong to the stream.
func (s *stream) zone() span { return s.pages(s.pos-slack, s.next+gap-1) }

// streamTable finds the stream of a page.
type streamTable struct {
	zones   []span // of streams, apart: a search reads nothing else
	streams []stream
	last    int    // found last
	hand    int    // looked at last by age
	tick    uint64 // turns seen, see age
	burst   int    // events of the last stream since
	active  int    // streams that are not idle
	gone    stream // one that was replaced
}

// A stream counts as gone when idleAfter turns of others, or idleShare for each
// active stream, have passed without one of its own: those that go on have one each
// in turn. A turn is an event, or several of one stream, up to burstMost: a goroutine
// goes through all that is there of its own before another runs. A stream that was
// only slow has its share of the room back with its next event.
const (
	idleAfter = 256
	idleShare = 4
	burstMost = 32
)

// find returns the stream that has page p in its zone and steps on it, or -1.
func (t *streamTable) find(p int64) int {
	if t.last < len(t.zones) && t.owns(t.last, p) {
		return t.last
	}
	for i := range t.zones {
		if t.owns(i, p) {
			t.last = i
			return i
		}
	}
	return -1
}

func (t *streamTable) owns(i int, p int64) bool {
	if !t.zones[i].near(p, 0) {
		return false
	}
	_, ok := t.streams[i].position(p)
	return ok
}

// add puts a new stream in the table, in place of the one seen longest ago
// when it is full, and returns its index. Of the other one it returns what was
// there if that was active.
func (t *streamTable) add(s stream) (i int, gone *stream) {
	i = len(t.streams)
	if i < maxStreams {
		t.streams = append(t.streams, stream{})
		t.zones = append(t.zones, span{})
	} else {
		i = 0
		for j := range t.streams {
			if t.streams[j].tick < t.streams[i].tick {
				i = j
			}
		}
		t.gone = t.streams[i]
		if t.rest(i) {
			gone = &t.gone
		}
	}
	s.tick = t.tick
	t.streams[i], t.zones[i] = s, s.zone()
	t.active++
	t.last = i
	return i, gone
}

// use returns stream i and notes that it is in use.
func (t *streamTable) use(i int) *stream {
	s := &t.streams[i]
	if s.idle {
		s.idle = false
		t.active++
	}
	s.tick = t.tick
	return s
}

// set moves stream i.
func (t *streamTable) set(i int, pos, next int64) {
	s := &t.streams[i]
	s.pos, s.next = pos, max(next, pos+1)
	t.zones[i] = s.zone()
}

// rest takes stream i its share of the room, and reports whether it had one.
func (t *streamTable) rest(i int) bool {
	s := &t.streams[i]
	if s.idle {
		return false
	}
	s.idle = true
	t.active--
	return true
}

// remove takes stream i out of the table and returns what was there if that was
// active. Another one has its index now.
func (t *streamTable) remove(i int) (gone *stream) {
	t.gone = t.streams[i]
	if t.rest(i) {
		gone = &t.gone
	}
	last := len(t.streams) - 1
	t.streams[i], t.zones[i] = t.streams[last], t.zones[last]
	t.streams, t.zones = t.streams[:last], t.zones[:last]
	return gone
}

// age notes that an event happened, of page p, and looks at one stream, whether it
// is still in use, if that begins a turn. It returns the stream if it has just been
// found to be gone. One that is proven is kept, in case it was only slow; others are not:
// where raw access shows nothing but who comes to a marker, random work comes to the
// markers of false starts for as long as they are there.
func (t *streamTable) age(p int64) (gone *stream) {
	if t.last < len(t.zones) && t.owns(t.last, p) && t.burst < burstMost {
		t.burst++
		return nil
	}
	t.burst = 0
	t.tick++
	if len(t.streams) == 0 {
		return nil
	}
	if t.hand++; t.hand >= len(t.streams) {
		t.hand = 0
	}
	s := &t.streams[t.hand]
	switch {
	case t.tick-s.tick <= max(idleAfter, idleShare*uint64(t.active)):
		return nil
	case !s.proven:
		return t.remove(t.hand)
	case t.rest(t.hand):
		return s
	}
	return nil
}
