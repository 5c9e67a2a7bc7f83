//go:build linux

package pager

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// What a blocked store can rely on
//
// A store that blocks its thread gets a credit without help from Go: it writes
// some dirty page itself. It cannot where every credit is claimed by code that
// the scheduler can stop: by pins (whose holders must run to release them),
// pages whose write such code has started and will end, credits that it has
// taken or saved and not used yet, or keeps. Then, with the world being stopped
// or every P blocked in a store, the store waits for somebody who waits for it.
//
// So claims are bounded: they grow only while the global stock is not below
// -creditTight, which is what servers have beyond zero (creditLast) but for its
// last two pages. What is used below that is used by blocked stores only, for
// pages that are Dirty and that anybody may clean; two, because a store may go
// across the end of a page. Ordinary ways of taking a credit leave zero or more
// anyway. What else would let claims grow, and looks at tight first:
//
//   - A pin of a page that is dirty, and so has its credit already (pinHit). It
//     takes the slow way, with a credit of its own, which it then gives back.
//   - Credits that come back (give, giveCredits): they pay the stock back before
//     they go to a shard or to the first in line.
//   - A write that is started (mayFly): as many pages stay Dirty as the stock is
//     short of. Those are written by the rescuer (rescue.go), whom nobody can stop:
//     reads need their frames, and a Sync wants all pages written.
//
// Between a look at the stock and what is done on it a store may take a credit:
// that is left to chance, and to the limit of serveWrite. So it is if the rescuer
// does not get the pages written within reliefLimit.

// tight: credits may not be claimed now, but by blocked stores.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) tight() bool { return load64(&w.credits) < -load64(&w.creditTight) }

// freely is mayFly's answer where it does not matter.
const freely = math.MaxInt32

// mayFly is how many of r's dirty pages may be on their way to the store, in
// addition to those that are, so that enough are left for blocked stores to
// clean.
func (p *Pager) mayFly(r *Region) int {
	left := &p.flush.left
	if !p.w.tight() {
		if left.Load() != 0 {
			left.Store(0)
		}
		return freely
	}
	if bare.Load32(&r.d.flags)&descServeDirty == 0 || atomic.LoadInt32(&rescuer.timer) <= 0 {
		return freely // they cannot write this one's, or there is no rescuer
	}
	short := -load64(&p.w.creditTight) - load64(&p.w.credits)
	have := int64(0)
	used := atomic.LoadUint32(&sp.leafUsed)
	for leaf := uint32(1); leaf <= used; leaf++ {
		m := metaOf(leaf)
		bits, di := atomic.LoadUint64(&m.dirty), atomic.LoadUint32(&m.desc)
		if di == 0 || bits == 0 {
			continue
		}
		d, group := descAt(di), atomic.LoadUint64(&m.group)
		if d.words != p.w || bare.Load32(&d.flags)&descServeDirty == 0 || !d.owns(leaf, group) {
			continue
		}
		for k := range uint64(leafPages) {
			if bits>>k&1 == 0 {
				continue
			}
			if pw, w := d.look(group<<leafShift + k); pw != nil && w&stateMask == stDirty && w&(pinMask|flagWritePin) == 0 {
				have += d.framesPerPage()
			}
		}
	}
	if have == 0 {
		return freely // all that is dirty is claimed already
	}
	if n := (have - short) / r.fpp; n > 0 {
		left.Store(0)
		return int(min(n, freely))
	}
	now := time.Now().UnixNano()
	if left.CompareAndSwap(0, now) || now-left.Load() < int64(reliefLimit) {
		rescueLater() // who wakes the housekeeper when he has looked
		return 0
	}
	return freely
}

// reliefLimit is how long pages are left to the rescuer.
var reliefLimit = 50 * time.Millisecond

// relieve waits until r's dirty pages may be written, all of them.
func (p *Pager) relieve(r *Region) {
	for begun := time.Now(); p.mayFly(r) != freely && time.Since(begun) < reliefLimit; {
		rescueLater()
		time.Sleep(time.Millisecond)
	}
}

// cleanTight writes dirty pages that nobody else may start to write. It is the
// rescuer's.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) cleanTight() {
	for n := 0; n < rescueMost && w.tight(); n++ {
		if cleanVia(w, spareNone) != 0 {
			break
		}
	}
	w.wake()
}
