//go:build linux

package pager

import (
	"fmt"

	"github.com/uffdpager/uffdpager/prefetch"
)

// Advise tells what will be done with [off, off+n), after madvise(2).
//
// Normal, Random and Sequential set the mode of the whole region (the range is
// only checked): Random switches prefetching off, Normal on again; Sequential
// reads further ahead and lets what was read leave first. WillNeed starts
// reading the range, as much of it as half of the budget holds, and does not
// wait; where memory is full of pages in use, an eighth of the budget stays until
// it is used. DontNeed drops the clean unpinned pages of the range now; dirty
// ones stay. Cold lets the range leave before anything else.
func (r *Region) Advise(off, n int64, a Advice) error {
	if err := r.checkRange("advise", off, n); err != nil {
		return err
	}
	if a > Cold {
		return fmt.Errorf("pager: unknown advice %d", a)
	}
	if !r.enter() {
		return ErrClosed
	}
	defer r.leave()
	switch a {
	case Normal, Random:
		r.ahead.disabled.Store(a == Random)
		r.sequential(false)
		return nil
	case Sequential:
		r.ahead.disabled.Store(false)
		r.sequential(true)
		return nil
	}
	if n == 0 {
		return nil
	}
	pr := r.pageRange(off, n)
	switch a {
	case WillNeed:
		r.observe(prefetch.Event{Kind: prefetch.Hint, Page: int64(pr.first)}, false)
		r.readAhead(pr, 0)
	case DontNeed:
		r.dropClean(pr)
	case Cold:
		r.p.lockEvict()
		r.eachIn(pr, func(page uint64, w word) {
			if present(w) || isMarker(w) {
				r.domain.policy.Cold(pageKey(r.d, page))
			}
		})
		r.p.evictMu.Unlock()
	}
	return nil
}

// sequential switches the policy for Advise(Sequential) and back. What becomes of pages
// meanwhile counts for whoever is the policy then.
func (r *Region) sequential(on bool) {
	a := &r.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case on && a.normal == nil:
		a.normal, a.normals = a.policy, minus(r.aheadCounts(), a.before)
		r.setPolicy(prefetch.Readahead(prefetch.ReadaheadOptions{MinWindow: 512 << 10}))
		a.before, a.told = r.aheadCounts(), prefetch.Feedback{}
	case !on && a.normal != nil:
		r.setPolicy(a.normal)
		a.before, a.told = minus(r.aheadCounts(), a.normals), a.normals
		a.normal = nil
	}
}

// eachIn calls fn for the claimed pages of pr.
func (r *Region) eachIn(pr pageRange, fn func(page uint64, w word)) {
	for page := pr.first; page < pr.first+pr.n; page++ {
		pw, w := r.d.look(page)
		if pw == nil {
			page |= leafPages - 1 // nothing in this group
			continue
		}
		if w&stateMask != stMissing {
			fn(page, w)
		}
	}
}

// dropClean evicts the clean unpinned pages of pr.
func (r *Region) dropClean(pr pageRange) {
	p := r.p
	out := r.evictor(func(uint64) { p.stats.evictions.Add(1) })
	if frames := r.dropUnmapped(pr); frames > 0 {
		p.stats.evictions.Add(frames / r.fpp)
		p.unreserve(frames)
	}
	r.eachIn(pr, out.add)
	out.flush()
}
