// Package prefetch decides which page comes early. It knows page numbers and
// page bytes, never a system call or a pager lock.
//
// A [Policy] is told of every miss and of the first touch of every page that
// was prefetched, with the bytes of pages as they come in, and answers with
// pages to read. It is called by one goroutine at a time for each region, must
// not block and must not touch the region's memory: the bytes it needs are in
// Event.Data, which is the read buffer and only valid during the call.
//
// # Hits leave no trace
//
// A load from a resident page costs nothing because nothing sees it: not the
// pager, and so not a policy. Acquire and ReadAt do tell of the first touch of
// a prefetched page ([Touch]); raw access does not. A policy that must know how
// far a raw reader has come leaves a page out of what it reads ahead, a marker:
// the first access to that page is the news (Plan.Marks), as a Miss or, where
// the pager has read the page without mapping it, as a Touch. [Readahead], [Stride] and
// [Replay] leave out one page for each batch they plan, near its beginning, so
// that the batch after it is under way before this one is used up.
//
// # What there is
//
// [None], [Readahead] (the default of a region), [Stride], [Record] and
// [Replay], and [Func] or [DataFunc] for an application that knows better: see
// the examples. A policy belongs to one region; make one for each.
package prefetch

// Kind says what an Event reports.
type Kind uint8

const (
	// Miss: somebody needs Page and its read is about to be submitted. Pages
	// planned now join the same submission. Data is nil.
	Miss Kind = iota
	// Touch: the first access to a page that was prefetched, noticed by
	// Acquire or ReadAt, or by any access at all if the page's read was still
	// under way (Event.Late). Data is nil.
	Touch
	// Arrived: Page has been read; Data holds its bytes. Only sent to
	// policies that implement Wants and ask for it.
	Arrived
	// Hint: the program named Page itself: each page that Region.Prefetch names and
	// that is not there yet, and the first of the range of an Advise WillNeed. The page
	// is fetched in any case; the policy may add its neighbours.
	Hint
)

func (k Kind) String() string {
	switch k {
	case Miss:
		return "miss"
	case Touch:
		return "touch"
	case Arrived:
		return "arrived"
	case Hint:
		return "hint"
	}
	return "unknown"
}

// Event is one thing that happened to one page.
type Event struct {
	Kind Kind
	Page int64  // page number in the region: offset / page size
	Data []byte // Arrived: the page's bytes, valid during the call; else nil
	// Demand is true for Arrived when somebody waited for the page, false
	// when it was itself prefetched.
	Demand bool
	// Late is true for Touch when the page's read was still under way, so that
	// somebody has to wait for the rest of it; and for Miss when the page was
	// planned and the pager had no room for its read yet: it will read the rest of
	// that run next, and nothing of it need be planned again.
	Late bool
}

// Run is N consecutive pages from First, read ahead as a unit.
type Run struct {
	First, N int64
}

// Plan collects the answer. The pager drops what is resident, under way,
// outside the region or over the room it has, and never delays a demand read by
// more than one device service time. What is read ahead and not used displaces
// pages that have been used once, and no more of them than an eighth of the
// budget besides what is under way, if eviction is the default.
//
// The pager reuses one Plan for all calls (see Reset), so that planning does
// not allocate; a policy must not keep it or its slices.
type Plan struct {
	Runs []Run
	// Drop lists runs the policy expects never to be needed again
	// (drop-behind): they leave first when room is needed. It concerns pages
	// that came by prefetch or by a single miss; what has proven hot stays.
	Drop []Run
	// Marks lists the markers among the pages near Runs: left out of Runs on
	// purpose, because their first access is news. The pager reads such a page
	// with its neighbours and only does not map it, so that the news is a Touch
	// and costs no read of its own. Of more markers than it can keep, and of
	// large pages that are not moved, the news is an ordinary Miss.
	Marks []int64
	// Known says that the page of the event belongs to something the policy follows,
	// although it may plan nothing more now. A miss that is neither known nor
	// answered with a plan is a surprise, and while there are surprises less is read
	// ahead, so that they do not wait behind it.
	Known bool
	// Room is the number of pages the pager is ready to start reading ahead
	// now; a hint, so that a policy need not plan in vain.
	Room int64
	// Budget is the number of pages that may be resident in the region; 0:
	// not known. Pages read ahead and not yet used are to hold a small part of
	// it.
	Budget int64
	// Pages is the number of pages in the region.
	Pages int64
	// PageSize is the size of a page in bytes; 0 means 4096.
	PageSize int64
}

// Add plans n pages from first, in the order in which they should be read.
func (p *Plan) Add(first, n int64) {
	if n > 0 {
		p.Runs = append(p.Runs, Run{first, n})
	}
}

// Mark lists page in Marks.
func (p *Plan) Mark(page int64) { p.Marks = append(p.Marks, page) }

// Behind lists n pages from first in Drop.
func (p *Plan) Behind(first, n int64) {
	if n > 0 {
		p.Drop = append(p.Drop, Run{first, n})
	}
}

// Reset empties the plan and keeps its memory.
func (p *Plan) Reset() {
	p.Runs, p.Drop, p.Marks, p.Known = p.Runs[:0], p.Drop[:0], p.Marks[:0], false
}

// pages converts a length in bytes to pages, at least one.
func (p *Plan) pages(bytes int64) int64 {
	return max(1, bytes/p.pageSize())
}

const defaultPageSize = 4096

func (p *Plan) pageSize() int64 {
	if p.PageSize <= 0 {
		return defaultPageSize
	}
	return p.PageSize
}

// Policy decides. See the package comment for the rules it lives by.
type Policy interface {
	Observe(e Event, plan *Plan)
}

// Feedback counts what became of a policy's prefetches since the region was
// mapped, without those of the policy that Advise(Sequential) has in its place
// meanwhile. Raw reads of a page that has arrived leave no trace: where access is
// raw, Used is a lower and Unused an upper bound.
type Feedback struct {
	Issued int64 // pages read ahead
	Used   int64 // of these, touched before they were evicted
	Unused int64 // of these, evicted untouched
	Late   int64 // demanded while their read was still under way
}

// Learner is implemented by policies that want Feedback. It is called before
// Observe whenever the counts have changed.
type Learner interface {
	Learn(f Feedback)
}

// Wants is implemented by policies that look at page bytes. Without it (or if
// it returns false) Arrived is never sent.
type Wants interface {
	WantsData() bool
}

// None returns the policy that never prefetches.
func None() Policy { return none{} }

type none struct{}

func (none) Observe(Event, *Plan) {}

// Func makes a policy of a function that looks at page numbers only.
type Func func(e Event, plan *Plan)

// Observe calls f.
func (f Func) Observe(e Event, plan *Plan) { f(e, plan) }

// DataFunc makes a policy of a function that looks at the bytes of pages as
// they come in: it is sent Arrived events as well.
type DataFunc func(e Event, plan *Plan)

// Observe calls f.
func (f DataFunc) Observe(e Event, plan *Plan) { f(e, plan) }

// WantsData returns true.
func (f DataFunc) WantsData() bool { return true }
