package prefetch

// ReadaheadOptions configure Readahead. The zero value works.
type ReadaheadOptions struct {
	// MinWindow and MaxWindow bound how far ahead of a sequential reader the
	// policy plans, in bytes; 0: 64 KiB and 4 MiB, or 8 pages where those are more.
	MinWindow, MaxWindow int64
	// KeepBehind switches drop-behind off: pages that a long sequential run
	// has passed are then not offered for eviction first.
	KeepBehind bool
}

// Readahead returns the default policy of a region: it finds sequential
// streams among the misses, forward and backward, up to 128 at a time and
// mixed with any amount of random work, and keeps a window of pages ahead of
// each.
//
// # Finding a stream
//
// A miss next to an earlier one (within 3 pages) extends a run. A run becomes a
// stream after 3 misses that leave few holes, when it grew at one end: at least
// twice at that end and less at the other. The order inside a run means
// nothing, because runtime.memmove touches the last page of a copy before the
// first: a forward scan by copies of two pages misses 1, 0, 3, 2, 5, 4. In a region
// so small that random misses are often near to each other it takes one to three more.
// Streams that turn out not to be any raise the evidence asked of the next ones by up to
// 6 misses, and lower what is staked on them.
//
// # The window
//
// It begins at MinWindow – or, while streams have been going on for long, at half
// of what they usually come to – and doubles whenever a part of it has been used up, to
// MaxWindow. It is halved when a page that had been planned is missed all the
// same, for then it was evicted before its use or there was no room for it; not
// if its read has just not had its turn (Event.Late).
// All windows together stay within an eighth of the budget, shared evenly among
// the active streams; bad Feedback lowers, good Feedback raises the largest
// window of all. A window is planned in two to four parts, the next one when the
// reader enters the last but one or earlier.
//
// # Markers
//
// Raw hits leave no trace, so the first page of each part is left out, as a
// marker: read, where the pager can, but not mapped. Its first access says that
// the reader has come there. A stream whose touches are reported (Acquire, ReadAt) needs none.
func Readahead(o ReadaheadOptions) Policy { return newReadahead(o) }

type readahead struct {
	minBytes, maxBytes int64
	maxPages           int64 // or so many, if they are more
	keepBehind         bool

	runs  runTable
	table streamTable

	// largest is the largest window that was asked for, in pages; 0: nothing
	// has been planned yet. ceiling is the largest that feedback allows.
	largest, ceiling int64
	typical          int64 // how far streams have gone, in steps: a moving mean
	doubt            int   // false starts less twice the true ones: see stake
	passed           int64 // pages that streams have passed whose touches are not seen
	good, bad        int64 // pages used and wasted, as of the last Learn that counted
}

// fewPages is the least that a large window is divided by: with less the device would
// be left with one page to read, or none, each time the reader enters a part.
const fewPages = 8

func newReadahead(o ReadaheadOptions) *readahead {
	r := &readahead{minBytes: o.MinWindow, maxBytes: o.MaxWindow, keepBehind: o.KeepBehind}
	if r.minBytes <= 0 {
		r.minBytes = 64 << 10
	}
	if r.maxBytes <= 0 {
		r.maxBytes, r.maxPages = 4<<20, fewPages
	}
	r.maxBytes = max(r.maxBytes, r.minBytes)
	return r
}

// Observe implements Policy.
func (r *readahead) Observe(e Event, plan *Plan) { r.sequential(e, plan) }

// sequential reports whether the event belongs to a stream.
func (r *readahead) sequential(e Event, plan *Plan) bool {
	if e.Kind != Miss && e.Kind != Touch {
		return false
	}
	r.judge(r.table.age(e.Page))
	if i := r.table.find(e.Page); i >= 0 {
		if s := r.table.use(i); !s.refutedBy(e) {
			plan.Known = true
			r.advance(i, e, plan)
			return true
		}
		r.judge(r.table.remove(i))
		// A proven one as well, and one that is not for the second time: to be refuted
		// says more than to be left.
		r.doubt = min(r.doubt+1, maxDoubt)
	}
	// The touch of a page that no stream planned is no evidence: somebody
	// else asked for it (Hint, another policy).
	if e.Kind != Miss {
		return false
	}
	need, window := r.stake(plan)
	run, dir := r.runs.observe(e.Page, need, plan.Pages)
	if dir == 0 {
		return false
	}
	from, to := run.lo, run.hi
	if dir < 0 {
		from, to = -run.hi, -run.lo
	}
	r.begin(stream{step: dir, start: from, pos: to, window: window}, plan)
	return true
}

// begin puts a stream, of which start, pos and window are known, in the table
// and plans its first pages.
func (r *readahead) begin(s stream, plan *Plan) {
	s.next, s.trail, s.dropped, s.entered = s.pos+1, s.start, s.start, s.pos
	i, gone := r.table.add(s)
	r.judge(gone)
	r.refill(i, plan)
}

// judge learns from a stream that has ended: whether it was one, and how long.
func (r *readahead) judge(gone *stream) {
	switch {
	case gone == nil:
	case !gone.proven:
		r.doubt = min(r.doubt+1, maxDoubt)
	default:
		r.typical += (gone.pos - gone.start - r.typical) / 4
	}
}

// maxDoubt bounds what false starts can do.
const maxDoubt = 24

// stake says how many misses make a stream, and how many pages the first
// window has: less trust and smaller stakes after streams that went nowhere,
// and in a region so small that random pages are often neighbours.
func (r *readahead) stake(plan *Plan) (need int, window int64) {
	need = minEvidence + r.doubt/4 + r.runs.chance(plan.Pages)
	window = plan.pages(r.minBytes)
	if r.doubt == 0 {
		// Where streams have been going on for long, the next one will too.
		window = max(window, min(r.typical/2, plan.pages(dropAfter)))
	}
	window = min(window>>(r.doubt/8), plan.Pages/256)
	return need, max(window, 4)
}

// advance takes note that the reader of stream i has come to the event's page.
func (r *readahead) advance(i int, e Event, plan *Plan) {
	s := &r.table.streams[i]
	x, _ := s.position(e.Page)
	if e.Kind == Touch {
		s.touched++
	}
	if x <= s.pos {
		return // inside a copy that began at its far end, or missed again
	}
	next, planned := s.next, x < s.next
	marked := s.isBoundary(x)
	if e.Late && !s.sees && !marked && x > s.pos+farAhead && !s.goesOn(x) {
		return // see goesOn
	}
	switch {
	case e.Kind == Touch:
		if planned && !marked && !e.Late {
			s.sees = true
		}
		// Where every touch is seen, a reader does not jump; what does is
		// somebody else who hit the window by chance, unless it goes on there.
		if s.sees && x > s.pos+slack {
			jump := s.jump
			if !s.goesOn(x) {
				return
			}
			s.restart(min(x, jump), x)
		}
	case planned && e.Late:
		// There are more streams than can be read ahead of at once. Shorter runs
		// would make that worse.
	case planned && !marked:
		// It had been planned and is missing: evicted before its use, or
		// there was no room. Ask for less, and again for what may be missing
		// behind it.
		s.window = max(s.window/2, min(s.window, plan.pages(r.minBytes)))
		s.n = 0
		next = x + 1
	case !planned:
		s.sees, s.thin = false, false // touches would have kept the window ahead
	}
	boundary := s.passBoundaries(x)
	if !s.sees {
		r.passed += x - s.pos
	}
	r.table.set(i, x, next)
	if boundary {
		// Perhaps not a reader, but random work that hits what was read ahead, or
		// a reader by a longer step: it gets no more until the next boundary.
		s.thin = s.sees && s.sparse(x)
		s.entered, s.touched = x, 0
		if s.thin {
			return
		}
		if !s.proven {
			s.proven = true
			r.doubt = max(r.doubt-2, 0)
		}
		s.window = 2 * s.window
		r.dropBehind(s, plan)
	}
	if !s.thin && (boundary || s.next-s.pos <= s.window/2) {
		r.refill(i, plan)
	}
}

// limit is the largest window of the stream in pages.
func (r *readahead) limit(s *stream, plan *Plan) int64 {
	if r.largest == 0 {
		r.largest = max(plan.pages(r.maxBytes), r.maxPages)
		r.ceiling = r.largest
	}
	if s.step != 1 && s.step != -1 {
		return min(r.ceiling, maxSteps)
	}
	return r.ceiling
}

// aheadShare is the part of the budget that all windows together may fill; it
// is what the default eviction policy grants to pages nobody has used yet.
const aheadShare = 8

// refill plans pages of stream i until its window is full.
func (r *readahead) refill(i int, plan *Plan) {
	s := &r.table.streams[i]
	window := min(s.window, r.limit(s, plan))
	if plan.Budget > 0 {
		window = min(window, plan.Budget/aheadShare/int64(r.table.active))
	}
	if window < 2 {
		return // a budget of a few pages is not for guesses
	}
	s.window = window
	room, part, end := plan.Room, partOf(window), s.end(plan.Pages)
	for s.next+part-1 <= s.pos+window && room > 0 && s.next < end {
		first, n := s.next, min(part, end-s.next)
		// The page by which the reader enters this part tells of it, unless
		// the reader is there or there is nothing more to plan.
		if first > s.pos+1 && first+n < end && s.addBoundary(first) && !s.sees {
			plan.Mark(s.page(first))
			first++
		}
		n = min(n, first-s.next+room)
		r.table.set(i, s.pos, s.next+n)
		room -= s.next - first
		s.runs(first, s.next, plan.Add)
	}
}

// partOf says in how large parts a window is planned: two, because each costs
// the miss of a marker; four where that is little, so that the device always
// has more than one to read.
func partOf(window int64) int64 {
	const enough = 64
	return max(window/4, min(window/2, enough), 1)
}

// dropAfter is the length in bytes of a sequential run from which on pages are
// dropped behind it: what is shorter may be a record somebody comes back to.
const dropAfter = 1 << 20

// dropBehind gives up what the reader has passed, except for the pages it may
// still be copying from. It stays one part behind: the event that moved pos may
// have been somebody else's, who touched a page of the window by chance.
func (r *readahead) dropBehind(s *stream, plan *Plan) {
	until := s.trail - slack
	if s.trail = s.pos; s.sees {
		until = s.pos - slack
	}
	if r.keepBehind || until-s.dropped < max(min(plan.pages(dropAfter)/4, s.window/2), slack) || until-s.start < plan.pages(dropAfter) {
		return
	}
	s.runs(s.dropped, until, plan.Behind)
	s.dropped = until
}

// learnEvery is the number of pages whose fate must be known before the
// feedback is believed.
const learnEvery = 256

// Learn implements Learner. Where access is raw the pager cannot see that a
// page was used, but a reader that came to the next marker has passed it: pages
// passed count as used, and as many evictions of unused pages, whenever they
// come, are not held against the policy. Where touches are seen, what was passed
// without one was of no use: so a chance stream among random work comes to its
// end, however often random pages hit its window.
func (r *readahead) Learn(f Feedback) {
	good := f.Used + r.passed
	bad := max(0, f.Unused-r.passed)
	if f.Used+f.Unused == 0 || bad < r.bad {
		r.good, r.bad = good, bad // counted anew, or excused since
		return
	}
	used, wasted := good-r.good, bad-r.bad
	if used+wasted < learnEvery || r.ceiling == 0 {
		return
	}
	r.good, r.bad = good, bad
	switch {
	case wasted > used:
		r.ceiling = max(r.ceiling/2, 4)
		r.doubt = min(r.doubt+4, maxDoubt)
	case wasted < used/8:
		r.ceiling = min(r.ceiling*2, r.largest)
	}
}
