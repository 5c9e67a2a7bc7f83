//go:build linux

package pager

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// The line for frames
//
// A request that finds no frames, or no credits for its pins, waits in line
// holding nothing, so that two requests can never each hold what the other
// needs. The line is served in order by whoever makes room. What it cannot
// help with are callers that wait while they hold pins from earlier calls: if
// nothing at all is unpinned for Options.StallLimit, the first in line fails
// with ErrBudget.
type line struct {
	mu         sync.Mutex
	head, tail *waitOp
	moved      time.Time // the last time somebody left the line or gave a credit back
}

// enqueue puts op in line.
func (p *Pager) enqueue(op *waitOp) {
	l := &p.line
	l.mu.Lock()
	if l.head == nil {
		l.moved = time.Now()
	}
	op.inLine, op.nextInLine = true, nil
	if l.tail == nil {
		l.head = op
	} else {
		l.tail.nextInLine = op
	}
	l.tail = op
	p.waiting.Add(1)
	l.mu.Unlock()
	p.w.wake() // the housekeeper has a clock to look at
	// Room may have been made before the line was seen to be there.
	p.serveLine()
}

// unlink takes op, whose predecessor is prev, out. l.mu is held.
func (p *Pager) unlink(prev, op *waitOp) {
	l := &p.line
	if prev == nil {
		l.head = op.nextInLine
	} else {
		prev.nextInLine = op.nextInLine
	}
	if l.tail == op {
		l.tail = prev
	}
	op.inLine, op.nextInLine = false, nil
	l.moved = time.Now()
	p.waiting.Add(-1)
}

// serveLine starts requests from the head of the line as long as there is
// room for them.
func (p *Pager) serveLine() {
	for p.waiting.Load() != 0 {
		p.line.mu.Lock()
		op := p.line.head
		if op != nil && op.lock != nil && op.lock.unwanted() {
			p.unlink(nil, op)
			p.line.mu.Unlock()
			op.fail(errUnlocked)
			op.pageDone()
			continue
		}
		if op == nil || !p.reserveFor(op) {
			p.line.mu.Unlock()
			return
		}
		p.unlink(nil, op)
		p.line.mu.Unlock()
		p.start(op)
	}
}

// reserveFor takes the op's frames and credits, both or none.
func (p *Pager) reserveFor(op *waitOp) bool {
	if op.ticket {
		return p.reserve(op.r, op.need)
	}
	page := op.ranges[0].first
	creds := op.credits()
	if creds > 0 && !p.credits.take(page, creds) {
		if p.dropHolds(holdShort); !p.credits.take(page, creds) {
			if !op.isPark {
				return false
			}
			// A raw access goes on without being held.
			op.pin, creds = false, 0
		}
	}
	if !p.reserve(op.r, op.need) {
		if p.dropHolds(holdShort); !p.reserve(op.r, op.need) {
			if creds > 0 {
				p.credits.give(page, creds, true)
			}
			return false
		}
	}
	return true
}

// credits is how many the op needs to begin.
func (op *waitOp) credits() int64 {
	switch {
	case op.pin && op.write:
		return 2 * op.need
	case op.pin:
		return op.need
	}
	return 0
}

// waitFrames reserves n frames for r, waiting in line if there are none. The
// caller has entered the region.
func (p *Pager) waitFrames(ctx context.Context, r *Region, n int64) error {
	if p.waiting.Load() == 0 && p.reserve(r, n) {
		return nil
	}
	r.active.Add(1) // the op's own, which wait leaves
	op := newOp(r)
	op.ticket, op.need = true, n
	op.left.Store(1)
	p.enqueue(op)
	return op.wait(ctx)
}

// leaveLine completes op with err if it still stands in line.
func (p *Pager) leaveLine(op *waitOp, err error) {
	p.line.mu.Lock()
	var prev *waitOp
	for o := p.line.head; o != nil; prev, o = o, o.nextInLine {
		if o == op {
			p.unlink(prev, op)
			p.line.mu.Unlock()
			op.fail(err)
			op.pageDone()
			return
		}
	}
	p.line.mu.Unlock()
}

// emptyLine completes the ops of r (nil: of all regions) that stand in line.
func (p *Pager) emptyLine(r *Region, err error) {
	var out []*waitOp
	p.line.mu.Lock()
	var prev *waitOp
	for o := p.line.head; o != nil; {
		next := o.nextInLine
		if r == nil || o.r == r {
			p.unlink(prev, o)
			out = append(out, o)
		} else {
			prev = o
		}
		o = next
	}
	p.line.mu.Unlock()
	for _, o := range out {
		o.fail(err)
		o.pageDone()
	}
}

// breakStall fails the first in line if nothing has moved for too long. The
// housekeeper calls it now and then.
func (p *Pager) breakStall() {
	p.serveLine()
	p.line.mu.Lock()
	op := p.line.head
	if op == nil || time.Since(p.line.moved) < p.opt.StallLimit {
		p.line.mu.Unlock()
		return
	}
	p.unlink(nil, op)
	p.line.mu.Unlock()
	op.fail(fmt.Errorf("%w: %d bytes more cannot be pinned, and nothing was unpinned for %v", ErrBudget, op.need<<frameShift, p.opt.StallLimit))
	op.pageDone()
}

// giveCredits returns credits of a page that is not pinned (or dirty) any
// more.
func (p *Pager) giveCredits(page uint64, n int64) {
	somebody := p.waiting.Load() != 0
	p.credits.give(page, n, somebody)
	if somebody {
		p.line.mu.Lock()
		p.line.moved = time.Now()
		p.line.mu.Unlock()
		p.serveLine()
	}
}
