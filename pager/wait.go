//go:build linux

package pager

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
)

// Waiting for pages
//
// A request (an Acquire, a Lock, a ReadAt that missed, a parked raw access) is
// one waitOp over a set of pages. For each page that is on its way it has a
// waiter in the bucket of that page; nobody else waits in any other way, and
// there is no goroutine per request.
//
// Lock order: regionAhead.mu, then evictMu; line.mu, a bucket's mu,
// writeState.mu, jobQueue.mu, loadQueue.mu, drops.mu, arrivals.mu, shelf.mu, the locks of unmapped and holdMu are leaves:
// nothing is locked under them. Under a bucket's mu, and those of unmapped, only page words are changed.
// Completing an op (signalling its owner) and starting I/O happen with no lock
// held, because a store may complete within Start.
const bucketCount = 4096

type bucket struct {
	mu   sync.Mutex
	head *waiter
}

// waiter is one op's interest in one page.
type waiter struct {
	next *waiter
	op   *waitOp
	page uint64
	pin  bool   // it counts as a pin in the page's word
	loan loan   // what it has been lent, if its op borrows and it waits for a page by itself
	seat uint64 // where the rescuer finds the page, 0: its load has one; see join
}

type opState = uint32

const (
	opActive    opState = iota
	opDone              // its owner has been told
	opAbandoned         // its owner has gone; what it got is to be given back
)

// waitOp is one request for pages.
type waitOp struct {
	r        *Region
	ranges   []pageRange // what is wanted, in pages
	one      [1]pageRange
	pin      bool // the pages are to be pinned
	borrows  bool // it has a use for the buffers that its pages were read to; see loan.go …
	single   bool // … which is the one being started: a range of one page
	hold     bool // a parked access that is to be pinned, and held, if that can be had
	store    bool // the pages are about to be stored to: a parked store's is pinned, until it is there, if that costs nothing
	ticket   bool // frames are all it wants, which the owner uses himself …
	write    bool // … for pages that are born dirty: with a credit for each
	resident bool // … a ticket for a page that is there: credits only

	left  atomic.Int32 // pages still missing, plus one while the op is being started
	state atomic.Uint32
	mu    sync.Mutex // guards err, got
	err   error
	got   []pageRange // pinned so far; what to give back on failure
	begun time.Time
	alone bool // it may have, and then has, the place of who waits alone

	// Who is told. Exactly one is set.
	ch     chan struct{} // a goroutine: capacity 1, kept for reuse
	lock   *Lock
	parked coro.Parked
	isPark bool

	// In the line for frames.
	nextInLine *waitOp
	inLine     bool
	served     bool  // somebody is trying to make room for it
	cancel     error // why it is to leave the line
	saved      int64 // credits kept for it
	need       int64 // frames and credits
	told       bool  // the wedge detector has named it

	w0 [1]waiter
	ws []waiter
	nw int

	// Room for the ranges and waiters of more than one page, kept for reuse.
	rangeRoom  []pageRange
	waiterRoom []waiter
}

// mostWaitersKept is of how many waiters an op keeps the room.
const mostWaitersKept = 64

// pageRange is n pages from first.
type pageRange struct{ first, n uint64 }

var opPool = sync.Pool{New: func() any { return &waitOp{ch: make(chan struct{}, 1)} }}

func newOp(r *Region) *waitOp {
	op := opPool.Get().(*waitOp)
	op.r = r
	op.state.Store(opActive)
	op.begun = time.Now()
	return op
}

// free recycles an op that nobody can reach any more.
func (op *waitOp) free() {
	ranges, waiters := op.rangeRoom, op.waiterRoom
	if n := len(op.ws); n > 1 && n <= mostWaitersKept {
		clear(op.ws)
		waiters = op.ws[:0]
	}
	if cap(ranges) > mostWaitersKept {
		ranges = nil
	}
	*op = waitOp{ch: op.ch, got: op.got[:0], rangeRoom: ranges[:0], waiterRoom: waiters}
	opPool.Put(op)
}

func (op *waitOp) pages() (n uint64) {
	for _, pr := range op.ranges {
		n += pr.n
	}
	return n
}

// waiterFor hands out the op's next waiter.
func (op *waitOp) waiterFor(page uint64) *waiter {
	if op.ws == nil {
		if n := op.pages(); n == 1 {
			op.ws = op.w0[:]
		} else if n <= uint64(cap(op.waiterRoom)) {
			op.ws = op.waiterRoom[:n]
		} else {
			op.ws = make([]waiter, n)
		}
	}
	w := &op.ws[op.nw]
	op.nw++
	*w = waiter{op: op, page: page, pin: op.pin}
	w.loan.wanted = op.borrows && op.single
	return w
}

// obtained notes that page is pinned for the op.
func (op *waitOp) obtained(page uint64) {
	if !op.pin {
		return
	}
	op.mu.Lock()
	if k := len(op.got) - 1; k >= 0 && op.got[k].first+op.got[k].n == page {
		op.got[k].n++
	} else {
		op.got = append(op.got, pageRange{page, 1})
	}
	op.mu.Unlock()
}

func (op *waitOp) fail(err error) {
	op.mu.Lock()
	if op.err == nil {
		op.err = err
	}
	op.mu.Unlock()
}

// pageDone lowers the op's count; the last one completes it.
func (op *waitOp) pageDone() {
	if op.left.Add(-1) == 0 {
		op.complete()
	}
}

// complete tells the owner, or gives everything back if there is none.
func (op *waitOp) complete() {
	if op.err != nil {
		op.undo()
	}
	if op.isPark && op.ticket {
		pk, r, page, begun, err := op.parked, op.r, op.one[0].first, op.begun, op.err
		op.free()
		r.endParkedWrite(pk, page, begun, err)
		return
	}
	if op.isPark {
		// The parked goroutine may run at once and fault again: nothing of
		// the op may be used after Resume.
		pk, errno, r := op.parked, uintptr(0), op.r
		if op.err != nil && r.waitsFor(op.err) {
			// The goroutine stays parked until the page can be read.
			page := op.one[0].first
			t := &tracked{kind: WedgedFault, r: r, name: "parked in place", off: int64(page << r.shift), n: 1 << r.shift, begun: op.begun, told: op.told}
			op.free()
			r.p.tracks.add(t)
			time.AfterFunc(readRetry, func() {
				r.p.tracks.remove(t)
				r.startParkedRead(pk, page, false, t)
			})
			return
		}
		if op.err != nil {
			errno = r.noteFault(op.err)
		}
		switch page := op.one[0].first; {
		case !op.pin || op.err != nil:
		case op.hold:
			r.p.addHold(r, page, pk)
		default:
			r.unpin(pageRange{page, 1}, false) // its credit is that of the dirty page now
		}
		op.free()
		r.leave()
		readied.n.Add(1)
		readied.parked.Add(1)
		pk.Resume(errno)
		return
	}
	if op.lock != nil {
		op.lock.complete(op)
		return
	}
	if op.state.CompareAndSwap(opActive, opDone) {
		readied.n.Add(1)
		readied.runnable.Add(1)
		p, alone := op.r.p, op.alone
		op.ch <- struct{}{}
		if alone {
			p.alone.bell.Ring()
		}
		return
	}
	// Abandoned: the owner returned because its context ended.
	// It is not recycled: the owner may still be taking it out of the line.
	op.undo()
	op.putLoans()
	op.r.leave()
}

// waitsFor: raw access is to wait for a read that has failed in this way to
// succeed. Close ends that at once: it waits for running View and Update.
func (r *Region) waitsFor(err error) bool {
	var f *FaultError
	return r.opt.OnReadError == Wait && errors.As(err, &f) && (f.Op == "read" || f.Op == "verify") && !errors.Is(err, ErrClosed) && !r.closing.Load()
}

// undo releases what the op has pinned.
func (op *waitOp) undo() {
	op.mu.Lock()
	got := op.got
	op.got = nil
	op.mu.Unlock()
	for _, pr := range got {
		op.r.unpin(pr, false)
	}
}

// readRetry is the pause between attempts to read a page for raw access with
// OnReadError Wait.
const readRetry = 20 * time.Millisecond

// wait parks the calling goroutine until the op is complete. On a nil error
// the pages are pinned (if the op pins). The op is recycled in any case.
func (op *waitOp) wait(ctx context.Context) error {
	if err := op.hear(ctx); err != nil {
		return err
	}
	return op.end()
}

// hear parks the calling goroutine until the op is complete. After an error, which
// is the context's, the op is not the caller's any more.
func (op *waitOp) hear(ctx context.Context) error {
	if op.alone { // only without an end to the context
		op.r.p.waitAlone(op)
		return nil
	}
	if ctx.Done() == nil {
		<-op.ch
		return nil
	}
	select {
	case <-op.ch:
	case <-ctx.Done():
		if op.state.CompareAndSwap(opActive, opAbandoned) {
			op.r.p.leaveLine(op, ctx.Err())
			return ctx.Err()
		}
		<-op.ch
	}
	return nil
}

// end is what is left to do for an owner who has been told: it recycles the op,
// leaves the region, and returns how it ended.
func (op *waitOp) end() error {
	r, err := op.r, op.err
	readied.runnable.Add(-1)
	op.free()
	r.leave()
	return err
}

func (p *Pager) bucketOf(r *Region, page uint64) *bucket {
	h := (uint64(r.d.index)<<40 ^ page) * 0x9E3779B97F4A7C15
	return &p.buckets[h>>(64-12)]
}

// join makes w wait for its page if the page is on its way, pinning it ahead
// if w pins. It reports the word it saw; joined is false if the page is in a
// state that need not (or cannot) be waited for. pinned0 says that w's pin is
// the first, so that a credit is used. If w is the first to wait at all the page was
// not read for anybody, and the rescuer is told of it.
func (p *Pager) join(w *waiter) (v word, joined, pinned0 bool) {
	r := w.op.r
	b := p.bucketOf(r, w.page)
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		pw, v := r.d.look(w.page)
		if pw == nil {
			return stMissing, false, false
		}
		if s := v & stateMask; s != stLoading && s != stInstalling {
			return v, false, false
		}
		n := v | flagWaited
		if w.pin {
			if v&pinMask == pinMask {
				return v, false, false
			}
			n += pinOne
		}
		if bare.Cas64(pw, v, n) {
			w.next = b.head
			b.head = w
			if v&flagWaited == 0 {
				w.seat = r.sit(0, w.page, 1)
			}
			return v, true, w.pin && v&pinMask == 0
		}
	}
}

// enlist adds the waiter of the op that has just claimed the page: its pin and
// flagWaited are in the word already.
func (p *Pager) enlist(w *waiter) {
	b := p.bucketOf(w.op.r, w.page)
	b.mu.Lock()
	w.next = b.head
	b.head = w
	b.mu.Unlock()
}

// settle completes the waiters of a page that is no longer on its way.
// Whoever ends a page's Loading calls it (for the fault server: the
// housekeeper), and so does an owner whose page was taken over.
func (p *Pager) settle(r *Region, page uint64) { p.settleFrom(r, page, 0, nil, 0) }

// settleFrom is settle for a page that has just been installed, write-protected,
// by the owner of generation gen, from buf at off.
func (p *Pager) settleFrom(r *Region, page uint64, gen uint32, buf *buffer, off int) {
	b := p.bucketOf(r, page)
	var ready *waiter
	var marker uint32 // generation of a marker that is wanted now; 0: none
	b.mu.Lock()
	for {
		pw, v := r.d.look(page)
		if pw == nil || uint32(v>>32) != gen {
			buf = nil // it has left since: who waits may have asked for what came later
		}
		s := v & stateMask
		if pw == nil || s != stLoading && s != stInstalling && s != stFailed {
			ready = b.take(r, page)
			break
		}
		// It has left and been claimed again, and whoever has it will settle it: if
		// he knows that somebody waits, which a claim for a page that is read
		// ahead or written whole does not say.
		if v&flagWaited != 0 || s == stFailed || !b.has(r, page) {
			break
		}
		if bare.Cas64(pw, v, v|flagWaited) {
			if v&flagMark != 0 {
				marker = uint32(v >> 32)
			}
			break
		}
	}
	b.mu.Unlock()
	if marker != 0 { // as for who joins one
		p.mapMarker(r, page, marker)
	}
	for w := ready; w != nil; {
		next := w.next
		w.op.obtained(page)
		if buf != nil && w.loan.wanted {
			if w.pin {
				w.loan.pin = p.lendPin(buf, off)
			} else {
				w.loan.take(buf, off)
			}
		}
		w.op.pageDone()
		w = next
	}
}

// has: somebody waits for the page. b.mu is held.
func (b *bucket) has(r *Region, page uint64) bool {
	for w := b.head; w != nil; w = w.next {
		if w.page == page && w.op.r == r {
			return true
		}
	}
	return false
}

// take unlinks the waiters of a page. b.mu is held.
func (b *bucket) take(r *Region, page uint64) (ready *waiter) {
	for at := &b.head; *at != nil; {
		w := *at
		if w.page == page && w.op.r == r {
			*at = w.next
			w.next = ready
			ready = w
			r.rise(w.seat, page, 1)
			continue
		}
		at = &w.next
	}
	return ready
}

// failPage ends the Loading of generation gen with an error: the page becomes
// Missing, its waiters get err. It does nothing if the page was taken over.
func (p *Pager) failPage(r *Region, page uint64, gen uint32, from word, err error) {
	p.failPageBut(0, r, page, gen, from, err)
}

// failPageBut is failPage, but returns false and leaves a page alone whose word has one
// of these bits.
func (p *Pager) failPageBut(bits word, r *Region, page uint64, gen uint32, from word, err error) bool {
	b := p.bucketOf(r, page)
	b.mu.Lock()
	pw, v := r.d.look(page)
	for {
		if pw == nil || v&stateMask != from || uint32(v>>32) != gen {
			b.mu.Unlock()
			p.settle(r, page)
			return true
		}
		if v&bits != 0 {
			b.mu.Unlock()
			return false
		}
		// Whoever claims the page now cannot enlist before the lock is free,
		// so all waiters in the bucket are this load's.
		if bare.Cas64(pw, v, v&genMask) {
			break
		}
		v = bare.Load64(pw)
	}
	ready := b.take(r, page)
	b.mu.Unlock()
	add64(&r.d.resident, -r.fpp)
	r.d.drop(page)
	if v&pinMask != 0 {
		p.giveCredits(r.fpp)
	}
	for w := ready; w != nil; {
		next := w.next
		w.op.fail(err)
		w.op.pageDone()
		w = next
	}
	p.unreserve(r.fpp)
	p.transition()
	return true
}

// abandonAll completes every waiting op of r with err; for Close. Pins that
// waiters held in words on their way are taken back.
func (p *Pager) abandonAll(r *Region, err error) {
	for i := range p.buckets {
		b := &p.buckets[i]
		b.mu.Lock()
		var out *waiter
		for at := &b.head; *at != nil; {
			w := *at
			if w.op.r != r {
				at = &w.next
				continue
			}
			*at = w.next
			w.next, out = out, w
		}
		b.mu.Unlock()
		for w := out; w != nil; {
			next := w.next
			r.rise(w.seat, w.page, 1)
			if w.pin {
				r.unpin(pageRange{w.page, 1}, false)
			}
			w.op.fail(err)
			w.op.pageDone()
			w = next
		}
	}
}
