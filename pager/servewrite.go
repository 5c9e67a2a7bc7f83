//go:build linux

package pager

import (
	"github.com/uffdpager/uffdpager/coro/bare"
)

// serveWrite lets a store to a clean page go on when there is no credit for
// one more dirty page: it writes another dirty page itself. It runs on a fault
// server.
//
//go:nosplit
//go:norace
//go:nocheckptr
func serveWrite(d *desc, page uint64) (errno uintptr) {
	var failed uintptr
	var since int64 // when it found nothing to write for the first time
	for turn := 0; ; turn++ {
		if bare.Load32(&d.state) != descLive {
			return errnoClosed
		}
		pw, w := d.look(page)
		if pw == nil || !present(w) {
			if since == 0 {
				return 0 // it has left: the store faults anew
			}
			// So it would each time, and wait from the beginning. (A read that
			// fails is left to that: it may be worth another try.)
			if serveReadVia(d, page) != 0 {
				return 0
			}
			continue
		}
		switch w & stateMask {
		case stResident, stWriting:
		default:
			relax(turn)
			return 0
		}
		if unlockVia(d, pw, w, page, 0, false) {
			return 0
		}
		if bare.Load32(&d.cut) != 0 && !impatient(turn) {
			// A commit is taking its cut, which takes a P: as long as there is
			// one that can run, the store waits for it and is not in the cut.
			bare.FutexWait(&napWord, 0, patienceNap)
			continue
		}
		if bare.Load64(pw) != w || reclaimVia(d.words, max(d.framesPerPage(), reclaimFew), maxLeaves) > 0 {
			continue
		}
		// With the slack there are always a few pages that are Dirty and not
		// being written: those that came by it.
		if unlockVia(d, pw, w, page, -load64(&d.words.creditSlack), true) {
			return 0
		}
		e := cleanVia(d.words, turn)
		if e == 0 {
			if since != 0 {
				since = bare.Nanotime() // others are faster, but something moves
			}
		} else {
			if e != errnoNothing {
				failed = e
			}
			if since == 0 {
				since = bare.Nanotime()
			}
			if givesUp(since, turn, failed) {
				// The store takes nothing, or nothing may be written.
				if failed == 0 {
					failed = errnoNoRoom
				}
				return failed
			}
			if turn > lastResort && unlockVia(d, pw, w, page, -load64(&d.words.creditLast), true) {
				return 0
			}
			if turn > 2 {
				bare.FutexWait(&napWord, 0, patienceNap*4)
			}
		}
	}
}

// lastResort is how many turns a blocked store waits for writes that are in
// flight, in case their owners can run, before it takes the last credits.
const lastResort = 16

// cleanVia is cleanOne, called through a variable: the linker counts the stack
// of nosplit functions along static calls, assuming the little that is left of
// a goroutine's; the fault server has 64 KiB of its own, and a signal handler 32.
var (
	cleanVia      = cleanOne
	cleanPageVia  = cleanPage
	copyOutVia    = copyOut
	storeVia      = storePage
	takeSlotVia   = takeSlot
	endWriteVia   = endWrite
	serveReadVia  = serveRead
	serveWriteVia = serveWrite
	unlockVia     = unlockPage
)

// cleanOne writes one dirty page of the pager and makes it clean; in its first
// attempts not one of those that were served last.
//
//go:nosplit
//go:norace
//go:nocheckptr
func cleanOne(words *pagerWords, attempt int) (errno uintptr) {
	keep := spare(attempt)
	used := bare.Load32(&sp.leafUsed)
	for i := uint32(0); i <= used+1; i++ {
		h := bare.Add32(&words.hand, 1) % (used + 1)
		if h == 0 {
			continue
		}
		bits := bare.Load64(&metaOf(h).dirty)
		if bits == 0 {
			continue
		}
		d, m := words.enterLeaf(h)
		if d == nil {
			continue
		}
		if bare.Load32(&d.flags)&descServeDirty != 0 && (bare.Load32(&d.cut) == 0 || impatient(attempt)) {
			first := bare.Load64(&m.group) << leafShift
			for k := uint64(0); k < leafPages; k++ {
				if bits>>k&1 == 0 || words.servedLately(d.index, first+k, keep) {
					continue
				}
				if e := cleanPageVia(d, first+k); e == 0 {
					d.leave()
					return 0
				} else if e != errnoNothing {
					errno = e
				}
			}
		}
		d.leave()
	}
	if errno == 0 {
		errno = errnoNothing
	}
	return errno
}

// cleanPage writes one page if it is dirty, unpinned and whole.
//
//go:nosplit
//go:norace
//go:nocheckptr
func cleanPage(d *desc, page uint64) (errno uintptr) {
	if page >= d.pages {
		return errnoNothing
	}
	pw, w := d.look(page)
	end := (page + 1) << d.shift
	if pw == nil || w&stateMask != stDirty || w&flagWritePin != 0 {
		return errnoNothing
	}
	slots := d.slotTab != nil
	if !slots && (end > bare.Load64(&d.length) || !d.placeRoom(page)) {
		return errnoNothing // the store cuts the last page, which takes Go code
	}
	slot, was, v := uint32(0), uint64(0), uint32(1)
	if slots {
		var res slotResult
		if slot, was, res = takeSlotVia(d, page, slotFilling, 0); res != slotTaken {
			bare.Store32(&d.words.wantSlots, 1)
			d.words.wake()
			return errnoNothing
		}
		v = slot + 1
	}
	i, mem := takeServerBuffer()
	if copyOutVia(d, page, 1, mem) == 0 {
		giveServerBuffer(i)
		if slots {
			untakeSlot(d, slot, was)
		}
		return errnoNothing
	}
	room := slots || d.takePlace(page)
	if errno = errnoNothing; room {
		errno = storeVia(d, page, v, mem)
	}
	giveServerBuffer(i)
	switch {
	case slots && errno == 0:
		fillSlot(d, page, slot, slotRaw)
	case slots:
		spoilSlot(d, page, slot)
	case errno == 0:
		d.written(page, end)
		bare.Store32(&d.unflushed, 1) // before the page is clean: Close may look then
	case room:
		d.losePlace(page)
	}
	if _, free := endWriteVia(d, page, errno == 0); free {
		add64(&d.words.credits, d.framesPerPage())
	}
	d.words.notify(noticeWritten, d.index, page, true)
	return errno
}
