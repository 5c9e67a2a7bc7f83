package prefetch

// stream is one sequential reader. Positions are in the direction of travel:
// x = page for a forward and x = -page for a backward stream, so that all
// arithmetic is that of a forward one.
type stream struct {
	dir     int64 // 1 or -1
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

	jump   int64 // a touch too far ahead of pos to be believed at once
	sees   bool  // touches of prefetched pages are reported
	proven bool  // came as far as a boundary
	idle   bool  // not seen for long: has no share of the room
	tick   uint64
}

const (
	maxBoundaries = 12
	// slack is how many pages behind pos the reader may still touch: one copy
	// touches its far end first.
	slack = 16
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

// zone is the span of pages whose events belong to the stream.
func (s *stream) zone() span {
	lo, hi := s.pos-slack, s.next+gap-1
	if s.dir < 0 {
		lo, hi = -hi, -lo
	}
	return span{lo, hi}
}

// streamTable finds the stream of a page.
type streamTable struct {
	zones   []span // of streams, apart: a search reads nothing else
	streams []stream
	last    int    // found last
	hand    int    // looked at last by age
	tick    uint64 // events seen
	active  int    // streams that are not idle
}

// idleAfter is after how many events for each active stream, of any kind, a
// stream that had none counts as gone.
const idleAfter = 256

// find returns the stream whose zone holds page p, or -1.
func (t *streamTable) find(p int64) int {
	if t.last < len(t.zones) {
		if z := t.zones[t.last]; p >= z.lo && p <= z.hi {
			return t.last
		}
	}
	for i := range t.zones {
		if z := &t.zones[i]; p >= z.lo && p <= z.hi {
			t.last = i
			return i
		}
	}
	return -1
}

// add puts a new stream in the table, in place of the one seen longest ago
// when it is full, and returns its index. It reports whether the other one was
// a false start.
func (t *streamTable) add(s stream) (i int, falseStart bool) {
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
		falseStart = t.rest(i)
	}
	s.tick = t.tick
	t.streams[i], t.zones[i] = s, s.zone()
	t.active++
	t.last = i
	return i, falseStart
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

// rest makes stream i idle, if it is not. It reports whether the stream was
// active and had led nowhere.
func (t *streamTable) rest(i int) bool {
	s := &t.streams[i]
	if s.idle {
		return false
	}
	s.idle = true
	t.active--
	return !s.proven
}

// age notes that an event happened and looks at one stream, whether it is still
// in use; it reports whether that stream was a false start.
func (t *streamTable) age() bool {
	t.tick++
	if len(t.streams) == 0 {
		return false
	}
	if t.hand++; t.hand >= len(t.streams) {
		t.hand = 0
	}
	s := &t.streams[t.hand]
	return !s.idle && t.tick-s.tick > idleAfter*uint64(t.active) && t.rest(t.hand)
}
