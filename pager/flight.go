//go:build linux

package pager

import (
	"sync"
	"sync/atomic"
)

// Reads under way, and in line
//
// At most Options.QueueDepth loads are with the store, of flightLimit bytes; the
// rest wait in two queues, demand before prefetch, without buffers.

// Large reads need no queue depth to keep a device busy, and each has a buffer. So
// there are flightShare of the budget under way, but not less than is good for
// any device: a quarter of the least is what may be read ahead.
const (
	flightShare = 8
	flightLeast = 4 * aheadFlight
	flightMost  = 64 << 20
)

// flightLimit is how many bytes of loads may be with the store.
func (p *Pager) flightLimit() int64 {
	return min(max(p.budget.Load()<<frameShift/flightShare, flightLeast), flightMost)
}

// takeOff counts a load that is about to go out. false: it may not, yet. Whoever is told
// so, and has queued the load, calls unqueue: what another has counted in vain in
// between is no reason to wait.
func (p *Pager) takeOff(l *load) bool {
	if p.inflight.Add(1) <= int32(p.opt.QueueDepth) {
		n := l.bytes()
		if sum := p.flight.Add(n); sum <= p.flightLimit() || sum == n {
			if l.kind != ahead {
				return true
			}
			// More may be claimed than is to be under way: see claimPlanned.
			if sum := p.aheadOut.Add(n); sum <= p.aheadLimit()<<frameShift || sum == n {
				return true
			}
			p.aheadOut.Add(-n)
		}
		p.flight.Add(-n)
	}
	p.inflight.Add(-1)
	return false
}

// loadQueue holds loads over the queue depth: those of each kind in the order in which
// they came, demand first. But somebody may wait for what is read ahead, too: so one
// of that goes after each passMost of the others.
type loadQueue struct {
	mu         sync.Mutex
	head, tail [2]*load
	passed     int // by demand, since what is read ahead went or began to wait
	n          atomic.Int32
	demand     atomic.Int32 // of them
}

const passMost = 64

func (q *loadQueue) push(l *load) {
	k := l.kind
	l.next = nil
	if q.tail[k] == nil {
		q.head[k] = l
	} else {
		q.tail[k].next = l
	}
	q.tail[k] = l
	q.n.Add(1)
	if k == demand {
		q.demand.Add(1)
	}
}

// first is the load whose turn it is, nil if there is none. q.mu is held.
func (q *loadQueue) first() *load {
	if l := q.head[ahead]; l != nil && q.passed >= passMost {
		return l
	}
	if l := q.head[demand]; l != nil {
		return l
	}
	return q.head[ahead]
}

// pop takes out l, which is the first of its kind. q.mu is held.
func (q *loadQueue) pop(l *load) {
	k := l.kind
	q.head[k] = l.next
	if l.next == nil {
		q.tail[k] = nil
	}
	q.n.Add(-1)
	switch {
	case k == ahead || q.head[ahead] == nil:
		q.passed = 0
	default:
		q.passed++
	}
	if k == demand {
		q.demand.Add(-1)
	}
}

// fly takes off the load whose turn it is, or, if more is read ahead than may be under
// way, a demand in its place. nil: none may go. q.mu is held.
func (p *Pager) fly(q *loadQueue) *load {
	l := q.first()
	if l == nil || p.takeOff(l) {
		return l
	}
	if l = q.head[demand]; l != q.first() && l != nil && p.takeOff(l) {
		return l
	}
	return nil
}

// unqueue moves queued loads into b as far as the queue depth allows.
func (p *Pager) unqueue(b *batch) {
	q := &p.queue
	for {
		if q.n.Load() == 0 {
			return
		}
		q.mu.Lock()
		l := p.fly(q)
		if l == nil {
			q.mu.Unlock()
			return
		}
		q.pop(l)
		q.mu.Unlock()
		p.ready(l, b)
	}
}
