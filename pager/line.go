//go:build linux

package pager

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// The lines for room
//
// A request that finds no frames, or no credits for its pins, waits in line
// holding nothing, so that two requests can never each hold what the other
// needs. There are two lines: one for requests that need credits, which may
// wait for people to release pins, and one for requests that need frames only,
// which must not wait behind those. Both are served in order by whoever makes
// room, one server at a time and without a lock held while it evicts.
//
// Credits that are given back while somebody waits for them are saved for the
// first in line, so that short pins cannot starve a long one. What the line
// cannot help with are callers that wait while they hold pins from earlier
// calls: if the first in line comes no nearer to what it needs for
// Options.StallLimit, it fails with ErrBudget.
type line struct {
	mu    sync.Mutex
	queue [2]opQueue

	serving atomic.Bool // somebody is in serveLine
	again   atomic.Bool // and is to look again
	round   uint64      // how often a line has been gone through; the server's
	full    []*Region   // regions that are full for each of their requests in that line: see full.go

	// The stall clock of the first request for credits.
	first *waitOp
	best  int64 // most credits it could have had so far
	since time.Time
	reads int64 // that had ended then
}

// In the order in which they are served: what is pinned makes progress for
// sure, and when it waits for credits it leaves the frames to others.
const (
	lineCredits = iota
	lineFrames
)

type opQueue struct{ head, tail *waitOp }

func (op *waitOp) line() int {
	if op.credits() > 0 {
		return lineCredits
	}
	return lineFrames
}

// newCreditOp makes an op that wants n credits and no frames, for a page that is
// there and is to be written to.
func (r *Region) newCreditOp(n int64) *waitOp {
	op := newOp(r)
	op.ticket, op.write, op.resident, op.need = true, true, true, n
	return op
}

// waitCredits takes n credits, waiting in line if there are none. The caller
// has entered the region.
func (p *Pager) waitCredits(r *Region, n int64) error { return p.waitTicket(r.newCreditOp(n)) }

// credits is how many the op needs to begin.
func (op *waitOp) credits() int64 {
	if op.pin || op.ticket && op.write {
		return op.need
	}
	return 0
}

// enqueue puts op in line.
func (p *Pager) enqueue(op *waitOp) {
	l := &p.line
	l.mu.Lock()
	p.append(op.line(), op)
	l.mu.Unlock()
	p.w.wake() // the housekeeper has a clock to look at
	// Room may have been made before the line was seen to be there.
	p.serveLine()
}

// append puts op at the end of line k, or, if it is first served, at its head.
// l.mu is held.
func (p *Pager) append(k int, op *waitOp) {
	q := &p.line.queue[k]
	op.inLine, op.nextInLine = true, nil
	switch {
	case q.tail == nil:
		q.head, q.tail = op, op
	case k == lineFrames && op.isPark && op.parked.G == p.holds.turn.g.Load():
		op.nextInLine = q.head
		q.head = op
	default:
		q.tail.nextInLine = op
		q.tail = op
	}
	p.waiting.Add(1)
	p.lineLen[k].Add(1)
	op.r.full.count(k, op, 1)
	if k == lineCredits {
		bare.Store32(&p.w.scarce, 1) // what is released goes to who waits
	}
}

// unlink takes op out of line k. l.mu is held.
func (p *Pager) unlink(k int, op *waitOp) {
	q := &p.line.queue[k]
	if k == lineCredits && op == q.head {
		p.line.first = nil // the line has moved: the clock starts anew
	}
	var prev *waitOp
	for o := q.head; o != op; o = o.nextInLine {
		prev = o
	}
	if prev == nil {
		q.head = op.nextInLine
	} else {
		prev.nextInLine = op.nextInLine
	}
	if q.tail == op {
		q.tail = prev
	}
	op.inLine, op.nextInLine = false, nil
	p.waiting.Add(-1)
	p.lineLen[k].Add(-1)
	op.r.full.count(k, op, -1)
}

// serveLine starts requests that stand in line as long as there is room. It may
// be called from anywhere but under a lock; a call from within an eviction of
// its own, or beside another one, makes that one look again.
func (p *Pager) serveLine() {
	l := &p.line
	l.again.Store(true)
	for p.waiting.Load() != 0 && l.again.Load() && l.serving.CompareAndSwap(false, true) {
		l.again.Store(false)
		for k := range l.queue {
			l.newRound()
			for p.serveNext(k) {
			}
		}
		l.newRound()
		l.serving.Store(false)
	}
}

// newRound forgets which regions are full.
func (l *line) newRound() {
	l.round++
	clear(l.full)
	l.full = l.full[:0]
}

// serveNext starts, or fails, the first request of line k for which there is room.
// It passes over those of regions that are full, which is nobody else's concern. true:
// look again.
func (p *Pager) serveNext(k int) bool {
	l := &p.line
	l.mu.Lock()
	for op := l.queue[k].head; op != nil && !p.allFull(k); op = op.nextInLine {
		if p.foundFull(op) {
			continue
		}
		op.served = true // whoever wants it out of line leaves that to us
		l.mu.Unlock()

		got := roomNone
		switch {
		case op.lock != nil && op.lock.unwanted():
			op.cancel = errUnlocked
		case op.credits() > p.pinnable.Load() || op.need > p.budget.Load():
			op.cancel = p.tooMuch(op)
		default:
			got = p.reserveFor(op)
		}

		l.mu.Lock()
		op.served = false
		if got == roomNotHere && op.saved > 0 {
			p.credits.give(op.saved, true)
			op.saved = 0
		}
		cancel := op.cancel
		switch {
		case cancel != nil || got == roomMade:
		case got == roomNone:
			op.unclaim() // it is not its region that it waits for
			l.mu.Unlock()
			return false
		default:
			if cancel = p.passedOver(k, op); cancel == nil {
				continue
			}
			got = roomNone
		}
		p.unlink(k, op)
		if op.unclaim() {
			l.newRound() // what it did not leave to the others may be had
		}
		saved := op.saved
		op.saved = 0
		l.mu.Unlock()
		if cancel == nil {
			p.start(op)
			return true
		}
		if got == roomMade {
			if !op.resident {
				p.w.giveFrames(op.need)
			}
			saved = op.credits() // they are all ours
		}
		p.credits.give(saved, true)
		op.fail(cancel)
		op.pageDone()
		return true
	}
	l.mu.Unlock()
	return false
}

func (p *Pager) tooMuch(op *waitOp) error {
	most, why := p.pinnable.Load(), "the budget"
	if m := op.r.maxFrames; m > 0 && m < most {
		most, why = m, "MaxResident"
	}
	return fmt.Errorf("%w: %d bytes are wanted at once, at most %d can be by %s", ErrBudget, op.need<<frameShift, most<<frameShift, why)
}

type room uint8

const (
	roomNone    room = iota // not now
	roomNotHere             // not now, because of its region's own limit
	roomMade                // frames and credits are the op's
)

// reserveFor takes the op's frames and credits, both or none. What has been
// saved for the op is used up when both are had.
func (p *Pager) reserveFor(op *waitOp) room {
	if op.resident && bare.Load32(&op.r.d.cut) != 0 {
		return roomNotHere // a commit holds the stores to its region
	}
	if !op.resident && !op.mayHaveRoom() {
		return roomNotHere
	}
	creds := op.credits() - op.saved
	if creds > 0 && !p.takeOrDrop(creds, op.isPark) {
		if load64(&p.w.dirty) > 0 {
			p.flushForRoom() // dirty pages have credits too
		}
		return roomNone
	}
	if op.resident {
		return roomMade
	}
	held := false
	switch {
	case op.pin || !op.hold && !op.store:
	case !op.hold:
		// The store would take a credit when it comes: this way the page is born
		// dirty with it.
		held = p.lineLen[lineCredits].Load() == 0 && p.w.takeCredits(op.need, 0)
	case p.lineLen[lineCredits].Load() > 0:
		held = p.credits.take(op.need) // what the other line leaves
	default:
		// It waits for other holds to end, which they do soon, but for nobody
		// else's pins: a raw access goes on without being held.
		if held = p.takeOrDrop(op.need, true); !held && p.holds.others(op.parked.G) > 0 {
			return roomNone
		}
	}
	got := p.reserve(op.r, op.need)
	for got != roomMade && p.dropHold(holdShort, op.isPark) {
		got = p.reserve(op.r, op.need)
	}
	switch {
	case got == roomMade && held:
		op.pin = true
	case got != roomMade && held:
		p.credits.give(op.need, true)
	case got != roomMade && creds > 0:
		p.credits.give(creds, true)
	}
	return got
}

// takeOrDrop takes credits, letting go of the oldest holds for them one by one:
// what the others have must not be torn apart for nothing. Parked accesses
// respect turns.
func (p *Pager) takeOrDrop(n int64, turns bool) bool {
	for !p.credits.take(n) {
		if !p.dropHold(holdShort, turns) {
			return false
		}
	}
	return true
}

// waitFrames reserves n frames for r, and n credits with write, waiting in
// line if there are none. The caller has entered the region.
func (p *Pager) waitFrames(r *Region, n int64, write bool) error {
	op := newOp(r)
	op.ticket, op.write, op.need = true, write, n
	return p.waitTicket(op)
}

func (p *Pager) waitTicket(op *waitOp) error {
	r := op.r
	if p.lineLen[op.line()].Load() == 0 && p.reserveFor(op) == roomMade {
		op.free()
		return nil
	}
	r.active.Add(1) // the op's own, which wait leaves
	op.left.Store(1)
	p.enqueue(op)
	return op.wait(context.Background())
}

// leaveLine completes op with err if it still stands in line.
func (p *Pager) leaveLine(op *waitOp, err error) {
	p.takeOut(err, func(o *waitOp) bool { return o == op })
}

// emptyLine completes the ops of r that stand in line.
func (p *Pager) emptyLine(r *Region, err error) {
	p.takeOut(err, func(o *waitOp) bool { return o.r == r })
}

// takeOut fails the ops that stand in line and are picked. One that is being
// served is left to its server.
func (p *Pager) takeOut(err error, pick func(*waitOp) bool) {
	if p.waiting.Load() == 0 {
		return
	}
	var out []*waitOp
	l := &p.line
	l.mu.Lock()
	for k := range l.queue {
		for o := l.queue[k].head; o != nil; {
			next := o.nextInLine
			if pick(o) {
				if o.served {
					o.cancel = err
				} else {
					p.unlink(k, o)
					o.unclaim()
					out = append(out, o)
				}
			}
			o = next
		}
	}
	l.mu.Unlock()
	for _, o := range out {
		if o.saved > 0 {
			p.credits.give(o.saved, true)
			o.saved = 0
		}
		o.fail(err)
		o.pageDone()
	}
	if len(out) > 0 {
		p.serveLine()
	}
}

// breakStall fails the first request for credits if it has come no nearer to
// them for too long. The housekeeper calls it now and then.
func (p *Pager) breakStall() {
	p.serveLine()
	l := &p.line
	l.mu.Lock()
	op := l.queue[lineCredits].head
	now := time.Now()
	if op == nil {
		l.first = nil
		l.mu.Unlock()
		return
	}
	have, reads := p.credits.left()+op.saved, p.stats.reads.Load()
	// A device that is merely slow is waited for: writes are in flight, and none
	// has failed.
	slow := p.writingFrames.Load() > 0 && p.flush.failed.Load() < l.since.UnixNano()
	if l.first != op || have > l.best || have >= op.credits() || slow {
		l.first, l.best, l.since, l.reads = op, have, now, reads
		l.mu.Unlock()
		return
	}
	stalled := now.Sub(l.since) >= p.opt.StallLimit
	if stalled && p.inflight.Load() > 0 && reads == l.reads {
		// Reads have pages pinned, too, for those who wait for them; and none has
		// ended in all that time, so it is not the pins that are held.
		l.since = now
		stalled = false
	}
	// A store waits, for it has no other way; but not for room in a spill file,
	// which nobody makes, and not when its region is being closed, for Close
	// waits for the Update that it belongs to.
	waits := op.isPark && !op.r.d.spillFull() && !op.r.closing.Load()
	if stalled && waits && !op.served {
		// Nobody has to wait behind it.
		saved := op.saved
		op.saved = 0
		if l.queue[lineCredits].tail != op {
			p.unlink(lineCredits, op)
			p.append(lineCredits, op)
		}
		l.first = nil
		l.mu.Unlock()
		if saved > 0 {
			p.credits.give(saved, true)
			p.serveLine()
		}
		return
	}
	began := l.since
	l.mu.Unlock()
	if !stalled || waits {
		return
	}
	err := fmt.Errorf("%w: %d bytes more cannot be pinned, and nothing was unpinned for %v", ErrBudget, op.need<<frameShift, p.opt.StallLimit)
	if why := p.flush.failedWith.Load(); why != nil && p.flush.failed.Load() >= began.UnixNano() {
		err = fmt.Errorf("%w, nor could be written: %w", err, *why)
	}
	r := op.r
	p.takeOut(err, func(o *waitOp) bool { return o == op || o.isPark && op.isPark && o.r == r && r.closing.Load() })
}

// giveCredits returns credits of pages that are not pinned (or dirty) any more.
func (p *Pager) giveCredits(n int64) {
	if p.lineLen[lineCredits].Load() != 0 && !p.w.tight() {
		p.line.mu.Lock()
		if op := p.line.queue[lineCredits].head; op != nil && !op.served && op.saved+n <= op.credits() {
			op.saved += n
			n = 0
		}
		p.line.mu.Unlock()
		if n > 0 {
			p.credits.give(n, true)
		}
	} else {
		p.credits.give(n, false)
	}
	if p.waiting.Load() != 0 {
		p.serveLine()
	}
}
