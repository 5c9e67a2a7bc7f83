package prefetch

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ErrTraceOther is what Replay returns, wrapped, beside the policy if the trace is of
// another region than ReplayOptions say.
var ErrTraceOther = errors.New("prefetch: the trace is of something else")

// ReplayOptions configure Replay. The zero value works.
type ReplayOptions struct {
	// PageSize is that of the region, in bytes. If it is given and the trace
	// has another, Replay returns an error; if it is 0 and the region turns
	// out to have another, nothing is replayed.
	PageSize int64
	// Region is the size of the region in bytes, and Name is what it shows, as it
	// was told to RecordOf. If they are given, and the trace has others, Replay
	// says so (ErrTraceOther).
	Region int64
	Name   string
	// Batch is how much is sorted and read together, in bytes; 0: 2 MiB.
	// Ahead is how far the batches run ahead of the program; 0: 8 MiB. Both
	// together stay within the eighth of the budget that the default eviction
	// policy grants to pages nobody has used yet, and a batch within a quarter of
	// Ahead. A store that is far away may want more.
	Batch, Ahead int64
}

// Replay returns a policy that reads a trace made by [Record] and fetches its
// pages ahead of a program that touches the same pages in about the same order:
// a warm restart. Each batch is sorted and coalesced into runs. How far the
// program has come is seen from its misses and touches; one page of each batch
// is left out as a marker, the first to be touched.
//
// Pages the trace does not know, and all that happens elsewhere than where the
// program is believed to be in it, are left to [Readahead]. Misses and touches
// that go along the trace somewhere else, further on or before, say that the
// program is there; those that have nothing to do with its order stop the
// reading until some in a row are where it was believed to be.
//
// Errors are those of r; [ErrTrace] for what is no trace, is damaged, or has
// pages of another size; and two with which there is a policy all the same, for
// who wants it: [ErrTraceCut] for a trace that is not whole, of which the policy
// replays what there is, and [ErrTraceOther] for one that was made of
// something else. A trace that is wrong costs reads in vain, never wrong bytes.
func Replay(r io.Reader, o ReplayOptions) (Policy, error) {
	t, err := ReadTrace(r)
	if t == nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	if o.PageSize != 0 && o.PageSize != t.PageSize {
		return nil, fmt.Errorf("replay: %w of pages of %d bytes, its pages have %d", ErrTrace, o.PageSize, t.PageSize)
	}
	if o.Name != "" && t.Name != "" && o.Name != t.Name {
		err = also(err, fmt.Errorf("%w: of %s, not of %s", ErrTraceOther, t.Name, o.Name))
	}
	if pages := (o.Region + t.PageSize - 1) / t.PageSize; pages > 0 && t.Region > 0 && pages != t.Region {
		err = also(err, fmt.Errorf("%w: of %d pages, not of %d", ErrTraceOther, t.Region, pages))
	}
	if o.Batch <= 0 {
		o.Batch = 2 << 20
	}
	if o.Ahead <= 0 {
		o.Ahead = 8 << 20
	}
	p := &replay{
		pageSize: t.PageSize,
		batch:    max(o.Batch/t.PageSize, 1),
		ahead:    max(o.Ahead/t.PageSize, 1),
		after:    newReadahead(ReadaheadOptions{}),
		trust:    sure,
	}
	p.load(t.Pages)
	if err != nil {
		err = fmt.Errorf("replay: %w", err)
	}
	return p, err
}

// also is errors.Join in one line.
func also(err, more error) error {
	if err == nil {
		return more
	}
	return fmt.Errorf("%w; %w", err, more)
}

// Whether the program is where it is believed to be. An event there is worth
// inPlace, one further on takes 1, unless it goes along with others there; with
// less than sure nothing is planned. Events that have nothing to do with the
// trace's order fall into the window now and then, and each of them would carry
// it on, to the end of the trace at last.
const (
	inPlace = 4
	sure    = 4 * inPlace
	surest  = 16 * inPlace
)

// How many events, each further on than the one before it, bring the program to
// another place: more while it is believed to be where it was, since one
// goroutine of many may go ahead; few where that has been planned already.
const (
	movedOn  = 64
	foundAt  = 16
	hurrying = 4
)

type replay struct {
	pageSize     int64
	batch, ahead int64 // pages

	order []int64 // pages by first touch
	pages []int64 // the same, sorted
	at    []int32 // of pages: where in order

	reached int64   // pages of order that the program is known to have come to
	planned int64   // pages of order that have been planned
	marks   []int64 // where in order the markers are, from reached on
	trust   int     // see sure

	// Events elsewhere: the place behind the last that went on there, and how many
	// more did than did not.
	elsewhere int64
	rises     int

	// What has become of pages while Readahead planned nothing of its own.
	told, ours Feedback
	apart      bool // the last event was left to Readahead

	sorted []int64 // pages of the batch planned last
	left   []int64 // of these, still to be handed out when there is room

	after *readahead
}

// load takes the pages of a trace, each at its first occurrence.
func (r *replay) load(trace []int64) {
	byPage := make([]int32, len(trace))
	for i := range byPage {
		byPage[i] = int32(i)
	}
	slices.SortFunc(byPage, func(a, b int32) int {
		return cmp.Or(cmp.Compare(trace[a], trace[b]), cmp.Compare(a, b))
	})
	byPage = slices.CompactFunc(byPage, func(a, b int32) bool { return trace[a] == trace[b] })

	where := make([]int32, len(trace)) // in order, plus one
	for _, i := range byPage {
		where[i] = 1
	}
	for i, first := range where {
		if first != 0 {
			r.order = append(r.order, trace[i])
			where[i] = int32(len(r.order))
		}
	}
	for _, i := range byPage {
		r.pages = append(r.pages, trace[i])
		r.at = append(r.at, where[i]-1)
	}
}

// Observe implements Policy.
func (r *replay) Observe(e Event, plan *Plan) {
	if e.Kind != Miss && e.Kind != Touch {
		return
	}
	r.apart = true
	if plan.pageSize() == r.pageSize {
		if i, known := slices.BinarySearch(r.pages, e.Page); known && r.follow(int64(r.at[i])) {
			plan.Known = true
			r.fill(plan)
			// What ends here is planned already: Readahead must not plan it again.
			r.apart = r.done() && len(plan.Runs)+len(plan.Marks) == 0
		}
	}
	if r.apart {
		r.after.Observe(e, plan)
	}
}

// Learn implements Learner. Readahead is told of what has come of pages since it
// was asked last.
func (r *replay) Learn(f Feedback) {
	if !r.apart {
		r.ours.Issued += f.Issued - r.told.Issued
		r.ours.Used += f.Used - r.told.Used
		r.ours.Unused += f.Unused - r.told.Unused
		r.ours.Late += f.Late - r.told.Late
	}
	r.told = f
	if r.apart {
		r.after.Learn(Feedback{f.Issued - r.ours.Issued, f.Used - r.ours.Used, f.Unused - r.ours.Unused, f.Late - r.ours.Late})
	}
}

// done reports whether all of the trace has been planned.
func (r *replay) done() bool {
	return r.planned >= int64(len(r.order)) && len(r.left) == 0
}

// follow takes note that the program has touched the page at place i of order,
// and reports whether that is where it is.
func (r *replay) follow(i int64) bool {
	ahead := i >= r.reached && i < r.planned+r.batch
	if ahead && (i < r.reached+r.near() || r.marked(i)) {
		if r.trust = min(r.trust+inPlace, surest); r.trust < sure {
			return false
		}
		r.rises = 0
		r.reach(i)
		return true
	}
	// Behind, it may be somebody who is slow, or a page that was evicted; nothing
	// says that the program has left.
	if !r.goesOn(i) && i >= r.reached {
		r.trust = max(r.trust-1, 0)
	}
	need := movedOn
	switch {
	case ahead:
		need = hurrying
	case r.trust < sure:
		need = foundAt
	}
	if r.rises < need {
		return false
	}
	r.rises, r.trust = 0, max(r.trust, sure)
	if !ahead {
		r.planned, r.left, r.marks = i, nil, r.marks[:0]
	}
	r.reach(i)
	return true
}

// near is how far on an event may be and be of a program that goes along the trace:
// of many goroutines one comes before the others. What is planned further ahead
// is also hit by chance, and that would lead away from the program.
func (r *replay) near() int64 { return r.batch/4 + 1 }

func (r *replay) reach(i int64) {
	r.reached = i + 1
	for len(r.marks) > 0 && r.marks[0] <= i {
		r.marks = slices.Delete(r.marks, 0, 1)
	}
}

// marked: the page at place i of order is a marker.
func (r *replay) marked(i int64) bool {
	_, found := slices.BinarySearch(r.marks, i)
	return found
}

// goesOn reports whether an event at place i, where the program is not believed to
// be, goes along with others there.
func (r *replay) goesOn(i int64) bool {
	switch at := r.elsewhere; {
	case i >= at && i < at+r.batch:
		r.elsewhere = i + 1
		r.rises++
	case i < at && i >= at-r.near():
		// Of several goroutines one comes later; but it proves nothing.
	case r.rises > 0:
		r.rises--
		return false
	default:
		r.elsewhere = i + 1
		return false
	}
	return true
}

// fill plans batches until the program's lead is used up or there is no room.
func (r *replay) fill(plan *Plan) {
	ahead, batch := r.ahead, min(r.batch, r.ahead/4+1)
	if plan.Budget > 0 {
		// Of the batch that is being used, pages are evicted before their use if
		// those behind them fill the share.
		share := plan.Budget / aheadShare
		batch = min(batch, share/5+1)
		ahead = min(ahead, share-batch)
	}
	room := plan.Room
	for {
		for len(r.left) > 0 && room > 0 {
			n := int64(1)
			for n < room && n < int64(len(r.left)) && r.left[n] == r.left[0]+n {
				n++
			}
			plan.Add(r.left[0], n)
			r.left = r.left[n:]
			room -= n
		}
		r.planned = max(r.planned, r.reached)
		if room <= 0 || r.planned >= int64(len(r.order)) || r.planned+batch > r.reached+ahead {
			return
		}
		r.next(batch, plan)
	}
}

// next sorts the next batch. The page of it that the program will touch first
// is left out, unless the program is there already or there is no other.
func (r *replay) next(batch int64, plan *Plan) {
	b := r.order[r.planned:min(r.planned+batch, int64(len(r.order)))]
	at, marked := r.planned, r.planned > r.reached && len(b) > 1
	r.planned += int64(len(b))
	r.sorted = r.sorted[:0]
	for i, p := range b {
		switch {
		case p >= plan.Pages:
		case marked:
			marked = false
			plan.Mark(p)
			r.marks = append(r.marks, at+int64(i))
		default:
			r.sorted = append(r.sorted, p)
		}
	}
	slices.Sort(r.sorted)
	r.left = r.sorted
}
