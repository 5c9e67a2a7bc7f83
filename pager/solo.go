//go:build linux

package pager

import (
	"context"
	"sync"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// A Sync by its caller
//
// Who waits in SyncRange has nothing else to do, so he does the work: he takes
// the write permission from pages, starts their writes, runs the completions of
// earlier ones while the device has the next, and flushes. The writes go to an
// engine of his own, whose completions wake nobody but him. That saves what the
// ordinary way (flush.go) costs, where completions wake the reaper on another core,
// again and again, and the reaper, or a thread of the kernel that has flushed,
// wakes the caller in the end.
//
// One at a time has that engine. Who finds it taken, and what is left over when
// nothing more is in flight or ctx ends, goes the ordinary way.

// solo is the engine of a goroutine that has one to itself.
type solo struct {
	once sync.Once
	turn sync.Mutex // who has it
	own  aio.Engine // nil: there is none

	below aio.Engine
	mu    sync.Mutex
	open  bool // somebody has it; what comes late, from a store that waits, goes below
}

// take makes the engine the caller's until drain; nil: it is not to be had.
func (a *solo) take(p *Pager) *soloEngine {
	if !a.turn.TryLock() {
		return nil
	}
	a.once.Do(func() {
		a.below = p.engine
		kind := p.engine.Kind()
		if kind == aio.Threads {
			return
		}
		if e, err := aio.Open(aio.Options{Kind: kind, Depth: max(1, p.opt.QueueDepth/2), Solo: true}); err == nil {
			a.own = e
		}
	})
	if a.own == nil {
		a.turn.Unlock()
		return nil
	}
	a.mu.Lock()
	a.open = true
	a.mu.Unlock()
	return &soloEngine{a.own, a}
}

// drain waits for what is in flight, if anything is, and gives the engine back.
func (a *solo) drain() {
	a.mu.Lock()
	a.open = false
	a.mu.Unlock()
	for a.own.InFlight() > 0 {
		if a.own.Reap(64) == 0 && a.own.Wait(context.Background()) != nil {
			break
		}
	}
	a.turn.Unlock()
}

func (a *solo) close() error {
	a.once.Do(func() {})
	if a.own == nil {
		return nil
	}
	return a.own.Close()
}

// soloEngine is the engine as stores see it.
type soloEngine struct {
	aio.Engine
	a *solo
}

func (e *soloEngine) Submit(ops []*aio.Op) {
	// Under the lock: drain must not miss what is about to be in flight.
	e.a.mu.Lock()
	if e.a.open {
		e.Engine.Submit(ops)
		e.a.mu.Unlock()
		return
	}
	e.a.mu.Unlock()
	e.a.below.Submit(ops)
}

// work calls more, which may start some and then says so, and runs completions,
// again and again until none is in flight or ctx ends.
func (e *soloEngine) work(ctx context.Context, more func() bool) {
	for ctx.Err() == nil {
		started := more()
		if e.Reap(64) > 0 || started {
			continue
		}
		if e.InFlight() == 0 || e.Wait(ctx) != nil {
			return
		}
	}
}

// runSolo does what is to be done for s, as far as it can. It is called instead of
// pageDone.
func (s *SyncOp) runSolo(ctx context.Context, e *soloEngine) {
	p := s.r.p
	e.work(ctx, func() bool {
		s.flushEarly(e)
		ios := p.opt.QueueDepth / 2
		if s.early.busy.Load() {
			ios = max(ios, earlyAhead)
		}
		started := !p.inFlight(ios) && s.writeSome(e)
		p.reapSome(8) // reads of others, where there is no other P
		return started
	})
	if s.hasMore() {
		p.hunger(s)
		p.feed()
	}
	if ctx.Done() == nil {
		s.partDone(p.onSpot.engine(p.engine))
	} else {
		// What is under way in a system call could not be left.
		s.partDone(e)
		e.work(ctx, func() bool { return false })
	}
	if e.InFlight() > 0 {
		go e.a.drain()
	} else {
		e.a.drain()
	}
}

// writeSome starts a few writes of s. false: there are none to be started now.
func (s *SyncOp) writeSome(e aio.Engine) bool {
	p := s.r.p
	list := s.next(p.mayFly(s.r))
	if len(list) == 0 {
		return false
	}
	p.writeBackTo(e, list, writeSync)
	return true
}

func (s *SyncOp) hasMore() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.todo) > 0
}
