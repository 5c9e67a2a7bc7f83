//go:build linux

package pager

import (
	"fmt"
	"time"
)

// A policy that lets nothing leave
//
// A part of the budget is never pinned or dirty, so that there always is a page
// that can leave; but which ones may is for the policies to say, and one of the
// program's own may say none. Whoever waits for frames then would wait for ever.
// So he fails if he has waited for Options.StallLimit, and in all that time nothing
// has left, though the policies were asked again and again, and though a region with
// such a policy has a page that could leave at this moment: that it was offered, or
// not, and is still there shows whose fault it is. Without such a page it is none
// of the policy's, and all wait on.

// refusedAsks is how often in a row nothing must have left, whatever the clock says:
// the process may have been stopped.
const refusedAsks = 16

// refusal is a row of evictions in which nothing has left. evictMu guards it.
type refusal struct {
	asks  int
	since time.Time // of the first
	reads int64     // that had ended then
}

// noteRefusal notes how an eviction has ended. evictMu is held.
func (p *Pager) noteRefusal(freed int64) {
	f := &p.ev.refusal
	switch {
	case freed > 0:
		f.asks = 0
	case f.asks == 0 || f.reads != p.stats.reads.Load():
		*f = refusal{1, time.Now(), p.stats.reads.Load()}
	default:
		f.asks++
	}
}

// breakRefusal fails the requests in line if a policy lets nothing leave. The
// housekeeper calls it now and then.
func (p *Pager) breakRefusal() {
	limit := p.opt.StallLimit
	if !p.evictMu.TryLock() {
		return // somebody evicts, or waits for a policy: the housekeeper has other things to do
	}
	f := p.ev.refusal
	p.evictMu.Unlock()
	if f.asks < refusedAsks || time.Since(f.since) < limit || f.reads != p.stats.reads.Load() || p.inflight.Load() > 0 || p.writingFrames.Load() > 0 {
		return // or something was on its way, and could not leave because of that
	}
	for _, r := range p.regionList() {
		if r.opt.Evict == nil || !r.enterAlways() {
			continue
		}
		kept := r.couldLeave()
		r.leave()
		if kept {
			err := fmt.Errorf("%w: there is no room, and the eviction policy of %s has let no page leave for %v, although some could", ErrBudget, r.name, limit)
			p.takeOut(err, func(op *waitOp) bool { return !op.resident && time.Since(op.begun) > limit })
			return
		}
	}
}

// couldLeave: some page of r could leave now.
func (r *Region) couldLeave() bool {
	d := r.d
	if n := load64(&d.resident); n == 0 || r.p.leastResident(d) {
		return false
	}
	_, _, ok := r.somePage(func(w word) bool { return w&stateMask == stResident && w&pinMask == 0 })
	return ok
}
