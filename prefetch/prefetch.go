// Package prefetch decides which page comes early. It knows page numbers and
// page bytes, never a system call or a pager lock.
//
// A [Policy] is told of every miss and of the first touch of every page that
// was prefetched, with the bytes of pages as they come in, and answers with
// pages to read. It is called by one goroutine at a time for each region, must
// not block and must not touch the region's memory: the bytes it needs are in
// Event.Data, which is the read buffer and only valid during the call.
package prefetch

// Kind says what an Event reports.
type Kind uint8

const (
	// Miss: somebody needs Page and its read is about to be submitted. Pages
	// planned now join the same submission. Data is nil.
	Miss Kind = iota
	// Touch: the first access to a page that was prefetched, noticed by
	// Acquire or ReadAt, or by the fault on a marker page (Plan.Marker).
	Touch
	// Arrived: Page has been read; Data holds its bytes. Only sent to
	// policies that implement Wants and ask for it.
	Arrived
	// Hint: the program named Page itself (Region.Prefetch, Advise WillNeed).
	// The page is fetched in any case; the policy may add its neighbours.
	Hint
)

// Event is one thing that happened to one page.
type Event struct {
	Kind Kind
	Page int64  // page number in the region: offset / page size
	Data []byte // Arrived: the page's bytes, valid during the call; else nil
	// Demand is true for Arrived when somebody waited for the page, false
	// when it was itself prefetched.
	Demand bool
}

// Run is N consecutive pages from First, read ahead as a unit.
type Run struct {
	First, N int64
}

// Plan collects the answer. The pager drops what is resident, under way,
// outside the region or over the room it has; it never evicts a hotter page
// for it and never delays a demand read by more than one device service time.
type Plan struct {
	Runs []Run
	// Drop lists runs the policy expects never to be needed again
	// (drop-behind): they leave first when room is needed.
	Drop []Run
	// Room is the number of pages the pager is ready to read ahead now; a
	// hint, so that a policy need not plan in vain.
	Room int64
	// Pages is the number of pages in the region.
	Pages int64
}

// Add plans n pages from first.
func (p *Plan) Add(first, n int64) {
	if n > 0 {
		p.Runs = append(p.Runs, Run{first, n})
	}
}

// Policy decides. See the package comment for the rules it lives by.
type Policy interface {
	Observe(e Event, plan *Plan)
}

// Feedback counts what became of a policy's prefetches since the region was
// mapped.
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
