//go:build linux

package pager

import (
	"math"
	"math/rand/v2"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// Credits that clean pages keep
//
// A page that is pinned again and again would take its credit and give it back
// each time: twice the locked instructions of a hit. So when the last pin goes
// the page keeps its credit (flagKept), and the next pin, or the first store,
// finds it there. Most credits lie with pages then; they come back when a page
// leaves, and when others need them: reclaim takes them from pages that are not
// pinned. It is code that anybody may run, also without a P, for a fault server
// must not depend on what ordinary code has left lying about.
//
// When credits are really short (not even reclaim finds enough, or somebody
// stands in line for them) the pager says that they are scarce. As long as it
// does Release gives them back at once, to whoever is first in line. A Release
// that has not seen that yet is not lost: it looks again when the credit has
// been kept, and reclaim begins after scarce has been set, so that one of the
// two sees the other.
//
// kept counts the credits of pages with flagKept, pinned or not. It is raised
// before the flag is set, and lowered when the credit is where it can be had:
// nothing is kept when it is 0.
const (
	keptMost      = 1024 // leaves that are asked when it is not urgent
	reclaimLeaves = 16   // by a signal handler
	reclaimFew    = 16   // frames
	reclaimSome   = 512
)

// returnKept makes kept credits of pages that leave available.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) returnKept(n int64) {
	add64(&w.credits, n)
	add64(&w.kept, -n)
}

// reclaimVia is reclaim; see cleanVia.
var reclaimVia = reclaim

// reclaim takes kept credits from unpinned pages, at least want if there are so
// many, and adds them to the global stock. It looks at no more than so many
// leaves. Pages that are pinned keep theirs until they are unpinned, but no
// longer.
//
//go:nosplit
//go:norace
//go:nocheckptr
func reclaim(words *pagerWords, want int64, leaves uint32) (got int64) {
	used := bare.Load32(&sp.leafUsed)
	h := bare.Load32(&words.keptHand)
	for i := uint32(0); i <= used && i < leaves; i++ {
		if got >= want || load64(&words.kept) <= 0 {
			break
		}
		if h++; h > used {
			h = 1
		}
		d, m := words.enterLeaf(h)
		if d == nil {
			continue
		}
		got += reclaimLeaf(d, bare.Load64(&m.group)<<leafShift)
		d.leave()
	}
	bare.Store32(&words.keptHand, h)
	return got
}

//go:nosplit
//go:norace
//go:nocheckptr
func reclaimLeaf(d *desc, first uint64) (got int64) {
	n := d.framesPerPage()
	for page := first; page < first+leafPages && page < d.pages; page++ {
		pw, w := d.look(page)
		for turn := 0; pw != nil && w&flagKept != 0; turn++ {
			if w&stateMask != stResident {
				relax(turn) // it is leaving
			} else if bare.Cas64(pw, w, w&^flagKept) {
				if w&pinMask == 0 {
					d.words.returnKept(n)
					got += n
				} else {
					add64(&d.words.kept, -n) // its pins have it
				}
			}
			pw, w = d.look(page)
		}
	}
	return got
}

// unpinLast is unpinPage where the page may be about to keep its credit.
func (r *Region) unpinLast(pw *word) (free bool) {
	kept := &r.p.w.kept
	for turn := 0; ; turn++ {
		w := atomic.LoadUint64(pw)
		n := w - pinOne
		switch {
		case w&pinMask == 0:
			panic("pager: Release of a page that is not pinned")
		case w&pinMask != pinOne || unclean(w):
			if atomic.CompareAndSwapUint64(pw, w, n) {
				return false
			}
		case w&stateMask == stInstalling:
			relaxGo(turn) // it may be born dirty, with this pin's credit
		case atomic.LoadUint32(r.scarce) != 0 || w&stateMask != stResident: // what is on its way in keeps nothing
			if atomic.CompareAndSwapUint64(pw, w, n&^flagKept) {
				if w&flagKept != 0 {
					add64(kept, -r.fpp)
				}
				if rand.Uint32()%64 == 0 {
					r.p.easeCredits()
				}
				return true
			}
		default:
			if w&flagKept == 0 {
				add64(kept, r.fpp)
			}
			if atomic.CompareAndSwapUint64(pw, w, n|flagKept) {
				return atomic.LoadUint32(r.scarce) != 0 && r.unkeep(pw, w>>32)
			}
			if w&flagKept == 0 {
				add64(kept, -r.fpp)
			}
		}
	}
}

// unkeep takes back the credit that a page has just kept. The page is not the
// caller's any more: its word is if the generation still is the same.
func (r *Region) unkeep(pw *word, gen uint64) (free bool) {
	for {
		w := atomic.LoadUint64(pw)
		if w>>32 != gen || w&stateMask != stResident || w&flagKept == 0 || w&pinMask != 0 {
			return false // whoever has changed it sees to its credit
		}
		if atomic.CompareAndSwapUint64(pw, w, w&^flagKept) {
			add64(&r.p.w.kept, -r.fpp)
			return true
		}
	}
}

// refill sees to it that there is a stock, before it is urgent.
func (c *credits) refill() {
	stock := c.global.Load()
	if stock >= c.low.Load() || atomic.LoadUint32(&c.w.scarce) != 0 {
		return
	}
	if want := min(c.high.Load()-stock, reclaimSome); reclaim(c.w, want, keptMost) < want {
		atomic.StoreUint32(&c.w.scarce, 1)
	}
}

// recall calls all kept credits in.
func (c *credits) recall() {
	atomic.StoreUint32(&c.w.scarce, 1)
	for turn := 0; turn < 4 && load64(&c.w.kept) > 0; turn++ {
		reclaim(c.w, math.MaxInt64, maxLeaves)
	}
}

// muster brings n credits together where P-less code looks for them, and says
// whether there were so many.
func (c *credits) muster(n int64) bool {
	c.gather()
	if c.global.Load() < n {
		c.recall()
	}
	return c.global.Load() >= n
}

// easeCredits lets pages keep credits again if there are enough and nobody waits
// for them. The line's lock makes sure that credits are scarce as long as
// somebody does; see append.
func (p *Pager) easeCredits() {
	c := &p.credits
	if c.left() < c.high.Load() {
		return
	}
	p.line.mu.Lock()
	if p.lineLen[lineCredits].Load() == 0 {
		atomic.StoreUint32(&p.w.scarce, 0)
	}
	p.line.mu.Unlock()
}
