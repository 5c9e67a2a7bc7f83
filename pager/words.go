//go:build linux

package pager

import (
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

const (
	frameShift  = 12
	noticeSlots = 4096
	recentPages = 8
)

// pagerWords are the counters of one Pager that the handler and the fault
// server share with ordinary code. They live in the Pager, which every live
// region keeps alive.
type pagerWords struct {
	free    int64 // frames nobody has; negative while a smaller budget is being reached
	_       [56]byte
	credits int64 // frames that may still be pinned or dirty; see credit.go
	_       [56]byte
	dirty   int64 // frames
	stolen  uint64
	served  uint64 // pages loaded by the fault server
	used    int64  // pages that were read ahead and first touched by a store
	srvRead uint64 // bytes

	// What only the fault server may use, so that it can always go on: frames
	// below zero while SetBudget is on its way down (the old budget still
	// holds), and credits out of the reserve.
	serverFrames int64 // the last free frames
	frameSlack   int64
	creditSlack  int64
	creditLast   int64 // and when even that is in flight, with everybody stopped who could end it
	creditTight  int64 // how far below zero others may still claim credits; see claims.go

	// The pages that were served last, newest at recentPos. One instruction may
	// need several pages at once: it would never end if serving one took away
	// another.
	recent    [recentPages]uint64
	recentPos uint64

	hand     uint32 // next leaf the fault server looks at for a victim
	keptHand uint32 // next leaf that is asked for kept credits
	kept     int64  // credits with clean pages, in use or not; see kept.go
	_        [64]byte
	scarce   uint32 // credits are not kept any more; read by every Release
	_        [60]byte

	// Notices from P-less code to the housekeeper.
	noticeTail    uint64
	noticeHead    uint64
	noticeLost    uint32 // some did not fit: look at everything
	wantRoom      uint32 // a fault server waits for a frame
	wantSlots     uint32 // a fault server found no slot in a journal
	goneWithoutUs uint32 // P-less code took a page whose frame may be a buffer (unmapped.go)
	sleeping      uint32 // how the housekeeper waits for wakeFD, 0: it does not
	wakeFD        int32
	lowWater      int64 // frames: below, the housekeeper evicts
	notices       [noticeSlots]uint64

	posted [postedMost]posted // by seat

	rescueWords
}

// Notices: kind | descriptor | page.
const (
	noticeLoaded  = 1 + iota // the server made the page Resident
	noticeFailed             // the server failed to read a page that has waiters
	noticeWritten            // the server wrote a dirty page
	noticeRescued            // the rescuer made a page Resident whose miss was told already
)

const (
	noticePageBits = 36
	noticeDescBits = 24
)

// notify tells the housekeeper, who is woken only if urgent.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) notify(kind uint64, d uint32, page uint64, urgent bool) {
	for {
		t := bare.Load64(&w.noticeTail)
		if t-bare.Load64(&w.noticeHead) >= noticeSlots {
			bare.Store32(&w.noticeLost, 1)
			urgent = true
			break
		}
		if bare.Cas64(&w.noticeTail, t, t+1) {
			if t-bare.Load64(&w.noticeHead) >= noticeSlots/2 {
				urgent = true
			}
			s := (*uint64)(unsafe.Add(unsafe.Pointer(&w.notices), uintptr(t%noticeSlots)*8))
			bare.Store64(s, kind<<60|uint64(d)<<noticePageBits|page)
			break
		}
	}
	if urgent {
		w.wake()
	}
}

// wake wakes the housekeeper if it sleeps.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) wake() {
	if bare.Load32(&w.sleeping) != 0 && bare.Xchg32(&w.sleeping, 0) != 0 {
		eventfdSignal(w.wakeFD)
	}
}

// markerGone says that P-less code has taken a page that may have a buffer of its own
// (unmapped.go).
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) markerGone() {
	if bare.Load32(&w.goneWithoutUs) == 0 {
		bare.Store32(&w.goneWithoutUs, 1)
		w.wakeClock()
	}
}

// wakeClock makes sure that the housekeeper looks at the clock. It does as a rule:
// who dirties a page, commits it, and dirties the next must not wake it each time.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) wakeClock() {
	if bare.Load32(&w.sleeping) == asleep {
		w.wake()
	}
}

// noteServed remembers a page that was served.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) noteServed(d uint32, page uint64) {
	n := bare.Add64(&w.recentPos, 1)
	bare.Store64((*uint64)(unsafe.Add(unsafe.Pointer(&w.recent), n%recentPages*8)), uint64(d)<<noticePageBits|page)
}

// servedLately: the page is among the last n that were served.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) servedLately(d uint32, page uint64, n uint64) bool {
	for at, i := bare.Load64(&w.recentPos), uint64(0); i < n; i++ {
		if bare.Load64((*uint64)(unsafe.Add(unsafe.Pointer(&w.recent), (at-i)%recentPages*8))) == uint64(d)<<noticePageBits|page {
			return true
		}
	}
	return false
}

const spareNone = -1

// spare is how many of the pages served last are left alone at the n-th
// attempt to make room.
//
//go:nosplit
//go:norace
func spare(n int) uint64 {
	switch n {
	case spareNone:
		return 0
	case 0:
		return recentPages
	case 1:
		return 3
	}
	return 1
}

// takeFrames takes n free frames if there are so many besides the fault
// server's.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) takeFrames(n int64) bool { return w.takeFramesDownTo(n, load64(&w.serverFrames)) }

// takeFramesDownTo takes n frames if at least floor are left then.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) takeFramesDownTo(n, floor int64) bool { return takeDownTo(&w.free, n, floor) }

// takeCredits takes n credits if at least floor are left then. Only the global
// stock can be reached from here, which is why shards keep little.
//
//go:nosplit
//go:norace
func (w *pagerWords) takeCredits(n, floor int64) bool { return takeDownTo(&w.credits, n, floor) }

// takeDownTo takes n off *stock if at least floor are left then.
//
//go:nosplit
//go:norace
//go:nocheckptr
func takeDownTo(stock *int64, n, floor int64) bool {
	p := (*uint64)(unsafe.Pointer(stock))
	for {
		v := bare.Load64(p)
		if int64(v)-n < floor {
			return false
		}
		if bare.Cas64(p, v, v-uint64(n)) {
			return true
		}
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) giveFrames(n int64) int64 {
	return int64(bare.Add64((*uint64)(unsafe.Pointer(&w.free)), uint64(n)))
}

//go:nosplit
//go:norace
func add64(p *int64, n int64) int64 {
	return int64(bare.Add64((*uint64)(unsafe.Pointer(p)), uint64(n)))
}

//go:nosplit
//go:norace
func load64(p *int64) int64 { return int64(bare.Load64((*uint64)(unsafe.Pointer(p)))) }

func bareStore64(p *int64, n int64) { bare.Store64((*uint64)(unsafe.Pointer(p)), uint64(n)) }
