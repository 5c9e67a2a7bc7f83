//go:build linux

package pager

import (
	"runtime"
	"time"
	"unsafe"
)

// Writing through
//
// A page that is written whole while it is absent is born Dirty, from a private
// buffer: it may be written to again before it goes to the store, and its
// neighbours may be written along with it. To write it back later it is
// protected, which interrupts every core that runs the program, and copied,
// which is its first touch. Where so much is dirty that background writing is
// about to begin, that later is soon; then a page whose neighbours are not dirty
// goes to the store at once, and the buffer that it was installed from is the
// copy. It is born in Writing, protected, and treated from there on like any
// other: a store to it makes it Dirty again.

// A writer that nothing keeps waiting lets others run now and then: a processor
// that many of them share would be given on every ten milliseconds only.
const throughYield = 8

// writesThrough: page, which is absent and about to be written whole, is to go to
// the store at once.
func (p *Pager) writesThrough(r *Region, page uint64) bool {
	return r.mayWriteThrough() && r.muchDirty() && p.throughRoom() >= r.fpp && p.mayStart(r, page)
}

// mayWriteThrough says of a region whether what is written to it may go to the store
// before anybody asks for it.
func (r *Region) mayWriteThrough() bool {
	o := &r.opt.Writeback
	return r.atomic == nil && r.write.side == nil && !o.NoSteal && o.BeforeWrite == nil && o.Policy == nil && o.Rate == 0 && sp.wp
}

// mayStart: there is no reason not to write page by itself now.
func (p *Pager) mayStart(r *Region, page uint64) bool {
	if p.w.tight() {
		return false
	}
	if failed := p.flush.failed.Load(); failed != 0 && time.Since(time.Unix(0, failed)) < time.Second {
		return false
	}
	return !r.uncleanAt(page-1) && !r.uncleanAt(page+1)
}

// throughRoom is writeRoom for what is written through: a quarter of the queue
// more, so that what others have started (who makes room, eviction) does not keep
// the next page from it, which would then have to be written by them.
func (p *Pager) throughRoom() int64 { return p.roomWithin(p.opt.QueueDepth * 3 / 4) }

// uncleanAt: the page is dirty or being written. Any number will do.
func (r *Region) uncleanAt(page uint64) bool {
	if page >= r.d.pages {
		return false
	}
	pw, w := r.d.look(page)
	return pw != nil && unclean(w)
}

// bornWriting maps a page that is Installing protected, in Writing. writing is
// false if it became Dirty because writes are held (see Discard).
//
//go:nosplit
//go:norace
//go:nocheckptr
func bornWriting(d *desc, pw *word, page uint64, src unsafe.Pointer) (old word, errno uintptr, writing bool) {
	if errno = mapPages(d.addr(page), src, d.pageSize(), true); errno != 0 {
		return 0, errno, false
	}
	d.countDirty()
	// Who has joined to store to it (flagForStore) makes it writable again: in
	// Writing that bit would say that it is.
	old, _ = setState(pw, stInstalling, stCopying, flagWaited|flagForStore, 0)
	if writing = !d.held(page); writing { // after the transition, as in copyOut
		setState(pw, stCopying, stWriting, 0, 0)
	} else {
		d.markDirty(page)
		d.afterSpan(page)
		protectRange(d.addr(page), d.pageSize(), false)
		setState(pw, stCopying, stDirty, 0, 0)
	}
	return old, 0, writing
}

// writeThrough starts the write of a page that was born in Writing.
func (p *Pager) writeThrough(r *Region, page uint64, buf *buffer) {
	b := newWriteBatch(p.engine)
	p.write(r, page, 1, buf, writeNeed, b)
	b.start()
	b.free()
	p.wentThrough()
}

// wentThrough is what a writer whose page has gone to the store does for the others.
func (p *Pager) wentThrough() {
	p.reapSome(8)
	if p.throughs.Add(1)%throughYield == 0 {
		runtime.Gosched()
	}
}
