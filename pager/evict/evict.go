// Package evict decides which page leaves. It knows page numbers, never a
// system call, an address or a region.
package evict

// Page identifies a page within one policy. The number means nothing to the
// policy beyond equality.
type Page uint64

// Reason says why a page became resident.
type Reason uint8

const (
	Demand   Reason = iota // somebody waited for it
	Prefetch               // nobody has asked for it yet: colder than a demanded page of its age
	Reprieve               // the policy gave it up, but it could not leave (pinned, written meanwhile)
)

// Verdict is the pager's answer to a candidate.
type Verdict uint8

const (
	// Gone: the page will leave. The policy forgets it (and may remember its
	// ghost). If it cannot leave after all, Install(p, Reprieve) follows,
	// after Evict has returned.
	Gone Verdict = iota
	// Touched: the page was used again since it was last offered, or since
	// Install; treat it as a hit. The access that brought it in does not
	// count: if it did, every page of a scan would look hot. Being asked
	// clears the touch.
	Touched
	// Busy: the page cannot leave now (pinned, being written); keep it, offer
	// others first.
	Busy
	// Unknown: the page is not resident any more; forget it without a ghost.
	Unknown
	// Stop: keep the page where it is and offer no more for now. The pager
	// says so when evictions must keep the policy's order exactly and the page
	// has to be written before it can leave.
	Stop
)

// Policy orders the resident pages for eviction. Calls are serialised by the
// pager, which holds none of its own locks meanwhile; a Policy must not call
// back into the pager except through take, and must not block. Take in turn
// must not call the policy.
//
// Raw hits leave no trace (the hardware page table serves them), so a policy
// sees misses (Install), and touches only where there were explicit ones
// (Acquire, ReadAt), lazily, as the verdict Touched.
type Policy interface {
	// Install tells that p has become resident: some time after it has, together with
	// others, and before Evict is called. A page that is already known
	// is only updated: the pager may install twice. Install(p, Demand) of a
	// resident page that was prefetched tells of its first use.
	Install(p Page, why Reason)

	// Remove tells that p left for another reason than Evict: discarded,
	// truncated, region closed. Unknown pages are ignored. No ghost.
	Remove(p Page)

	// Evict offers candidates to take, best first, until n verdicts were Gone,
	// one was Stop, or every resident page has been offered about twice; it
	// always ends. A page is offered only while it is resident as far as the policy has been
	// told. It returns the number of Gone verdicts. A policy that keeps pages to itself has
	// whoever wants their room wait until it offers them, or fail with pager.ErrBudget if
	// nothing at all has left for pager.Options.StallLimit.
	Evict(n int, take func(Page) Verdict) int

	// Cold moves p to where it is evicted next (drop-behind, Advise(Cold)),
	// after those that are there already. Unknown pages are ignored.
	Cold(p Page)

	// SetCapacity tells how many pages the budget holds: at least once before
	// the first Install, and again when it changes. It evicts nothing; more
	// pages than the capacity may be resident until the pager has.
	SetCapacity(pages int)

	// Len is the number of resident pages known.
	Len() int
}

// Dropper is implemented by policies that tell drop-behind from advice. The
// pager uses Drop for pages a prefetcher expects not to be needed again, and
// Cold for what the program itself has called cold; without Dropper it uses
// Cold for both.
type Dropper interface {
	// Drop moves p to where it is evicted next unless it has proven to be in
	// use by more than the scan that drops it. Unknown pages are ignored.
	Drop(p Page)
}
