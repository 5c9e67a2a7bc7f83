//go:build linux

package pager

import (
	"sync"
	"sync/atomic"
)

// Writes in flight
//
// The device always has some to do and never so many that reads stand behind
// them: at most half of the queue depth, and no more copies of pages than
// writeWindow. Syncs, which want everything written at once, stand in line for
// that (feed); who needs room among the dirty pages has some written; what is
// written in the background is in background.go.

// flusher is the pager's side of writing back.
type flusher struct {
	mu     sync.Mutex
	hungry []*SyncOp // have pages to be written and found no room in flight

	feeding atomic.Bool // somebody is in feed
	again   atomic.Bool // and is to look again
	busy    atomic.Bool // hungry may not be empty

	failed     atomic.Int64          // when a write last failed (UnixNano) …
	failedWith atomic.Pointer[error] // … and how
	hand       atomic.Uint32         // the leaf to look at next
	ios        atomic.Int64          // writes in the background that are under way

	// The housekeeper's: some region has something left to write, or has had dirty
	// pages when he looked last.
	sweeping, aging bool

	left atomic.Int64 // since when pages are left to the rescuer (UnixNano); see claims.go
}

// writeWindow bounds, in frames, the copies of pages on their way to the store.
const writeWindow = 2048

// feedStep is how many pages are started at a time.
const feedStep = 64

// enoughInFlight says whether as much is on its way to the store as is good for it.
func (p *Pager) enoughInFlight() bool { return p.inFlight(p.opt.QueueDepth / 2) }

// inFlight says whether ios writes, or as many copies as there may be, are.
func (p *Pager) inFlight(ios int) bool {
	return p.writingFrames.Load() >= writeWindow || int(p.writingIOs.Load()) >= max(1, ios)
}

// writeRoom is how many frames more may be in flight, other than for a Sync. It
// leaves half of what may be dirty, so that the fault server always finds a
// dirty page that it may write itself.
func (p *Pager) writeRoom() int64 { return p.roomWithin(p.opt.QueueDepth / 2) }

// roomWithin is writeRoom where ios writes may be under way.
func (p *Pager) roomWithin(ios int) int64 {
	if p.inFlight(ios) {
		return 0
	}
	return max(1, min(p.pinnable.Load()/2, writeWindow)) - p.writingFrames.Load()
}

// feed starts what Syncs wait for, as far as there is room for it in flight. It
// may be called from anywhere but under a lock; a call from within a write that
// it has started, or beside another one, makes that one look again.
func (p *Pager) feed() {
	f := &p.flush
	f.again.Store(true)
	for f.busy.Load() && f.again.Load() && f.feeding.CompareAndSwap(false, true) {
		f.again.Store(false)
		for !p.enoughInFlight() && p.feedOne() {
		}
		f.feeding.Store(false)
	}
}

// feedOne starts a few writes for the Sync that has waited longest. false: no
// Sync waits, or others are to write its pages.
func (p *Pager) feedOne() bool {
	f := &p.flush
	f.mu.Lock()
	if len(f.hungry) == 0 {
		f.busy.Store(false)
		f.mu.Unlock()
		return false
	}
	s := f.hungry[0]
	most := p.mayFly(s.r)
	if most == 0 {
		f.mu.Unlock()
		return false
	}
	f.hungry = append(f.hungry[:0], f.hungry[1:]...)
	f.mu.Unlock()
	if list := s.next(most); len(list) > 0 {
		s.flushEarly(p.engine)
		p.hunger(s) // behind the others, until its list is empty
		p.writeBack(list, writeSync)
	}
	return true
}

// hunger lines s up for feed.
func (p *Pager) hunger(s *SyncOp) {
	f := &p.flush
	f.mu.Lock()
	f.hungry = append(f.hungry, s)
	f.busy.Store(true)
	f.mu.Unlock()
}

// flushForRoom writes some dirty pages because somebody needs room.
func (p *Pager) flushForRoom() {
	if room := p.writeRoom(); room > 0 && load64(&p.w.dirty) > 0 {
		p.writeBack(p.collectDirty(nil, nil, int(min(feedStep, room))), writeNeed)
	}
}

// collectDirty appends the pages of d (nil: of all regions of p) that are
// marked dirty, at most limit (0: all), going round through the leaves.
func (p *Pager) collectDirty(list []dirtyPage, only *desc, limit int) []dirtyPage {
	used := atomic.LoadUint32(&sp.leafUsed)
	start := p.flush.hand.Load()
	if limit == 0 {
		start = 0
	}
	for i := uint32(0); i <= used; i++ {
		leaf := (start + i) % (used + 1)
		m := metaOf(leaf)
		bits := atomic.LoadUint64(&m.dirty)
		if leaf == 0 || bits == 0 {
			continue
		}
		di := atomic.LoadUint32(&m.desc)
		if di == 0 || only != nil && di != only.index {
			continue
		}
		d := descAt(di)
		if d.words != p.w {
			continue
		}
		if only == nil {
			if r := regionOf(d); r == nil || r.opt.Writeback.NoSteal {
				continue
			}
		}
		group := atomic.LoadUint64(&m.group)
		if !d.owns(leaf, group) {
			continue
		}
		for k := range uint64(leafPages) {
			if bits>>k&1 != 0 && (limit == 0 || d.mayClean(group<<leafShift+k)) {
				list = append(list, dirtyPage{d, group<<leafShift + k})
			}
		}
		if limit > 0 && len(list) >= limit {
			p.flush.hand.Store(leaf + 1)
			break
		}
	}
	return list
}

// owns: the leaf is the one of this group of the region now.
func (d *desc) owns(leaf uint32, group uint64) bool {
	return group<<leafShift < d.pages && uint32(atomic.LoadUint64(d.dirEntry(group<<leafShift)))&dirLeafMask == leaf
}

// mayClean: the page is Dirty and would be clean after a write.
func (d *desc) mayClean(page uint64) bool {
	pw, w := d.look(page)
	return pw != nil && w&stateMask == stDirty && w&flagWritePin == 0
}
