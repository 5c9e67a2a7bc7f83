//go:build linux

package pager

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/journal"
)

// The checkpoint
//
// A checkpoint brings what is committed to the store and makes the journal's
// room free again: the newest image of every page in place, flush the store,
// then the header, flush the journal, and only then the slots. Until the header
// is durable recovery needs every slot that a record names, also those that a
// later commit has superseded.
//
// It works from the log of commits and not from the pages' places: those are
// the current view, which may have been cut off by a Resize that is not
// committed. A place goes from the slot to 0 (the store) when the image is in
// place, if it still is that slot. A cut made by Apply is only ever made once:
// when the header fails, what is in place stays counted as such.
//
// The keeper is the goroutine that does it in the background: when half of the
// slots or of the ring is used, after an interval, when slots run short (then
// it also makes the journal longer). A commit that needs room does it itself.
// keep is held by whoever does.

// keeper is the goroutine that checkpoints and makes the journal longer.
func (a *atomicState) keeper() {
	defer a.wg.Done()
	for {
		select {
		case <-a.kick:
		case <-a.stop:
			return
		}
		if wait := a.lookAfter(); wait > 0 {
			select {
			case <-time.After(wait):
				a.poke()
			case <-a.stop:
				return
			}
		}
	}
}

// poke makes the keeper look.
func (a *atomicState) poke() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// pokeIfDue is poke without waking the keeper for nothing.
func (a *atomicState) pokeIfDue() {
	if n := a.needs(); n.slots || n.checkpoint {
		a.poke()
	}
}

// pokeJournals is for the fault server, which does not know whom it misses.
func (p *Pager) pokeJournals() {
	for _, r := range p.regionList() {
		if r.atomic != nil {
			r.atomic.poke()
		}
	}
}

// clock has a checkpoint made when the first commit since the last one has become as
// old as an option says. Guarded by atomicState.mu.
//
// A timer that was stopped may stay in the runtime's heap until its time has come,
// and all that it refers to with it: so it refers to what can be taken out of it.
type clock struct {
	timer   *time.Timer // nil: it has never been started
	of      *atomic.Pointer[atomicState]
	stopped bool
}

// startClock begins the interval anew. mu is held.
func (a *atomicState) startClock() {
	c := &a.clock
	switch {
	case a.interval <= 0 || c.stopped:
	case c.timer != nil:
		c.timer.Reset(a.interval)
	default:
		of := new(atomic.Pointer[atomicState])
		of.Store(a)
		c.of = of
		c.timer = time.AfterFunc(a.interval, func() {
			if a := of.Load(); a != nil {
				a.due.Store(true)
				a.poke()
			}
		})
	}
}

// stopClock ends it for good.
func (a *atomicState) stopClock() {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := &a.clock
	if c.stopped = true; c.timer != nil {
		c.timer.Stop()
		c.of.Store(nil)
	}
}

// lowSlots is how many slots should be free: what one cut may need at once, and
// some for the fault server.
func (a *atomicState) lowSlots() int64 {
	d := a.r.d
	return min(max(int64(bare.Load32(&d.slotCount)/4), 64), int64(d.slotMost)/2)
}

// needed is what the keeper is for.
type needed struct {
	slots      bool // there are few free ones
	checkpoint bool // half of the slots or of the ring is used, or the clock says so
}

func (a *atomicState) needs() needed {
	d := a.r.d
	used, ring := a.j.RingUsed()
	committed := int64(bare.Load32(&d.slotCount)) - load64(&d.slotsFree) - load64(&d.slotsLoose)
	return needed{
		slots:      load64(&d.slotsFree) < a.lowSlots(),
		checkpoint: 2*committed >= int64(d.slotMost) || 2*used >= ring || a.due.Load(),
	}
}

// lookAfter does what is due. It returns how long to wait before it tries again
// after a failure.
func (a *atomicState) lookAfter() time.Duration {
	d := a.r.d
	n := a.needs()
	if !n.slots && !n.checkpoint {
		a.backoff = 0
		return 0
	}
	var err error
	if n.slots && bare.Load32(&d.slotCount) < d.slotMost {
		err = a.grow(context.Background())
	}
	// (That it cannot be longer is no reason: somebody else may have seen to that.)
	if a.due.Swap(false) || n.checkpoint || load64(&d.slotsFree) < a.lowSlots() {
		if e := a.checkpoint(context.Background()); e != nil {
			a.due.Store(true)
			err = e
		}
	}
	if err == nil || errors.Is(err, journal.ErrFull) {
		a.backoff = 0
		return 0
	}
	a.backoff = min(max(2*a.backoff, 10*time.Millisecond), time.Second)
	return a.backoff
}

// grow makes the journal longer.
func (a *atomicState) grow(ctx context.Context) error {
	a.keep.Lock()
	defer a.keep.Unlock()
	return a.growLocked(ctx)
}

func (a *atomicState) growLocked(ctx context.Context) error {
	n, err := a.j.Grow(ctx)
	if err != nil {
		return err
	}
	a.r.d.moreSlots(n)
	a.roomMade()
	return nil
}

// keeperFlush is a flush of the journal outside of a commit. One that fails is
// kept: images of pages that have left, which the next commit takes as they are,
// were written before it, and so may be those of a commit that is under way.
func (a *atomicState) keeperFlush(flush func() error) error {
	l := &a.r.write.flushes
	f := l.begin()
	err := flush()
	if err != nil {
		_ = a.flushFailed(err)
	}
	l.end(f, nil)
	return err
}

// roomMade lets those go on who wait for pages to be written.
func (a *atomicState) roomMade() {
	p := a.r.p
	if p.waiting.Load() != 0 {
		p.rouse()
	}
}

// makeRoom makes need slots free, if it can: the caller finds out what is
// missing. With force it also checkpoints when enough seem to be free.
func (a *atomicState) makeRoom(need int64, force bool) error {
	d := a.r.d
	if load64(&d.slotsFree) >= need && !force {
		return nil
	}
	a.keep.Lock()
	defer a.keep.Unlock()
	for bare.Load32(&d.slotCount) < d.slotMost && load64(&d.slotsFree) < need {
		if err := a.growLocked(context.Background()); errors.Is(err, journal.ErrFull) {
			break
		} else if err != nil {
			return a.r.fault("grow journal", 0, err)
		}
	}
	if load64(&d.slotsFree) >= need && !force {
		return nil
	}
	return a.checkpointLocked(context.Background())
}

func (a *atomicState) checkpoint(ctx context.Context) error {
	a.keep.Lock()
	defer a.keep.Unlock()
	return a.checkpointLocked(ctx)
}

// checkpointLocked brings all that is committed to the store. keep is held.
func (a *atomicState) checkpointLocked(ctx context.Context) error {
	r := a.r
	a.mu.Lock()
	log, applied := a.log, a.applied
	a.mu.Unlock()
	if len(log) == 0 {
		return nil
	}
	if applied < len(log) {
		v := journal.View(log[applied:], 1<<r.shift)
		n, err := a.j.Apply(ctx, r.store, v)
		if err != nil {
			return r.fault("checkpoint", 0, err)
		}
		r.p.stats.flushes.Add(1)
		r.p.stats.writtenBytes.Add(int64(n) << r.shift)
		a.inPlace(v)
		a.mu.Lock()
		a.applied = len(log)
		a.mu.Unlock()
	}
	if err := a.j.Checkpoint(ctx, log[len(log)-1].Seq); err != nil {
		return r.fault("checkpoint", 0, err)
	}
	r.p.stats.flushes.Add(1)
	r.p.stats.checkpoints.Add(1)
	for _, c := range log {
		for _, e := range c.Entries {
			freeCommitted(r.d, e.Slot)
		}
	}
	a.mu.Lock()
	if a.log, a.applied = a.log[len(log):], 0; len(a.log) > 0 {
		a.startClock() // for what was committed meanwhile
	}
	a.mu.Unlock()
	a.roomMade()
	return nil
}

// inPlace notes that the store has what v says: pages whose newest contents
// that is are read from there.
func (a *atomicState) inPlace(v journal.Overlay) {
	d := a.r.d
	a.views.Lock()
	defer a.views.Unlock()
	for page, image := range v.Pages {
		w := d.sideWord(page)
		if bare.Load32(w) != image.Slot+1 {
			continue // newer, or cut off
		}
		// First where the store ends, then the place: who finds the place
		// gone must find the store long enough.
		d.raiseStored(min(uint64(v.Length), (page+1)<<d.shift))
		bare.Cas32(w, image.Slot+1, 0)
	}
}
