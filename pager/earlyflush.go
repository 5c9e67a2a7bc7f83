//go:build linux

package pager

import (
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Flushing early
//
// A device with a cache takes as long to flush what it was written as to take it,
// or longer. A Sync of many pages is busy protecting and copying meanwhile, so
// the flush that it owes is not left to its end: it flushes what has been written
// while it goes on with the rest, and the last flush, which is the one that
// counts, finds little to do. To a device that has nothing in a cache an early
// flush is next to nothing.
//
// A device may take writes and a flush one after the other. So that there is
// something to do for it afterwards, more writes than otherwise are made ready
// while a flush is under way. They wait in the engine of the Sync's caller
// (solo.go) and not at the device, where reads would stand behind them.
const (
	earlyPages = 256 // frames that have been written since the last flush was started, and
	earlyShare = 16  // … one for so many that are still to be
	earlyLeft  = 64  // frames that are: if there are fewer, the last flush is near
	earlyAhead = 512 // writes that are made ready while a flush is under way
)

// earlyFlush is the flush that a SyncOp has under way before the last one.
type earlyFlush struct {
	busy  atomic.Bool // there is one. The rest is its owner's, or of who sets it
	op    aio.Op
	flush *oneFlush
	track tracked
	mark  int64 // SyncOp.left when the last one was started
	began time.Time
	rest  time.Time // a device that takes its time is not kept flushing all the time
}

// flushEarly starts a flush through e if it is time for one. Many may call it.
func (s *SyncOp) flushEarly(e aio.Engine) {
	f, fpp := &s.early, s.r.fpp
	if f.busy.Load() || !f.busy.CompareAndSwap(false, true) {
		return
	}
	left := s.left.Load()
	s.mu.Lock()
	written, more := (f.mark-left)*fpp, int64(len(s.todo))*fpp
	due := written >= max(earlyPages, more/earlyShare) && more >= earlyLeft && s.err == nil
	s.mu.Unlock()
	if !due || !time.Now().After(f.rest) || !s.onePartMore() {
		f.busy.Store(false)
		return
	}
	f.mark, f.began = left, time.Now()
	p := s.r.p
	p.stats.flushes.Add(1)
	f.track = tracked{kind: WedgedFlush, r: s.r, n: s.r.Len()}
	p.tracks.add(&f.track)
	f.op = aio.Op{Code: aio.Flush, Done: earlyFlushDone, Arg: s}
	f.flush = s.r.write.flushes.begin()
	ops := [1]*aio.Op{&f.op}
	s.r.store.Start(e, ops[:])
}

// onePartMore makes the op wait for one pageDone more; false: it waits for none
// any more.
func (s *SyncOp) onePartMore() bool {
	for {
		n := s.left.Load()
		if n == 0 {
			return false
		}
		if s.left.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func earlyFlushDone(op *aio.Op) {
	s := op.Arg.(*SyncOp)
	f := &s.early
	s.r.p.tracks.remove(&f.track)
	s.flushed(op.Err)
	now := time.Now()
	f.rest = now.Add(now.Sub(f.began) / 2)
	s.r.write.flushes.end(f.flush, nil)
	f.busy.Store(false)
	s.pageDone()
}
