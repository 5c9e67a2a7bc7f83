//go:build linux

package pager

import (
	"time"

	"github.com/uffdpager/uffdpager/coro"
)

// Holds
//
// A goroutine that was parked in place runs some time after its page has come,
// and under a budget of few pages the page may be gone again by then. So when
// there is a line for frames, or a goroutine faults on the same page twice in
// a row, the page is pinned for it: until the goroutine faults somewhere else,
// which shows that it has moved on, or for a while. An instruction may need
// four pages, so the last holdPages of a goroutine are kept as long as it stays
// at the same instruction.
const (
	holdPages = 4
	holdShort = time.Millisecond
	holdLong  = 20 * time.Millisecond // for a goroutine that had to come back
)

// faultHold is one page pinned for one goroutine.
type faultHold struct {
	r    *Region
	page uint64
	g    uintptr
	pc   uintptr
	till time.Time
}

// lastFault remembers the last fault of goroutines. Only the parker uses it.
var lastFault [4096]struct{ g, page uintptr }

// refault notes the fault and says whether the goroutine's last one was on the
// same page. It releases what was held for the goroutine, unless it is still
// at the same instruction.
func refault(pk coro.Parked) (again bool) {
	e := &lastFault[(pk.G>>5*0x9E3779B97F4A7C15)>>52]
	page := pk.Addr >> frameShift
	again = e.g == pk.G && e.page == page
	e.g, e.page = pk.G, page
	if r := regionAt(pk.Addr); r != nil && r.p.holding.Load() != 0 {
		r.p.movedOn(pk)
	}
	return again
}

// addHold keeps the pin on page, which the caller has, for the goroutine.
func (p *Pager) addHold(r *Region, page uint64, pk coro.Parked) {
	p.holdMu.Lock()
	p.holds = append(p.holds, faultHold{r, page, pk.G, pk.PC, time.Now().Add(holdLong)})
	p.holding.Store(int32(len(p.holds)))
	p.holdMu.Unlock()
}

// movedOn releases what is held for a goroutine that faults anew.
func (p *Pager) movedOn(pk coro.Parked) {
	n := 0
	p.release(func(h *faultHold) bool {
		if h.g != pk.G {
			return false
		}
		if h.pc == pk.PC {
			if n++; n < holdPages {
				return false
			}
		}
		return true
	})
	if p.waiting.Load() != 0 {
		p.serveLine()
	}
}

// dropHolds releases what has been held for longer than d. Somebody needs room.
func (p *Pager) dropHolds(d time.Duration) {
	if p.holding.Load() == 0 {
		return
	}
	limit := time.Now().Add(holdLong - d)
	p.release(func(h *faultHold) bool { return h.till.Before(limit) })
}

// release unpins the holds that the function picks, newest first.
func (p *Pager) release(pick func(*faultHold) bool) int {
	p.holdMu.Lock()
	var out []faultHold
	for i := len(p.holds) - 1; i >= 0; i-- {
		if h := p.holds[i]; pick(&h) {
			out = append(out, h)
			p.holds = append(p.holds[:i], p.holds[i+1:]...)
		}
	}
	p.holding.Store(int32(len(p.holds)))
	p.holdMu.Unlock()
	for _, h := range out {
		if h.r.unpinPage(h.page) {
			// Not giveCredits: the caller may be serving the line already.
			p.credits.give(h.page, h.r.fpp, true)
		}
	}
	return len(out)
}

// expireHolds is the housekeeper's: nothing is held much longer than holdLong.
func (p *Pager) expireHolds() {
	if p.holding.Load() != 0 {
		now := time.Now()
		if p.release(func(h *faultHold) bool { return h.till.Before(now) }) > 0 {
			p.serveLine()
		}
	}
}

// dropHoldsOf releases all that is held of r, which is being closed.
func (p *Pager) dropHoldsOf(r *Region) {
	p.release(func(h *faultHold) bool { return h.r == r })
	p.serveLine()
}
