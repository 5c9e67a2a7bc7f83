//go:build linux

package pager

import (
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/aio"
)

// Waiting awake
//
// To put a thread to sleep and to wake it takes as long as a fast device takes to
// answer, and as much processor time as looking at the ring of completions until
// it does. So who has the only read under way looks, for a short while: a
// goroutine that waits alone (alone.go), and the parker for a goroutine that is
// parked in place. He lets others run first, since he has the P to himself
// afterwards.
//
// It is in vain if the device is not that fast; and it does harm if others want to
// run, which is known by how long they took when they were let. Then the next reads
// are waited for asleep: twice as many each time in a row, or a thousand at once.
const (
	awakeMost = 50 * time.Microsecond // looking
	awakeSlow = time.Millisecond      // the others ran for so long: they compute
	awakeDull = 10                    // in vain so often in a row: then one in 1,024 is waited for awake
)

type awake struct {
	rest   atomic.Int32 // reads that are waited for asleep
	failed atomic.Int32 // how often in a row it was in vain
	most   atomic.Int64 // awakeMost and awakeSlow, but for tests
	slow   atomic.Int64
	looked atomic.Int64 // how often it was tried, for tests
}

// await waits for the only read under way, which the caller has submitted, and
// installs what has come, if that is soon. It returns early when over does: then
// the caller has something else to do.
func (a *awake) await(p *Pager, over func() bool) {
	if bare.Load32(&crowd) < 2 || a.rest.Load() > 0 && a.rest.Add(-1) >= 0 {
		return // (on one P nobody else would even hear of what the kernel has to say)
	}
	a.looked.Add(1)
	readied.n.Store(0) // they run now, whom lead would let run
	if letOthers() > time.Duration(a.slow.Load()) {
		a.rest.Store(1<<awakeDull - 1) // it may have been a round of all of them
		return
	}
	for began, most := time.Now(), time.Duration(a.most.Load()); time.Since(began) < most; bare.Pause() {
		if over() {
			return
		}
		if aio.Ready(p.engine) {
			a.failed.Store(0)
			p.reapSome(1)
			return
		}
	}
	a.rest.Store(1<<(min(a.failed.Add(1), awakeDull+1)-1) - 1)
}

// awaitParked waits awake for the read of the goroutine that was parked last, if
// that is the only one under way, until there are others who are parked.
func awaitParked(pk coro.Parked) {
	r := regionAt(pk.Addr)
	if r == nil {
		return
	}
	p := r.p
	busy := func() bool {
		return p.inflight.Load() != 1 || p.aheadLoads.Load() != 0 || coro.ParkedSoFar() != bare.Load64(&rescuer.started)
	}
	if !busy() && readied.runnable.Load() == 0 {
		p.awake.await(p, busy)
	}
}
