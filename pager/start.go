//go:build linux

package pager

import (
	"fmt"
	"runtime"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// Starting a request
//
// A request that has its frames and credits goes through its pages: one that is there
// it pins, one that is on its way it waits for, one that is missing it claims and reads,
// all with one submission. What a page turns out to be is looked up again and again
// until one of the three holds, for others change its word at any time.

// start claims, joins or pins the op's pages with the frames and credits it
// has reserved, submits the reads, and gives back what it did not need.
func (p *Pager) start(op *waitOp) {
	r := op.r
	if op.ticket {
		op.pageDone()
		return
	}
	r.copied(op.borrows && len(op.ranges) == 1) // several pages are not looked for on the shelf
	frames, creds := op.need, op.credits()
	b := newBatch()
	for _, pr := range op.ranges {
		op.single = pr.n == 1
		for page := pr.first; page < pr.first+pr.n; page++ {
			if r.draining.Load() {
				op.fail(ErrClosed)
				break
			}
			f, c := p.startPage(op, page, b)
			frames -= f
			creds -= c
		}
	}
	if creds > 0 {
		p.credits.give(creds, p.lineLen[lineCredits].Load() != 0)
	}
	if frames > 0 {
		p.w.giveFrames(frames)
	}
	if b.misses() {
		p.predict(r, b)
	}
	mark := b.mark
	if mark != 0 {
		r.active.Add(1)
	}
	loads := len(b.loads) > 0
	if op.alone {
		op.alone = len(b.loads) == 1 && b.misses() && p.alone.take(p)
		if op.alone {
			b.loads[0].alone = true
		}
	}
	if loads {
		p.submit(b)
	} else {
		b.free()
	}
	p.transition()
	op.pageDone() // the one that stood for this function; op may be gone now
	// Whoever wanted a marker runs by now: what is to be read next, and whatever
	// has come meanwhile, is not his to wait for.
	switch {
	case mark != 0:
		r.touchedMarker(mark - 1)
		r.leave()
	case !loads:
		p.reapSome(8) // as submit does
	}
	if (creds > 0 || frames > 0) && p.waiting.Load() != 0 {
		p.serveLine()
	}
	p.keepRoom()
}

// startPage does one page of start and returns the frames and credits used.
func (p *Pager) startPage(op *waitOp, page uint64, b *batch) (frames, creds int64) {
	r, d := op.r, op.r.d
	planned := true // it may be, as far as is known
	for turn := 0; ; turn++ {
		pw, w := d.look(page)
		done := false
		switch s := w & stateMask; {
		case pw != nil && present(w):
			creds, done = op.takePresent(pw, w, page)

		case s == stLoading || s == stInstalling:
			creds, done = p.joinPage(op, page, b)

		case s == stFailed:
			p.settleFailed(r, page)

		case s == stPosted:
			if errno := r.mapPosted(pw, w, page); errno != 0 {
				op.fail(r.fault("map", page, errnoError(errno)))
				done = true
			}

		case s == stEvicting || s == stMapping:
			relaxGo(turn)

		default: // Missing
			if planned {
				if planned = false; p.claimPlanned(r, page, b) {
					continue
				}
			}
			frames, creds, done = p.claimPage(op, page, b)
		}
		if done {
			return frames, creds
		}
	}
}

// takePresent pins a page that is there, if the op pins, and returns the credits used.
// false: its word has changed.
func (op *waitOp) takePresent(pw *word, w word, page uint64) (creds int64, done bool) {
	r := op.r
	if w&flagPrefetched != 0 {
		// Raw memory shows no hits: who is parked found the page missing, and
		// it has come since. A policy that took that for a hit would rely on
		// being told of the others.
		r.touch(pw, w, page, op.isPark)
		return 0, false
	}
	if !op.pin {
		return 0, true
	}
	if w&pinMask == pinMask {
		op.failPins(page)
		return 0, true
	}
	if !bare.Cas64(pw, w, (w+pinOne)&^flagWatched) {
		return 0, false
	}
	op.obtained(page)
	if !hasCredit(w) {
		creds = r.fpp
	}
	return creds, true
}

// joinPage has the op wait for a page that is on its way, and returns the credits used.
// false: it is not any more.
func (p *Pager) joinPage(op *waitOp, page uint64, b *batch) (creds int64, done bool) {
	r := op.r
	op.left.Add(1)
	v, joined, pinned0 := p.join(op.waiterFor(page))
	if !joined {
		op.left.Add(-1)
		op.nw--
		if v&pinMask == pinMask {
			op.failPins(page)
			return 0, true
		}
		return 0, false
	}
	p.stats.joined.Add(1)
	if v&flagWaited == 0 { // as submit does for a read of one's own
		rescueLater()
	}
	op.noteWay()
	switch {
	case v&flagMark != 0 && p.mapMarker(r, page, uint32(v>>32)):
		b.mark = page + 1
	case v&flagPrefetched != 0:
		r.lateTouch(page)
	}
	if op.pin && op.store { // after the touch has been told
		r.d.forStore(page, uint32(v>>32))
	}
	if pinned0 {
		creds = r.fpp
	}
	return creds, true
}

// claimPage has the op read a page that is missing, with b, and returns the frames and
// credits used. false: somebody else has claimed it.
func (p *Pager) claimPage(op *waitOp, page uint64, b *batch) (frames, creds int64, done bool) {
	r, d := op.r, op.r.d
	extra := flagWaited // the access that brings a page in is no touch
	if op.pin {
		extra |= pinOne
		if op.store {
			extra |= flagForStore
		}
	}
	pw, gen, got := d.claim(page, extra)
	if got == claimTaken {
		return 0, 0, false
	}
	if got != claimed {
		op.fail(errTable)
		return 0, 0, true
	}
	op.left.Add(1)
	p.enlist(op.waiterFor(page))
	p.stats.misses.Add(1)
	op.noteWay()
	if d.past(page) {
		p.failPage(r, page, gen, stLoading, r.fault("access", page, errRange))
	} else {
		b.add(r, page, gen, demand)
	}
	if v := bare.Load64(pw); uint32(v>>32) != gen {
		p.settle(r, page) // the fault server was faster
	}
	if op.pin {
		creds = r.fpp
	}
	return r.fpp, creds, true
}

// noteWay tells the region that others than ReadAt come to it as well, if op is not one.
func (op *waitOp) noteWay() {
	if r := op.r; (!op.borrows || op.pin) && r.copies.Load() != 0 {
		r.copies.Store(0)
	}
}

// failPins: the page's word counts no more pins.
func (op *waitOp) failPins(page uint64) {
	op.fail(fmt.Errorf("pager: page %d has too many pins: %w", page, ErrBusy))
}

// relaxGo waits for a bounded state in ordinary code.
func relaxGo(turn int) {
	if turn < 16 {
		bare.Pause()
		return
	}
	runtime.Gosched()
}
