//go:build linux

package pager

import (
	"sync"

	"github.com/uffdpager/uffdpager/pager/evict"
)

// Arrivals
//
// Every miss has a page for an eviction policy to hear of, and whoever evicts has the
// policies, with evictMu, for as long as a batch takes to leave. Who waited for him to
// tell of a single page would be one of a queue of all who miss: two processors got no
// more done than one. So pages that have come are put on a list, which takes tens of nanoseconds, and
// the policies are told of some together: by whoever has added enough of them and finds
// evictMu free, and in any case by the next to lock it. What they are asked about
// or told under evictMu they are asked and told with everything known that came
// before.
//
// A page that is on the list is resident, and not yet offered for eviction. There are
// few such pages, and none when somebody looks for a victim.
type arrivals struct {
	mu    sync.Mutex
	list  []arrival
	spare []arrival // its memory, for the next time; guarded by evictMu
}

type arrival struct {
	dm  *domain
	key evict.Page
	why evict.Reason
}

const (
	arrivalsSome = 32  // are told together, and …
	arrivalsMost = 128 // … are not left for others: whoever adds to so many waits for evictMu
)

// lockEvict locks evictMu and tells the policies what they have not been told.
func (p *Pager) lockEvict() {
	p.evictMu.Lock()
	p.tellArrivals()
}

// tellArrivals tells the policies of the pages on the list. evictMu is held.
func (p *Pager) tellArrivals() {
	a := &p.arrivals
	a.mu.Lock()
	list := a.list
	a.list, a.spare = a.spare[:0], nil
	a.mu.Unlock()
	for i := range list {
		e := &list[i]
		e.dm.policy.Install(e.key, e.why)
	}
	clear(list)
	a.spare = list[:0]
}

// tellSome is called by who has added to the list, without a lock, and so made it n long.
func (p *Pager) tellSome(n int) {
	switch {
	case n >= arrivalsMost:
		p.lockEvict()
	case n >= arrivalsSome && p.evictMu.TryLock():
		p.tellArrivals()
	default:
		return
	}
	p.evictMu.Unlock()
}

// tellEvict tells the eviction policy, sooner or later, that a page is resident.
func (p *Pager) tellEvict(r *Region, page uint64, why evict.Reason) {
	p.noteInstalled(r, page, []installResult{{code: installDone}}, why)
}

// noteInstalled is tellEvict for those of the pages from first on that were installed.
func (p *Pager) noteInstalled(r *Region, first uint64, res []installResult, why evict.Reason) {
	a := &p.arrivals
	a.mu.Lock()
	for j := range res {
		if res[j].code == installDone {
			a.list = append(a.list, arrival{r.domain, pageKey(r.d, first+uint64(j)), why})
		}
	}
	n := len(a.list)
	a.mu.Unlock()
	p.tellSome(n)
}
