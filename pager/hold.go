//go:build linux

package pager

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/coro"
)

// Holds
//
// A goroutine that was parked in place runs some time after its page has come,
// and under a budget of few pages the page may be gone again by then. So when
// there is a line for room, or a goroutine faults on the same page twice in a
// row, the page is pinned for it: until the goroutine faults somewhere else,
// which shows that it has moved on, or for a while. An instruction may need
// four pages, so the last holdPages of a goroutine are kept as long as it stays
// at the same instruction; half of what can be pinned at most, unless it is its
// turn (turn.go).
const (
	holdPages = 4
	holdShort = time.Millisecond // after that, if somebody needs the room
	holdLong  = 20 * time.Millisecond
)

// heldPage is a pin.
type heldPage struct {
	r    *Region
	page uint64
}

// goHold is what is held for one goroutine.
type goHold struct {
	g, pc      uintptr
	since      time.Time
	n          int
	at         [holdPages]heldPage
	prev, next *goHold // by since, oldest first
}

// holdTable is all that is held of a pager. Its size is that of what can be
// pinned.
type holdTable struct {
	mu    sync.Mutex
	byG   map[uintptr]*goHold
	first *goHold
	last  *goHold
	spare *goHold
	n     atomic.Int32 // goroutines with holds
	turn  turn
}

func (t *holdTable) unlink(h *goHold) {
	if h.prev == nil {
		t.first = h.next
	} else {
		h.prev.next = h.next
	}
	if h.next == nil {
		t.last = h.prev
	} else {
		h.next.prev = h.prev
	}
	h.prev, h.next = nil, nil
}

// remove takes h out of the table; t.mu is held.
func (t *holdTable) remove(h *goHold) {
	t.unlink(h)
	delete(t.byG, h.g)
	t.n.Add(-1)
}

// recycle keeps h, which has been removed and emptied.
func (t *holdTable) recycle(h *goHold) {
	t.mu.Lock()
	*h = goHold{next: t.spare}
	t.spare = h
	t.mu.Unlock()
}

// lastFault remembers the last fault of goroutines. Only the parker uses it.
var lastFault [4096]struct {
	g, page, pc uintptr
	n           int                // faults in a row at the same instruction
	pages       [holdPages]uintptr // the last ones there, distinct
	back        int                // faults in a row on one of these: in vain
}

// refault notes the fault and says whether the goroutine's last one was on the
// same page, and whether it has been at the same instruction for long. It
// releases what was held for the goroutine, unless it is still there.
func refault(pk coro.Parked) (again, stuck bool) {
	e := &lastFault[pk.G>>5*0x9E3779B97F4A7C15>>52]
	page := pk.Addr >> frameShift
	again = e.g == pk.G && e.page == page
	same := e.g == pk.G && e.pc == pk.PC
	if same {
		e.n++
	} else {
		e.n, e.pages = 0, [holdPages]uintptr{}
	}
	if same && slices.Contains(e.pages[:], page) {
		e.back++
	} else {
		e.back = 0
		copy(e.pages[1:], e.pages[:])
		e.pages[0] = page
	}
	e.g, e.page, e.pc = pk.G, page, pk.PC
	if r := regionAt(pk.Addr); r != nil {
		through := r.p.holds.mayTakeTurn(pk.G, e.back)
		if r.p.holds.n.Load() != 0 {
			r.p.movedOn(pk, through)
		}
	}
	return again, e.n > 8
}

// addHold keeps the pin on page, which the caller has, for the goroutine.
func (p *Pager) addHold(r *Region, page uint64, pk coro.Parked) {
	t := &p.holds
	most := p.pinnable.Load() / p.largestPage.Load()
	limit := int(min(max(most/2, 1), holdPages))
	var out heldPage
	t.mu.Lock()
	if t.turn.arrived(pk.G) {
		limit = int(min(max(most, 1), holdPages))
	}
	h := t.byG[pk.G]
	if h == nil {
		if h = t.spare; h != nil {
			t.spare = h.next
			h.next = nil
		} else {
			h = new(goHold)
		}
		h.g = pk.G
		if t.byG == nil {
			t.byG = map[uintptr]*goHold{}
		}
		t.byG[pk.G] = h
		t.n.Add(1)
	} else {
		t.unlink(h)
	}
	h.pc, h.since = pk.PC, time.Now()
	if h.n >= limit {
		out = h.at[0]
		copy(h.at[:], h.at[1:])
		h.n--
	}
	h.at[h.n] = heldPage{r, page}
	h.n++
	if h.prev = t.last; h.prev == nil {
		t.first = h
	} else {
		h.prev.next = h
	}
	t.last = h
	first := t.first == h
	t.mu.Unlock()
	if first {
		p.w.wake() // the housekeeper sleeps without a clock while nothing is held
	}
	if out.r != nil {
		out.r.unpin(pageRange{out.page, 1}, false)
	}
}

// movedOn releases what is held for a goroutine that faults anew, at another
// instruction, or at the same one for other pages.
func (p *Pager) movedOn(pk coro.Parked, through bool) {
	t := &p.holds
	t.mu.Lock()
	h := t.byG[pk.G]
	if h == nil || h.pc == pk.PC && !through {
		t.mu.Unlock()
		return
	}
	t.remove(h)
	t.mu.Unlock()
	p.letGo(h)
	p.serveLine()
}

// letGo unpins what a removed hold has and recycles it. It does not serve the
// line: the caller may be doing that already.
func (p *Pager) letGo(h *goHold) {
	for _, a := range h.at[:h.n] {
		if a.r.unpinPage(a.page) {
			p.credits.give(a.r.fpp, true)
		}
	}
	p.holds.recycle(h)
}

// dropHold releases the oldest hold if it is older than d; not that of whose turn
// it is if turns count. Somebody needs room; he looks for it himself.
func (p *Pager) dropHold(d time.Duration, turns bool) bool {
	t := &p.holds
	if t.n.Load() == 0 {
		return false
	}
	t.mu.Lock()
	h := t.first
	if turns && h != nil && t.turn.isOf(h.g) {
		h = h.next
	}
	if h == nil || time.Since(h.since) < d {
		t.mu.Unlock()
		return false
	}
	t.remove(h)
	t.mu.Unlock()
	p.letGo(h)
	return true
}

// dropHolds releases all that has been held for longer than d.
func (p *Pager) dropHolds(d time.Duration) (n int) {
	for p.dropHold(d, false) {
		n++
	}
	return n
}

// expireHolds is the housekeeper's: nothing is held much longer than holdLong.
func (p *Pager) expireHolds() {
	if p.dropHolds(holdLong) > 0 {
		p.serveLine()
	}
}
