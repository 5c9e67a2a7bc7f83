//go:build linux

package pager

import (
	"sync/atomic"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Waiting alone
//
// The reaper sleeps in Go's netpoller, and tells of a page by making a goroutine
// ready. To do that Go wakes a second thread, which finds nothing to run: where
// nobody else misses, that and the reaper's own turn are more than half of
// the processor time of a miss, and a third of its latency beside the device's.
// So a goroutine whose read is the only one under way waits in the netpoller
// itself, at a Bell that the kernel rings for this read only, and takes its
// completion from the ring. One goroutine at a time does; others wait as ever.
// (Before that it looks at the ring for a while: awake.go.)
//
//	free ──take──▶ taken, owed ──done──▶ taken ──waitAlone returns──▶ free
//	                    │ waitAlone returns: told of            ▲
//	                    │ the page by somebody else             │ done
//	                    └────────────▶ watchBell ───────────────┘
//
// The reaper is not woken for a completion that rings the Bell. So as long as one
// is owed, until the read has ended, somebody waits there: the goroutine, or, if it
// was told before (the fault server had the page, the region closes), watchBell.
// Whoever tells it rings the Bell as well: a goroutine in the netpoller does not
// hear of its channel.
type alone struct {
	taken atomic.Bool
	owed  atomic.Bool
	bell  *aio.Bell     // made when first needed, by who has taken the place
	none  atomic.Bool   // there is none to be had
	told  chan struct{} // of the op that waits

	// Bound once.
	isTold, isDone func() bool
}

// take takes the place for a read that is about to be submitted, if it is the
// only one. It is left by waitAlone.
func (a *alone) take(p *Pager) bool {
	// (One more may be under way whose reaper has told of it and not counted it. If
	// it is one that was read ahead, there are more to come, and to install them is
	// the reaper's.)
	if p.inflight.Load() > 1 || p.aheadLoads.Load() != 0 || readied.runnable.Load() != 0 || a.none.Load() || a.taken.Swap(true) {
		return false
	}
	if a.bell == nil {
		if a.bell = aio.NewBell(p.engine); a.bell == nil {
			a.none.Store(true)
			a.taken.Store(false)
			return false
		}
		a.isTold = func() bool { return len(a.told) > 0 }
		a.isDone = func() bool { return !a.owed.Load() }
	}
	a.owed.Store(true)
	return true
}

// waitAlone waits for op, which has the place.
func (p *Pager) waitAlone(op *waitOp) {
	a := &p.alone
	a.told = op.ch
	p.awake.await(p, a.isTold)
	a.reapUntil(p, a.isTold)
	<-op.ch // nobody else takes it
	if !a.owed.Load() {
		a.taken.Store(false)
		return
	}
	p.wg.Add(1) // the region, which has not been left, keeps the pager from being closed
	go p.watchBell()
}

// watchBell reaps the read of somebody who has left.
func (p *Pager) watchBell() {
	defer p.wg.Done()
	a := &p.alone
	a.reapUntil(p, a.isDone)
	a.taken.Store(false)
}

// reapUntil waits at the Bell and takes completions, one after the other, until is
// returns true.
func (a *alone) reapUntil(p *Pager, is func() bool) {
	for !is() {
		if p.engine.Reap(1) == 0 {
			a.bell.Wait(is)
		}
	}
}

// done says that the read has ended.
func (a *alone) done() {
	a.owed.Store(false)
	a.bell.Ring()
}

func (a *alone) close() {
	if a.bell != nil {
		a.bell.Close()
	}
}
