//go:build linux

package pager

import (
	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
)

// One fault
//
// decide runs in the signal handler of the thread that faulted. It resolves
// what needs no I/O (a first write to a clean page), sends away what will
// never work (closed, out of range, read-only), and lets the rest wait: parked
// in place if possible, else as a blocked thread whose page is loaded by
// serve (serve.go). Neither needs a P, takes a lock or allocates.

// Reasons of our own for a fault that is delivered, beside errnos.
const (
	errnoClosed   = 1<<20 + iota // the region is closed
	errnoRange                   // past the end of the region
	errnoReadOnly                // a write to a read-only region
	errnoTable                   // no page word left
	errnoShrunk                  // the store is shorter than it was
	errnoNoRoom                  // nothing can be written to make room for a dirty page
	errnoSum                     // the page is not what its checksum says
	errnoNoted                   // see Region.noteFault: errnoNoted + slot
)

// Among ourselves, and never delivered.
const (
	errnoTakenOver = 1<<21 + iota // the page is somebody else's by now
	errnoNothing                  // there is no page that the server may write
	errnoReadAgain                // nobody knows where the bytes are
)

//go:nosplit
//go:norace
//go:nocheckptr
func decide(f *coro.Fault) coro.Verdict {
	d := descOf(f.Addr)
	if d == nil || bare.Load32(&d.state) != descLive {
		f.Errno = errnoClosed
		return coro.Deliver
	}
	off := uint64(f.Addr - d.base)
	if off >= bare.Load64(&d.length) {
		f.Errno = errnoRange
		return coro.Deliver
	}
	flags := bare.Load32(&d.flags)
	if f.Access != coro.Read && flags&descReadOnly != 0 {
		f.Errno = errnoReadOnly
		return coro.Deliver
	}
	page := off >> d.shift
	if f.Access == coro.WriteProtected {
		return decideWrite(f, d, page, flags)
	}
	pw, w := d.look(page)
	if pw != nil {
		if present(w) {
			return coro.Retry // it came while we got here
		}
		if bounded(w) {
			relax(64)
			return coro.Retry
		}
	}
	return waitVerdict(f, flags)
}

//go:nosplit
//go:norace
func waitVerdict(f *coro.Fault, flags uint32) coro.Verdict {
	if flags&descRestart != 0 {
		f.Errno = coro.ErrnoRestart
		return coro.Deliver
	}
	if flags&descRaw != 0 {
		if f.Access != coro.WriteProtected {
			rescueLater()
		}
		return coro.Wait
	}
	return coro.WaitGo
}

// decideWrite: a store to a page that is there, write-protected.
//
//go:nosplit
//go:norace
//go:nocheckptr
func decideWrite(f *coro.Fault, d *desc, page uint64, flags uint32) coro.Verdict {
	for {
		pw, w := d.look(page)
		if pw == nil {
			return coro.Retry
		}
		switch w & stateMask {
		case stResident, stWriting:
			if unlockVia(d, pw, w, page, 0, false) {
				return coro.Retry
			}
			if bare.Load64(pw) != w && bare.Load32(&d.cut) == 0 {
				continue
			}
			if bare.Load32(&d.cut) == 0 && reclaimVia(d.words, max(d.framesPerPage(), reclaimFew), reclaimLeaves) > 0 {
				continue
			}
			// No credit: something must be written first. Or a commit is taking
			// its cut.
			return waitVerdict(f, flags)
		default:
			relax(64)
			return coro.Retry
		}
	}
}

// unlockPage makes a clean page writable and Dirty, or a page that is being
// written writable again. w is what its word was. false: the word has changed,
// or there is no credit for one more dirty page: floor credits must be left (0,
// or less for the fault server). Or, without force, a commit is taking its cut.
//
// The order matters twice: the dirty bit is set before the page can be written
// to, so that a Sync that begins after a store cannot overlook it; and the
// state is Unlocking, which nobody else leaves, until the protection is off,
// so that a late unprotect never hits a page that is clean again.
//
//go:nosplit
//go:norace
//go:nocheckptr
func unlockPage(d *desc, pw *word, w word, page uint64, floor int64, force bool) bool {
	if w&stateMask == stWriting && w&flagRedirtied != 0 {
		return true
	}
	bring := !hasCredit(w)
	if bring && !d.words.takeCredits(d.framesPerPage(), floor) {
		return false
	}
	switch unlock(d, pw, w, page, force) {
	case unlockDone:
		return true
	case unlockChanged:
		if bring {
			add64(&d.words.credits, d.framesPerPage())
		}
	}
	return false
}

const (
	unlockDone    = iota
	unlockChanged // the word has
	unlockHeld    // a commit is taking its cut
)

// unlock is the transition itself, from Resident or Writing. While a commit
// takes its cut it does nothing without force: whoever takes the cut sets the
// flag and then looks for dirty bits, we do it the other way round.
//
//go:nosplit
//go:norace
//go:nocheckptr
func unlock(d *desc, pw *word, w word, page uint64, force bool) int {
	fresh := w&stateMask == stResident
	n := w&^(stateMask|flagKept) | stUnlocking
	if !fresh {
		n |= flagHeld
	}
	if !bare.Cas64(pw, w, n) {
		return unlockChanged
	}
	if w&flagKept != 0 {
		add64(&d.words.kept, -d.framesPerPage()) // it is a dirty page's now
	}
	d.markDirty(page)
	if bare.Load32(&d.cut) != 0 && !force {
		d.clearDirty(page)
		if !fresh {
			setState(pw, stUnlocking, stWriting, flagHeld, 0)
		} else if old, _ := setState(pw, stUnlocking, stResident, 0, 0); old&pinMask == 0 {
			// It had a credit while it was Unlocking, and keeps it only for pins.
			add64(&d.words.credits, d.framesPerPage())
		}
		return unlockHeld
	}
	d.afterSpan(page)
	protectRange(d.addr(page), d.pageSize(), false)
	if fresh {
		d.countDirty()
		if old, _ := setState(pw, stUnlocking, stDirty, flagPrefetched, 0); old&flagPrefetched != 0 {
			add64(&d.storeUsed, 1)
			add64(&d.words.used, 1)
		}
	} else {
		setState(pw, stUnlocking, stWriting, flagHeld, flagRedirtied)
	}
	return unlockDone
}

// markDirty sets the page's bit in its leaf.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) markDirty(page uint64) {
	leaf := uint32(bare.Load64(d.dirEntry(page))) & dirLeafMask
	bare.Or64(&metaOf(leaf).dirty, 1<<(page&(leafPages-1)))
}

// countDirty counts one page more that is dirty.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) countDirty() {
	add64(&d.dirty, d.framesPerPage())
	if add64(&d.words.dirty, d.framesPerPage()) == d.framesPerPage() {
		d.words.wakeClock() // the first
	}
}

// countClean counts a page that was dirty and is not any more.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) countClean() {
	add64(&d.dirty, -d.framesPerPage())
	add64(&d.words.dirty, -d.framesPerPage())
}
