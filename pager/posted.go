//go:build linux

package pager

import (
	"math"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/evict"
)

// Posted pages
//
// Where ReadAt and WriteAt are all that comes to a region (unmapped.go), a page that
// is written whole while it is absent need not be mapped either. What the caller gave
// is copied to a buffer, and that goes to the store at once. Until it is there the
// page is Posted: its contents are in the buffer and nowhere else. Afterwards it is
// what ReadAt leaves behind, a marker whose frame is the buffer. Nothing is
// installed, protected or unmapped, and nothing that is dirty stands in the way of
// eviction.
//
//	             post                       written
//	Loading ──────────────▶ Posted ──────────────────────▶ Loading, a marker
//	   ▲         │             │ ▲
//	   └─────────┘     wanted, │ │ the kernel refuses
//	 held (Discard)  or failed ▼ │
//	                         Mapping ─────▶ Writing, mapped and protected
//
// Post: by WriteAt, who has claimed the page and has a credit for it, and only if
// nobody waits for it: a Posted page has no pins and no waiters. Whoever wants one
// (startPage; serveRead, without a P) maps it from the buffer, and it is Writing like
// any other then: it can be pinned, and a store makes it writable again. So does the
// completion of a write that has failed, for what is to be written again is Dirty. All
// else that is true of a page that is Writing is true of a Posted one: it has a credit,
// counts as dirty, is waited for by Syncs and by who holds writes, and does not leave.
//
// Who maps it has to find the buffer without a lock. So each has one of few seats in
// pagerWords, which are looked through for that. A seat is empty again some time after
// its write has ended; nobody can be Mapping from it then. By that time the page may be
// Posted anew, with another seat, so a seat is known by page and claim.
//
// Whoever finds all of them taken has his page mapped, and dirty, as long as little is:
// a burst is over at the speed of memory. Then he waits for one: dirty pages are the dear way, and to make more of them
// than the store takes would only put off the waiting. He holds nothing meanwhile, and
// writes end by themselves.
//
// In regions whose pages may go to the store at any time as they are; not beside dirty
// neighbours, which are better written together, and not while the store takes
// nothing. What is written again and again is mapped, so that not each time goes to the
// store.
type posted struct {
	gen  uint64 // of the page's claim, as it is in its word; 0: the seat is free
	page uint64 // its key, for generations are used again
	mem  uintptr
}

const postedMost = 256

// posting is a pager's side of it.
type posting struct {
	seats   chan int32   // that are free, from 1 on
	waiting atomic.Int32 // for one
}

func (q *posting) init(depth int) {
	n := min(max(depth/2, 1), postedMost) // at most so many writes stand before a read, see flush.go
	q.seats = make(chan int32, n)
	for i := range n {
		q.seats <- int32(i + 1)
	}
}

// take takes a seat, or waits for one.
func (q *posting) take(wait bool) (seat int32) {
	select {
	case seat = <-q.seats:
		return seat
	default:
	}
	if !wait {
		return 0
	}
	q.waiting.Add(1)
	defer q.waiting.Add(-1)
	return <-q.seats
}

func (q *posting) give(seat int32) {
	if q.waiting.Load() > 0 {
		readied.n.Add(1) // he writes in a moment, as others who are made ready now: see gather.go
	}
	q.seats <- seat
}

// mayPost says of a region whether its pages may go to the store at any time, as
// they are, and need not be mapped.
func (r *Region) mayPost() bool {
	o := &r.opt
	return !o.ReadOnly && r.mayWriteThrough() && r.fpp == 1 && o.Verify == nil && o.Seal == nil && sp.trap
}

// posts: page is to be posted if it is written whole.
func (p *Pager) posts(r *Region, page uint64) bool {
	if !r.posts || r.copies.Load() < unmappedAfter || p.roomWithin(math.MaxInt32) == 0 {
		return false
	}
	pw, w := r.d.look(page)
	return (pw == nil || w&stateMask == stMissing || isMarker(w)) && p.mayStart(r, page)
}

// replaced makes a page Missing that is about to be written whole, if its frame is a
// buffer.
func (p *Pager) replaced(r *Region, page uint64, w word) bool {
	if !r.posts || !isMarker(w) {
		return false
	}
	// (The policy goes on knowing it. If it does not come back, it is unknown.)
	left, _ := p.takeUnmapped(r.d, page, uint32(w>>32))
	if left {
		p.unreserve(r.fpp)
	}
	return left
}

// muchDirty: half of what starts background writing.
func (r *Region) muchDirty() bool { return load64(&r.d.dirty) >= r.shareLimit()/2 }

// post makes a page Posted that has been claimed and whose contents are in buf, and
// starts its write. false: it has to be mapped, or is not ours any more; nothing has
// changed.
func (p *Pager) post(r *Region, pw *word, gen uint32, page uint64, buf *buffer, seat int32) bool {
	p.sitPosted(seat, r.d, page, gen, buf)
	held := coro.Unstopped()
	done := post(r.d, pw, gen, page)
	coro.Stoppable(held)
	if !done {
		bare.Store64(&p.w.posted[seat-1].gen, 0)
		return false
	}
	r.willKeep()
	p.tellEvict(r, page, evict.Demand)
	w := p.newWrite(r, page, 1, buf, writeNeed)
	w.gen, w.seat = gen, seat
	b := newWriteBatch(&p.gather)
	p.addWrite(w, b)
	lead := p.lead()
	b.start()
	b.free()
	if lead {
		p.gather.yield()
		p.gather.flush()
	}
	p.wentThrough()
	return true
}

// post takes a page from Loading to Posted, if nobody waits for it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func post(d *desc, pw *word, gen uint32, page uint64) bool {
	for {
		w := bare.Load64(pw)
		if w&stateMask != stLoading || uint32(w>>32) != gen || w&(flagWaited|pinMask) != 0 {
			return false
		}
		if bare.Cas64(pw, w, w&^stateMask|stMapping) {
			break
		}
	}
	if d.held(page) { // after the transition, as in copyOut
		setState(pw, stMapping, stLoading, 0, 0)
		return false
	}
	d.countDirty()
	setState(pw, stMapping, stPosted, 0, 0)
	return true
}

//go:nosplit
//go:norace
func postedKey(d *desc, page uint64) uint64 { return uint64(d.index)<<noticePageBits | page }

// sitPosted makes buf the one of the page, which was claimed with generation gen.
func (p *Pager) sitPosted(seat int32, d *desc, page uint64, gen uint32, buf *buffer) {
	s := &p.w.posted[seat-1]
	bare.Store64(&s.page, postedKey(d, page))
	s.mem = uintptr(unsafe.Pointer(&buf.mem[0]))
	bare.Store64(&s.gen, uint64(gen)<<32)
}

// mapPosted maps a page that was Posted when its word was w, protected: it is Writing
// then. 0: it is, or its word has changed. An errno: it is Posted.
//
//go:nosplit
//go:norace
//go:nocheckptr
func mapPosted(d *desc, pw *word, w word, page uint64) (errno uintptr) {
	if !bare.Cas64(pw, w, w&^stateMask|stMapping) {
		return 0
	}
	errno = uintptr(syscall.EFAULT) // which it is not: it has a seat
	for i := uintptr(0); i < postedMost; i++ {
		s := (*posted)(unsafe.Add(unsafe.Pointer(&d.words.posted), i*unsafe.Sizeof(posted{})))
		if bare.Load64(&s.gen) == w&genMask && bare.Load64(&s.page) == postedKey(d, page) {
			errno = mapVia(d.addr(page), bare.Ptr(s.mem), d.pageSize(), true)
			break
		}
	}
	if errno != 0 {
		setState(pw, stMapping, stPosted, 0, 0)
		return errno
	}
	setState(pw, stMapping, stWriting, 0, 0)
	return 0
}

var mapPostedVia = mapPosted // see cleanVia

// mapPosted is mapPosted for goroutines.
func (r *Region) mapPosted(pw *word, w word, page uint64) (errno uintptr) {
	held := coro.Unstopped()
	errno = mapPosted(r.d, pw, w, page)
	coro.Stoppable(held)
	return errno
}

// mapFailed maps a page whose write has failed. false: it cannot be mapped, and is
// still Posted.
func (r *Region) mapFailed(page uint64) bool {
	for turn := 0; ; turn++ {
		pw, w := r.d.look(page)
		switch w & stateMask {
		case stPosted:
			if r.mapPosted(pw, w, page) != 0 {
				return false
			}
		case stMapping:
			relaxGo(turn)
		default:
			return true
		}
	}
}

// keepPosted keeps the buffer of a page whose write has ended well: it is the frame,
// if nobody has mapped the page. It is there before anybody can find the word that
// says so.
func (p *Pager) keepPosted(r *Region, page uint64, gen uint32, buf *buffer) {
	p.unmapped.put(pageKey(r.d, page), gen, buf)
}

// endPosted is told when the page is not Posted any more.
func (p *Pager) endPosted(r *Region, page uint64, gen uint32, buf *buffer, seat int32) {
	if !r.d.loading(page, gen) {
		bufs.put(p.unmapped.take(pageKey(r.d, page), gen))
	}
	bare.Store64(&p.w.posted[seat-1].gen, 0)
	bufs.put(buf)
	p.posting.give(seat)
}

// postAgain: the write of a Posted page has failed, and the kernel does not map
// it. So it is neither clean nor Dirty, and the write is repeated until one of both has
// come to an end.
func (p *Pager) postAgain(w *writeIO) { time.AfterFunc(readRetry, func() { p.writeAgain(w) }) }
