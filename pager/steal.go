//go:build linux

package pager

import (
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// Room without a P
//
// Who serves a blocked fault and finds no free frame takes that of a clean page,
// without asking the policy: a hand goes round the groups of pages that have
// words. The policy would choose better, and serveRead gives it the time to.

// stealFrames takes n frames for page: free ones, or those of clean unpinned
// pages, or those of reads that nobody waits for.
//
//go:nosplit
//go:norace
//go:nocheckptr
func stealFrames(d *desc, n int64, page uint64) bool {
	w := d.words
	for tries := 0; tries < 4; tries++ {
		if w.takeFramesDownTo(n, 0) {
			return true
		}
		if !stealOne(w, tries > 0, spare(tries)) && tries > 2 {
			break
		}
	}
	return w.takeFramesDownTo(n, -load64(&w.frameSlack))
}

// stealOne frees the frames of one page of the pager with words w.
//
//go:nosplit
//go:norace
//go:nocheckptr
func stealOne(words *pagerWords, cancel bool, keep uint64) bool {
	used := bare.Load32(&sp.leafUsed)
	for i := uint32(0); i <= used+1; i++ {
		h := bare.Add32(&words.hand, 1) % (used + 1)
		if h == 0 {
			continue
		}
		d, m := words.enterLeaf(h)
		if d == nil {
			continue
		}
		ok := stealFrom(d, bare.Load64(&m.group)<<leafShift, cancel, keep)
		d.leave()
		if ok {
			return true
		}
	}
	return false
}

//go:nosplit
//go:norace
//go:nocheckptr
func stealFrom(d *desc, first uint64, cancel bool, keep uint64) bool {
	for page := first; page < first+leafPages && page < d.pages; page++ {
		pw, w := d.look(page)
		if pw == nil {
			return false
		}
		if w&pinMask != 0 || d.words.servedLately(d.index, page, keep) {
			continue
		}
		switch {
		case w&stateMask == stResident:
			if !bare.Cas64(pw, w, w&^stateMask|stEvicting) {
				continue
			}
			if w&flagKept != 0 {
				d.words.returnKept(d.framesPerPage())
			}
			unmapVia(d.addr(page), d.pageSize())
			if d.vacate(pw, page) && spanTake(d, page) {
				unmapVia(d.addr(page)&^(granule-1), granule)
				bare.Store32(d.spanWord(page), 0)
			}
		case cancel && w&stateMask == stLoading:
			// Nobody has been promised a pin. The owner will find that the page
			// is not his any more, and those who wait for it try again.
			if !bare.Cas64(pw, w, w&genMask) {
				continue
			}
			if isMarker(w) {
				d.words.markerGone()
			}
			add64(&d.resident, -d.framesPerPage())
			d.drop(page)
			if w&flagWaited != 0 {
				// If the owner is a fault server nobody else tells them.
				d.words.notify(noticeLoaded, d.index, page, true)
			}
		default:
			continue
		}
		add64((*int64)(unsafe.Pointer(&d.words.stolen)), 1)
		d.words.giveFrames(d.framesPerPage())
		return true
	}
	return false
}
