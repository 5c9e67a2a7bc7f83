// Package writeback decides when dirty pages are written without being asked.
// It knows page numbers and counters, never a system call, an address or a
// lock.
//
// A [Policy] is told, some twenty times a second while anything is dirty, which
// pages have become dirty and which clean since it was last asked, and what
// time it is; it answers with runs of pages to write. It is called by one
// goroutine at a time, must not block and must not touch a region's memory.
//
// What a policy cannot decide is what must be: Sync writes what it is asked
// to, and a page that has to leave, or keeps others from becoming dirty, is
// written whatever the policy says. Writeback.NoSteal rules the latter out.
package writeback

import "time"

// Kind says what an Event reports.
type Kind uint8

const (
	// Dirty: Page has changes that are in no write yet.
	Dirty Kind = iota
	// Clean: a write of all that is in Page has begun, or its contents are not
	// wanted any more. If the write fails, Dirty follows.
	Clean
	// Tick: all Dirty and Clean events since the last Tick have been told.
	// What the plan holds when Observe returns is written.
	Tick
)

func (k Kind) String() string {
	switch k {
	case Dirty:
		return "dirty"
	case Clean:
		return "clean"
	case Tick:
		return "tick"
	}
	return "unknown"
}

// Event is one thing that happened. A page that became dirty and clean again
// between two ticks is not told of.
type Event struct {
	Kind Kind
	Page int64         // Dirty, Clean: page number in the region
	Now  time.Duration // since the region was mapped; monotonic
}

// Run is N consecutive pages from First.
type Run struct {
	First, N int64
}

// Plan collects the answer. The pager leaves out what is not dirty, and starts
// as much as reads leave room for; what it has not started by the next Tick is
// dropped, and would have to be planned again. It reuses one Plan for all
// calls: a policy must not keep it or its slices.
type Plan struct {
	Runs []Run

	Dirty   int64 // pages of the region that are dirty, those being written among them
	Writing int64 // of these, being written
	Limit   int64 // pages that may be dirty or pinned in the pager together
	Pages   int64 // pages in the region
	Reads   int64 // reads under way or waiting in the pager: writes come after these
}

// Add plans n pages from first.
func (p *Plan) Add(first, n int64) {
	if n > 0 {
		p.Runs = append(p.Runs, Run{first, n})
	}
}

// Reset empties the plan and keeps its memory.
func (p *Plan) Reset() { *p = Plan{Runs: p.Runs[:0]} }

// Policy decides. See the package comment for the rules it lives by.
type Policy interface {
	Observe(e Event, plan *Plan)
}

// Func makes a policy of a function.
type Func func(e Event, plan *Plan)

// Observe calls f.
func (f Func) Observe(e Event, plan *Plan) { f(e, plan) }
