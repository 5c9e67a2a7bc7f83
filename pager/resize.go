//go:build linux

package pager

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
)

// Resize changes the size, within RegionOptions.MaxSize. Slices taken before
// stay valid for what they cover; touches past the new end fault. New bytes
// read as zeros and cost no I/O until written. Pages past a smaller end are
// dropped, written or not; it waits for pins on them (and for ctx). That of an Atomic
// region is part of the next Commit.
//
// Errors: ErrReadOnly; a size below 0 or above MaxSize; *FaultError of a store that
// cannot be cut or grown (a device: errors.ErrUnsupported); ctx.Err; ErrClosed.
func (r *Region) Resize(ctx context.Context, size int64) error {
	if err := r.writableErr(); err != nil {
		return err
	}
	if limit := max(r.opt.MaxSize, r.mapSize); size < 0 || size > limit {
		return fmt.Errorf("pager: Resize to %d: %w: MaxSize is %d", size, errRange, limit)
	}
	in, err := r.pass(ctx)
	if err != nil {
		return err
	}
	defer r.passed(in)
	if !r.enter() {
		return ErrClosed
	}
	defer r.leave()
	r.write.resizing.Lock()
	defer r.write.resizing.Unlock()
	old := r.Len()
	inPlace := !r.opt.Private && r.atomic == nil // the store is cut at once
	if a := r.atomic; a != nil && size != old {
		if err := a.resizable(size); err != nil {
			return err
		}
	}
	if size >= old {
		if inPlace {
			// No write of the page that contains the old end may be under way:
			// the store cuts it there.
			if err := r.quietPage(ctx, uint64(old)>>r.shift); err != nil {
				return err
			}
			defer r.unquiet()
			if err := r.store.Truncate(size); err != nil {
				return r.fault("resize", uint64(old)>>r.shift, err)
			}
			atomic.StoreUint32(&r.d.unflushed, 1)
		}
		atomic.StoreUint64(&r.d.length, uint64(size))
		return nil
	}
	// Shrinking. What remains of the last page must read as zeros when the
	// region grows again; then new faults are refused, then pages dropped.
	tail := (size + 1<<r.shift - 1) &^ (1<<r.shift - 1)
	atomic.StoreUint64(&r.d.length, uint64(size))
	first := uint64(tail) >> r.shift
	n := (uint64(old)+1<<r.shift-1)>>r.shift - min(first, (uint64(old)+1<<r.shift-1)>>r.shift)
	// Once pages are dropped there is no way back: wait for pins before.
	if err := r.waitUnpinned(ctx, pageRange{first, n}); err != nil {
		atomic.StoreUint64(&r.d.length, uint64(old))
		return err
	}
	if tail > size {
		if err := r.zeroPast(uint64(size)>>r.shift, size, tail); err != nil {
			atomic.StoreUint64(&r.d.length, uint64(old))
			return err
		}
	}
	if err := r.dropPages(context.Background(), pageRange{first, n}); err != nil {
		return err
	}
	if r.atomic != nil {
		r.atomic.cutOff(size, first)
		return nil
	}
	if err := r.quietPage(context.Background(), uint64(size)>>r.shift); err != nil {
		return err
	}
	defer r.unquiet()
	if stored := bare.Load64(&r.d.stored); stored > uint64(size) {
		bare.Store64(&r.d.stored, uint64(size))
	}
	r.unplace(first, n)
	if inPlace {
		if err := r.store.Truncate(size); err != nil {
			return r.fault("resize", uint64(size)>>r.shift, err)
		}
		atomic.StoreUint32(&r.d.unflushed, 1)
	}
	return nil
}

// quietPage keeps a page from being written to the store, and waits until a
// write under way has ended. It lasts until unquiet.
func (r *Region) quietPage(ctx context.Context, page uint64) error {
	bare.Store64(&r.d.holdFirst, page)
	bare.Store64(&r.d.holdEnd, page+1)
	for turn := 0; ; turn++ {
		pw, w := r.d.look(page)
		if s := w & stateMask; pw == nil || !unclean(w) || s == stDirty {
			return nil
		}
		if err := ctx.Err(); err != nil {
			r.unquiet()
			return err
		}
		r.p.reapSome(64)
		pause(turn)
	}
}

// unquiet lets held pages be written again, and starts what waited for it.
func (r *Region) unquiet() {
	first, end := bare.Load64(&r.d.holdFirst), bare.Load64(&r.d.holdEnd)
	bare.Store64(&r.d.holdEnd, 0)
	var list []dirtyPage
	for page := first; page < end; page++ {
		if pw, w := r.d.look(page); pw != nil && w&stateMask == stDirty {
			list = append(list, dirtyPage{r.d, page})
		}
	}
	r.p.writeBack(list, writeSync)
}

// waitUnpinned waits until no page of pr is pinned.
func (r *Region) waitUnpinned(ctx context.Context, pr pageRange) error {
	for turn := 0; ; turn++ {
		pinned := false
		r.eachIn(pr, func(_ uint64, w word) { pinned = pinned || w&pinMask != 0 })
		if !pinned {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		r.p.dropHolds(0)
		pause(turn)
	}
}

// pause waits a little in ordinary code, longer as turns go by.
func pause(turn int) {
	if turn < 100 {
		runtime.Gosched()
		return
	}
	time.Sleep(100 * time.Microsecond)
}

// dropPages makes all pages of pr Missing, whatever is in them. It waits for
// reads and writes under way and for pins; new claims are the caller's to keep
// out.
func (r *Region) dropPages(ctx context.Context, pr pageRange) error {
	p := r.p
	out := r.evictor(r.pageWritten) // whoever waits for its write waits in vain
	for turn := 0; ; turn++ {
		p.giveUpMarkers(r, math.MaxInt64)
		p.unreserve(r.dropUnmapped(pr))
		left, pinned := 0, false
		r.eachIn(pr, func(page uint64, w word) {
			left++
			if w&pinMask != 0 {
				pinned = true
				return
			}
			if w&stateMask == stDirty {
				r.forceClean(page)
				r.pageWritten(page) // whoever waits for its write waits in vain
				_, w = r.d.look(page)
			}
			if w&stateMask == stFailed {
				p.settleFailed(r, page)
			}
			out.add(page, w)
		})
		out.flush()
		if left == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if pinned {
			p.dropHolds(0) // no caller's pin: one that ends when it is wanted
		}
		p.reapSome(64)
		pause(turn)
	}
}

// forceClean makes a Dirty page clean without writing it: its contents are not
// wanted any more.
func (r *Region) forceClean(page uint64) {
	held := coro.Unstopped()
	free := dropDirty(r.d, page)
	coro.Stoppable(held)
	if free {
		r.p.giveCredits(r.fpp)
		r.p.cleaned()
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func dropDirty(d *desc, page uint64) bool {
	for {
		pw, w := d.look(page)
		if pw == nil || w&stateMask != stDirty || w&(flagWritePin|pinMask) != 0 {
			return false
		}
		if bare.Cas64(pw, w, w&^stateMask|stCopying) {
			protectRange(d.addr(page), d.pageSize(), true)
			d.clearDirty(page)
			old, _ := setState(pw, stCopying, stResident, flagRedirtied, 0)
			d.countClean()
			return old&pinMask == 0
		}
	}
}

// Discard makes [off, off+n) read as zeros and gives its space in the store
// back: it punches a hole into a file and zeroes out a device. It waits for
// I/O and for pins on whole pages of the range (and for ctx). What was written
// to the range before and not synced is gone. In a Private or Atomic region the
// range becomes pages of zeros, and the store keeps its space. off and n need no
// alignment.
//
// Errors: ErrReadOnly; *FaultError of the store, or of a range that is not within the
// region; ctx.Err; ErrClosed. What was discarded before the error stays so.
func (r *Region) Discard(ctx context.Context, off, n int64) error {
	if err := r.writableErr(); err != nil {
		return err
	}
	if err := r.checkRange("discard", off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	in, err := r.pass(ctx)
	if err != nil {
		return err
	}
	defer r.passed(in)
	if !r.enter() {
		return ErrClosed
	}
	defer r.leave()
	ps := int64(1) << r.shift
	lo := (off + ps - 1) &^ (ps - 1)
	hi := (off + n) &^ (ps - 1)
	if off+n == r.Len() {
		hi = (off + n + ps - 1) &^ (ps - 1) // the last page ends with the region
	}
	if lo >= hi {
		return r.zero(ctx, off, n)
	}
	if err := r.zero(ctx, off, lo-off); err != nil {
		return err
	}
	if off+n > hi {
		if err := r.zero(ctx, hi, off+n-hi); err != nil {
			return err
		}
	}
	const chunk = 512
	for first, end := uint64(lo)>>r.shift, uint64(hi)>>r.shift; first < end; {
		k := min(chunk, end-first)
		if err := r.discardPages(ctx, pageRange{first, k}); err != nil {
			return err
		}
		first += k
	}
	return nil
}

// zero writes zeros over part of a page.
func (r *Region) zero(ctx context.Context, off, n int64) error {
	if n <= 0 {
		return nil
	}
	pin, err := r.acquire(ctx, off, n, true)
	if err != nil {
		return err
	}
	bare.Zero(unsafe.Add(r.base, off), uintptr(n))
	pin.Release()
	return nil
}

// discardPages discards whole pages: drop what is in memory, punch the store,
// and drop again what was read before the punch. As long as that takes nobody
// writes pages of the range to the store, so nothing old can come back.
func (r *Region) discardPages(ctx context.Context, pr pageRange) (err error) {
	ps := int64(1) << r.shift
	off, n := int64(pr.first<<r.shift), int64(pr.n<<r.shift)
	n = min(n, r.Len()-off)
	if r.opt.Private || r.atomic != nil {
		// Holes of one's own are pages of zeros.
		for at := off; at < off+n; at += ps {
			if err := r.zero(ctx, at, min(ps, off+n-at)); err != nil {
				return err
			}
		}
		return nil
	}
	r.write.resizing.Lock()
	defer r.write.resizing.Unlock()
	if err := r.waitUnpinned(ctx, pr); err != nil {
		return err
	}
	bare.Store64(&r.d.holdFirst, pr.first)
	bare.Store64(&r.d.holdEnd, pr.first+pr.n)
	defer r.unquiet()
	if err := r.dropPages(ctx, pr); err != nil {
		return err
	}
	if err := r.store.Discard(off, n); err != nil {
		return r.fault("discard", pr.first, err)
	}
	atomic.StoreUint32(&r.d.unflushed, 1) // a hole must be flushed like a write
	return r.dropPages(ctx, pr)
}

// held: pages that a Discard is about to drop are not written.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) held(page uint64) bool {
	return page < bare.Load64(&d.holdEnd) && page >= bare.Load64(&d.holdFirst)
}
