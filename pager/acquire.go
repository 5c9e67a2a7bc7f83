//go:build linux

package pager

import (
	"context"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Pin is a range of a region that is resident and stays so until Release. Its
// memory may be given to system calls, cgo and O_DIRECT transfers (to read
// from; to let them write into it, AcquireWrite). A Pin is a value: copy it
// freely, but call Release once.
//
// Bytes is that range of Region.Bytes. Only in a region that is ReadOnly, a pin of
// bytes of one page, which had to be read, may have the buffer it was read to
// instead: the same bytes at another address, aligned to 4 KiB (see lentpins.go).
// Nothing may be stored there. It is no fault, others may be reading from it, and
// the page does not change.
type Pin struct {
	check pinCheck
	r     *Region
	span
	how pinned
} // Four fields and four words: the compiler keeps no more than that in registers.

// span is n bytes from off.
type span struct{ off, n int64 }

// pinned is how a pin is held: pinnedHere and, if it is for writing, pinnedWrite and
// the passage that the pin ends; or, below zero, by which slot of lentPins. The pin
// is empty if it is 0.
type pinned int

// A passage uses bit 0, and those above 3.
const (
	pinnedWrite pinned = 1 << 1 // by AcquireWrite
	pinnedHere  pinned = 1 << 2 // Bytes is memory of the region
)

func newPin(r *Region, off, n int64, how pinned) Pin {
	return Pin{watchPin(r, off, n), r, span{off, n}, how}
}

// Bytes is the pinned memory. It must not be used after Release.
func (p Pin) Bytes() []byte {
	if p.how <= 0 {
		return p.lent()
	}
	p.check.use()
	return unsafe.Slice((*byte)(unsafe.Add(p.r.base, p.off)), p.n)
}

// Release unpins. Releasing twice panics if the page is not pinned otherwise.
func (p Pin) Release() {
	if p.how == 0 { // it is empty
		return
	}
	p.check.end()
	r, pr := p.r, p.r.pageRange(p.off, p.n)
	if pr.n == 1 && p.how == pinnedHere { // nearly always
		if r.unpinPage(pr.first) {
			r.p.giveCredits(r.fpp)
		}
		return
	}
	if p.how < 0 {
		r.endLent(p)
		r.unpin(pr, false)
		return
	}
	r.unpin(pr, p.how&pinnedWrite != 0)
	r.passed(passage(p.how &^ (pinnedWrite | pinnedHere)))
}

func (r *Region) pageRange(off, n int64) pageRange {
	first := uint64(off) >> r.shift
	return pageRange{first, uint64(off+n-1)>>r.shift - first + 1}
}

// checkRange: 0 ≤ off, 0 ≤ n, off+n ≤ Len without overflow.
func (r *Region) checkRange(op string, off, n int64) error {
	if off < 0 || n < 0 || off > r.Len() || n > r.Len()-off {
		return &FaultError{Op: op, Store: r.name, Offset: off, Err: fmt.Errorf("%w: %d bytes at %d in a region of %d", errRange, n, off, r.Len())}
	}
	return nil
}

// pinHit pins the page if it is resident: the fast path of everything that is
// explicit. It changes the page's word and nothing else, but for the first pin
// of a page that has not kept its credit (see kept.go). A page that was read ahead,
// and that nobody has come to, is not for it (pinUntouched, pinLent).
func (r *Region) pinHit(page uint64) bool {
	e := (*uint64)(unsafe.Add(r.dir, page>>leafShift*8))
	for {
		v := atomic.LoadUint64(e)
		if v == 0 {
			return false
		}
		pw := leafWord(uint32(v)&dirLeafMask, page)
		w := atomic.LoadUint64(pw)
		if s := w & stateMask; s < stResident || s > stWriting {
			return false
		}
		if (atomic.LoadUint64(e)^v)&^dirCountMask != 0 {
			continue
		}
		if w&(flagPrefetched|flagKept|pinMask) != 0 || w&stateMask != stResident {
			if w&flagPrefetched != 0 || w&pinMask == pinMask || w&(pinMask|flagKept) == 0 && r.p.w.tight() {
				return false
			}
			if atomic.CompareAndSwapUint64(pw, w, (w+pinOne)&^flagWatched|flagTouched) {
				return true
			}
			continue
		}
		if !r.p.credits.take(r.fpp) {
			return false
		}
		if atomic.CompareAndSwapUint64(pw, w, (w+pinOne)&^flagWatched|flagTouched) {
			return true
		}
		r.p.giveCredits(r.fpp)
	}
}

// pinUntouched is pinHit for a page that somebody may have to come to first.
func (r *Region) pinUntouched(page uint64) bool {
	for {
		pw, w := r.d.look(page)
		switch {
		case pw == nil || !present(w):
			return false
		case w&flagPrefetched == 0:
			return r.pinHit(page)
		}
		r.copied(false)
		r.firstTouch(pw, w, page)
	}
}

// unpin takes one pin off each page.
func (r *Region) unpin(pr pageRange, write bool) {
	for page := pr.first; page < pr.first+pr.n; page++ {
		if write {
			r.dropWritePin(page)
		}
		if r.unpinPage(page) {
			r.p.giveCredits(r.fpp)
		}
	}
}

// unpinPage takes one pin off a page and says whether its credits are free now:
// it was the last, the page is clean, and does not keep them.
func (r *Region) unpinPage(page uint64) (free bool) {
	// A pinned page keeps its leaf, so one look is enough.
	e := (*uint64)(unsafe.Add(r.dir, page>>leafShift*8))
	pw := leafWord(uint32(atomic.LoadUint64(e))&dirLeafMask, page)
	for {
		w := atomic.LoadUint64(pw)
		if w&pinMask != pinOne || unclean(w) {
			if w&pinMask == 0 {
				panic("pager: Release of a page that is not pinned")
			}
			if atomic.CompareAndSwapUint64(pw, w, w-pinOne) {
				return false
			}
			continue
		}
		if w&flagKept == 0 || atomic.LoadUint32(r.scarce) != 0 {
			return r.unpinLast(pw)
		}
		if atomic.CompareAndSwapUint64(pw, w, w-pinOne) {
			// Whoever calls kept credits in says so and then looks at the
			// words; we do it the other way round.
			return atomic.LoadUint32(r.scarce) != 0 && r.unkeep(pw, w>>32)
		}
	}
}

// pinHits pins a whole range if all of it is resident, else nothing.
func (r *Region) pinHits(pr pageRange) bool {
	for i := uint64(0); i < pr.n; i++ {
		if page := pr.first + i; !r.pinHit(page) && !r.pinUntouched(page) {
			if i > 0 {
				r.unpin(pageRange{pr.first, i}, false)
			}
			return false
		}
	}
	return true
}

// Acquire makes [off, off+n) resident and pins it. A hit costs a look at a
// state word; otherwise the calling goroutine is parked while the missing
// pages are read with one submission. It holds nothing while it waits for
// room. n = 0 gives an empty Pin.
//
// Errors: *FaultError with the errno if a page cannot be read; ErrBudget if
// the range is larger than what can be pinned at all, or if pinned pages leave
// no room for Options.StallLimit; ctx.Err(); ErrClosed.
func (r *Region) Acquire(ctx context.Context, off, n int64) (Pin, error) {
	return r.acquire(ctx, off, n, false)
}

func (r *Region) acquire(ctx context.Context, off, n int64, write bool) (Pin, error) {
	if off < 0 || n <= 0 || off > r.Len() || n > r.Len()-off {
		if err := r.checkRange("acquire", off, n); err != nil {
			return Pin{}, err
		}
	}
	if n == 0 {
		if r.closing.Load() {
			return Pin{}, ErrClosed
		}
		return Pin{}, nil
	}
	pr := r.pageRange(off, n)
	switch one := pr.n == 1 && !write; {
	case one && r.pinHit(pr.first):
		if err := r.pinnedOpen(pr); err != nil {
			return Pin{}, err
		}
	case one && r.lends:
		return r.acquireLent(ctx, off, n)
	default:
		if err := r.acquirePages(ctx, pr, write); err != nil {
			return Pin{}, err
		}
	}
	how := pinnedHere
	if write {
		how |= pinnedWrite
	}
	return newPin(r, off, n, how), nil
}

// pinnedOpen unpins pages that have just been pinned if the region is closing: Close
// says so and then looks for pins.
func (r *Region) pinnedOpen(pr pageRange) error {
	if !r.closing.Load() {
		return nil
	}
	r.unpin(pr, false)
	return ErrClosed
}

// acquirePages pins a range of pages, with write for writing.
func (r *Region) acquirePages(ctx context.Context, pr pageRange, write bool) error {
	if err := r.pinPages(ctx, pr, write); err != nil {
		return err
	}
	if write {
		r.makeWritable(pr)
	}
	return nil
}

// pinPages pins a range of pages. store: they are about to be stored to, so
// those that are absent are born dirty if they are of one frame.
func (r *Region) pinPages(ctx context.Context, pr pageRange, store bool) error {
	if r.pinHits(pr) {
		return r.pinnedOpen(pr)
	}
	op, err := r.wantPinned(ctx, pr)
	if err != nil {
		return err
	}
	op.store = store && r.fpp == 1
	if err := r.p.begin(op); err != nil {
		return err
	}
	return op.wait(ctx)
}

// wantPinned is an op, to be begun, that pins a range of pages.
func (r *Region) wantPinned(ctx context.Context, pr pageRange) (*waitOp, error) {
	if !r.enter() {
		return nil, ErrClosed
	}
	if err := ended(ctx); err != nil {
		r.leave()
		return nil, err
	}
	op := newOp(r)
	op.pin = true
	op.alone = ctx.Done() == nil
	op.one[0] = pr
	op.ranges = op.one[:]
	return op, nil
}

// AcquireV acquires all ranges or none, with one submission of reads, and puts
// pin i of range i into pins, which must be as long as rs. A page that is in
// several ranges is pinned once for each. Errors as Acquire.
func (r *Region) AcquireV(ctx context.Context, rs []Range, pins []Pin) error {
	if len(pins) != len(rs) {
		return fmt.Errorf("pager: AcquireV: %d ranges, but room for %d pins", len(rs), len(pins))
	}
	for _, g := range rs {
		if err := r.checkRange("acquire", g.Off, g.Len); err != nil {
			return err
		}
	}
	if !r.enter() {
		return ErrClosed
	}
	hits := 0
	for ; hits < len(rs); hits++ {
		if g := rs[hits]; g.Len != 0 && !r.pinHits(r.pageRange(g.Off, g.Len)) {
			break
		}
	}
	if hits == len(rs) {
		r.leave()
		r.pinEach(rs, pins, nil)
		return nil
	}
	for _, g := range rs[:hits] {
		if g.Len != 0 {
			r.unpin(r.pageRange(g.Off, g.Len), false)
		}
	}
	if err := ended(ctx); err != nil {
		r.leave()
		return err
	}
	op := newOp(r)
	op.pin, op.borrows = true, r.lends
	op.ranges = op.rangeRoom
	for _, g := range rs {
		if g.Len != 0 {
			op.ranges = append(op.ranges, r.pageRange(g.Off, g.Len))
		}
	}
	op.rangeRoom = op.ranges
	if err := r.p.begin(op); err != nil {
		return err
	}
	if err := op.hear(ctx); err != nil {
		return err
	}
	if op.err == nil {
		r.pinEach(rs, pins, op.ws[:op.nw])
	} else {
		op.putLoans()
	}
	return op.end()
}

// TryAcquire is Acquire that never waits: false means that the range was not
// resident (its reads are started, as room allows) or that nothing more can be
// pinned now.
func (r *Region) TryAcquire(off, n int64) (Pin, bool) {
	if r.checkRange("acquire", off, n) != nil || r.closing.Load() {
		return Pin{}, false
	}
	if n == 0 {
		return Pin{}, true
	}
	pr := r.pageRange(off, n)
	if r.pinHits(pr) {
		if r.pinnedOpen(pr) != nil {
			return Pin{}, false
		}
		return newPin(r, off, n, pinnedHere), true
	}
	if r.enter() {
		r.readAhead(pr, 0)
		r.leave()
	}
	return Pin{}, false
}

// begin reserves what the op needs and starts it, or puts it in line. The
// caller has entered the region. On an error the op is gone and the region
// left.
func (p *Pager) begin(op *waitOp) error {
	r := op.r
	op.need = int64(op.pages()) * r.fpp
	if op.credits() > p.pinnable.Load() || op.need > p.budget.Load() || r.maxFrames > 0 && op.need > r.maxFrames {
		err := p.tooMuch(op)
		op.free()
		r.leave()
		return err
	}
	op.left.Store(1)
	if p.lineLen[op.line()].Load() == 0 && p.reserveFor(op) == roomMade {
		op.saved = 0
		p.start(op)
	} else {
		op.alone = false // somebody else starts it, and it waits meanwhile
		p.enqueue(op)
	}
	return nil
}
