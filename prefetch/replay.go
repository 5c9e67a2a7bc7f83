package prefetch

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// ReplayOptions configure Replay. The zero value works.
type ReplayOptions struct {
	// PageSize is that of the region, in bytes. If it is given and the trace
	// has another, Replay returns an error; if it is 0 and the region turns
	// out to have another, nothing is replayed.
	PageSize int64
	// Batch is how much is sorted and read together, in bytes; 0: 4 MiB.
	// Ahead is how far the batches run ahead of the program; 0: 32 MiB. At
	// most a quarter of the budget is used.
	Batch, Ahead int64
}

// Replay returns a policy that reads a trace made by [Record] and fetches its
// pages ahead of a program that touches the same pages in about the same order:
// a warm restart. Each batch is sorted and coalesced into runs. How far the
// program has come is seen from its misses and touches; one page of each batch
// is left out as a marker, the first to be touched.
//
// Pages the trace does not know, and all that happens when the trace has been
// read ahead to its end, are left to [Readahead]. A program that goes another
// way than the trace is followed once 64 misses and touches in a row lie beyond
// what was planned.
//
// Errors are those of r, and [ErrTrace].
func Replay(r io.Reader, o ReplayOptions) (Policy, error) {
	t, err := ReadTrace(r)
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	if o.PageSize != 0 && o.PageSize != t.PageSize {
		return nil, fmt.Errorf("replay: %w of pages of %d bytes, its pages have %d", ErrTrace, o.PageSize, t.PageSize)
	}
	if o.Batch <= 0 {
		o.Batch = 4 << 20
	}
	if o.Ahead <= 0 {
		o.Ahead = 32 << 20
	}
	p := &replay{
		pageSize: t.PageSize,
		batch:    max(o.Batch/t.PageSize, 1),
		ahead:    max(o.Ahead/t.PageSize, 1),
		after:    newReadahead(ReadaheadOptions{}),
	}
	p.load(t.Pages)
	return p, nil
}

// maxStrays is how many events in a row may lie beyond what was planned before
// the program is believed to be there: one goroutine of many may be.
const maxStrays = 64

type replay struct {
	pageSize     int64
	batch, ahead int64 // pages

	order []int64 // pages by first touch
	pages []int64 // the same, sorted
	at    []int32 // of pages: where in order

	reached int64 // pages of order that the program is known to have come to
	planned int64 // pages of order that have been planned
	strays  int

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
	if r.done() || plan.pageSize() != r.pageSize {
		r.after.Observe(e, plan)
		return
	}
	i, known := slices.BinarySearch(r.pages, e.Page)
	if !known {
		r.after.Observe(e, plan)
		return
	}
	r.follow(int64(r.at[i]))
	r.fill(plan)
}

// Learn implements Learner.
func (r *replay) Learn(f Feedback) {
	if r.done() {
		r.after.Learn(f)
	}
}

// done reports whether all of the trace has been planned.
func (r *replay) done() bool {
	return r.planned >= int64(len(r.order)) && len(r.left) == 0
}

// follow takes note that the program has touched the page at place i of order.
func (r *replay) follow(i int64) {
	switch {
	case i < r.reached:
		r.strays = 0
	case i < r.planned+r.batch:
		r.strays = 0
		r.reached = i + 1
	default:
		if r.strays++; r.strays < maxStrays {
			return
		}
		r.strays = 0
		r.reached, r.planned, r.left = i+1, i, nil
	}
}

// fill plans batches until the program's lead is used up or there is no room.
func (r *replay) fill(plan *Plan) {
	ahead := r.ahead
	if plan.Budget > 0 {
		ahead = min(ahead, plan.Budget/4)
	}
	batch := min(r.batch, ahead/4+1)
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
// is left out, unless the program is there already.
func (r *replay) next(batch int64, plan *Plan) {
	b := r.order[r.planned:min(r.planned+batch, int64(len(r.order)))]
	marked := r.planned > r.reached
	r.planned += int64(len(b))
	r.sorted = r.sorted[:0]
	for _, p := range b {
		switch {
		case p >= plan.Pages:
		case marked:
			marked = false
			plan.Mark(p)
		default:
			r.sorted = append(r.sorted, p)
		}
	}
	slices.Sort(r.sorted)
	r.left = r.sorted
}
