//go:build linux

package pager

import (
	"context"
	"errors"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/aio"
)

// A commit by a caller who may go
//
// Who calls Commit with a context that can end cannot simply commit by himself: he
// would stand in a system call for as long as a device that hangs. To have the
// committer do it costs two hand-overs between goroutines, each of which wakes another
// core, which makes protecting pages dearer as well: as much as the commit of a page.
// So he does it himself while there is nothing in it that can take long but the
// transfers, and waits for those where he can leave them (aio.Begun). What
// is left of the commit then is done by a goroutine of its own, which has his turn.
// Whatever else would have to be waited for makes it the committer's.

// hereMost is how many pages a caller who may go commits: one transfer.
const hereMost = maxRun >> frameShift

// errHasty: who must not wait for a device would have had to.
var errHasty = errors.New("somebody else's transfers are under way")

// commitHere commits for s, whose caller has the turn and ctx, and gives the turn
// back, now or when the commit has ended.
func (a *atomicState) commitHere(ctx context.Context, s *SyncOp) {
	if !a.easy() {
		a.handBack()
		return
	}
	r, d := a.r, a.r.d
	rs := []*Region{r}
	// s is in no cut yet, so that it can still be taken back.
	if closeGates(rs, func() error {
		if err := ctx.Err(); err != nil {
			s.gone.Store(true)
			return err
		}
		return a.given()
	}) != nil {
		a.handBack()
		return
	}
	c := r.newCut()
	c.hasty = true
	a.cutting.Store(true)
	bare.Store32(&d.cut, 1)
	err := c.take()
	bare.Store32(&d.cut, 0)
	a.cutting.Store(false)
	openGates(rs)
	r.p.serveLine()
	if err != nil {
		r.active.Add(1)
		go func() {
			defer r.leave()
			c.undo()
			a.mu.Lock()
			a.waiting = append(c.ops, a.waiting...)
			a.mu.Unlock()
			a.handBack()
		}()
		return
	}
	if len(c.raw) > 0 {
		c.later(func(e aio.Engine) {
			c.write()
			c.await()
			c.flush(e)
		})
		return
	}
	c.write()
	if c.spot.End(ctx.Done()); !c.writes.none() {
		c.later(c.flush)
		return
	}
	flush := aio.Begin(r.p.onSpot.engine(r.p.engine))
	c.flush(flush)
	if flush.End(ctx.Done()); !c.writes.none() {
		c.later(func(aio.Engine) {})
		return
	}
	c.end()
}

// easy: a commit has to wait for nothing but its transfers, as it looks.
func (a *atomicState) easy() bool {
	r, d := a.r, a.r.d
	dirty := load64(&d.dirty)
	return dirty <= hereMost && load64(&d.slotsFree) > 2*dirty/r.fpp+int64(a.lowSlots()) && load64(&d.slotsLoose) == 0 &&
		load64(&d.slotsFilling) == 0 && a.writers.Load() == 0 && a.flushError() == nil &&
		!a.needs().checkpoint && r.p.mayFly(r) == freely
}

// handBack gives the turn to the committer, for whom there may be something to do.
func (a *atomicState) handBack() {
	<-a.turn
	a.wakeUp()
}

// later waits for what the cut has under way, does what comes then, and ends the cut,
// all without its caller.
func (c *cut) later(then func(e aio.Engine)) {
	r := c.r
	r.active.Add(1)
	go func() {
		defer r.leave()
		c.await()
		then(r.p.onSpot.engine(r.p.engine))
		c.await()
		c.end()
	}()
}

// end ends the cut of a single region, and gives back the turn.
func (c *cut) end() {
	c.tell(c.conclude())
	c.r.atomic.pokeIfDue()
	<-c.r.atomic.turn
}
