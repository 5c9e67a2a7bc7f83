//go:build linux

package pager

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Writing to pages
//
// A clean page is write-protected. The first store to it is a fault that the
// handler resolves by itself (unlockPage); explicit writers do the same
// without the fault. Either way the page is Dirty before it is writable, and
// holds one credit per frame until it has been written to the store.

// writeState is a region's side of writing.
type writeState struct {
	mu       sync.Mutex
	pins     map[uint64]int       // write pins per page
	waiters  map[uint64][]*SyncOp // who waits for the write of a page that is in flight
	errs     []error              // failed writes nobody has been told of
	flushErr error                // sticky: a flush failed
	flushes  flushes              // of the store that a Sync or Commit flushes; its mu is a leaf
	back     background           // the housekeeper's
	ask      asking               // BeforeWrite
	retryAt  time.Time            // after a failed write: not before
	backoff  time.Duration

	inflight    atomic.Int64 // page writes under way
	unprotected time.Time    // since when the kernel has not protected what Syncs wait for; zero: it does
	resizing    sync.Mutex   // one Resize or Discard at a time

	side store.Store // see where.go; nil: none
}

// writableErr is nil if the region may be written to.
func (r *Region) writableErr() error {
	if r.opt.ReadOnly {
		return errReadOnly
	}
	return nil
}

// AcquireWrite is Acquire for memory that will be written to, also by the
// kernel, C code or DMA (read(2) into it, O_DIRECT reads): the pages are dirty
// and writable without a fault until Release. They may be written to the store
// meanwhile, but never count as clean, so nothing that lands in them before
// Release is lost. Errors as Acquire, and ErrReadOnly.
func (r *Region) AcquireWrite(ctx context.Context, off, n int64) (Pin, error) {
	if err := r.writableErr(); err != nil {
		return Pin{}, err
	}
	in, err := r.pass(ctx)
	if err != nil {
		return Pin{}, err
	}
	pin, err := r.acquire(ctx, off, n, true)
	if err != nil || pin.n == 0 {
		r.passed(in)
		return pin, err
	}
	pin.how |= pinned(in)
	return pin, nil
}

// makeWritable turns pins into write pins. Pinned pages have their credits, so
// nothing is waited for.
func (r *Region) makeWritable(pr pageRange) {
	for page := pr.first; page < pr.first+pr.n; page++ {
		r.addWritePin(page)
		for turn := 0; ; turn++ {
			pw, w := r.d.look(page)
			if s := w & stateMask; s == stDirty || s == stWriting && w&flagRedirtied != 0 {
				break
			} else if s == stUnlocking || s == stCopying {
				relaxGo(turn)
				continue
			}
			if r.unlockPage(pw, w, page, 0) {
				break
			}
			relaxGo(turn) // a commit may be taking its cut
		}
	}
}

// addWritePin marks a pinned page as one that may be written to at any time.
// The flag is in the word before the page is made dirty: a writeback that does
// not see it has begun earlier, and ensureDirty finds its state.
func (r *Region) addWritePin(page uint64) {
	ws := &r.write
	ws.mu.Lock()
	if ws.pins == nil {
		ws.pins = map[uint64]int{}
	}
	ws.pins[page]++
	pw, _ := r.d.look(page)
	bare.Or64(pw, flagWritePin)
	ws.mu.Unlock()
}

func (r *Region) dropWritePin(page uint64) {
	ws := &r.write
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.pins[page]--; ws.pins[page] > 0 {
		return
	}
	delete(ws.pins, page)
	pw, _ := r.d.look(page)
	w := bare.And64(pw, ^flagWritePin)
	if s := w & stateMask; s == stDirty || s == stWriting {
		// Its last stores may be later than the last copy made of it.
		r.d.markDirty(page)
	}
}

// errTable: no leaf for one more group of pages.
var errTable = fmt.Errorf("%w: the page table is full", ErrBudget)

// errAbsent: the page is not there (any more).
var errAbsent = fmt.Errorf("pager: page is not resident")

// unlockPage is unlockPage for goroutines, without force.
func (r *Region) unlockPage(pw *word, w word, page uint64, floor int64) bool {
	held := coro.Unstopped()
	ok := unlockPage(r.d, pw, w, page, floor, false)
	coro.Stoppable(held)
	return ok
}

// ensureDirty makes a page that is present Dirty and writable, waiting in line
// for room among the dirty pages if need be.
func (r *Region) ensureDirty(page uint64) error {
	for {
		if ok, err := r.tryDirty(page); ok || err != nil {
			return err
		}
		if err := r.p.waitCredits(r, r.fpp); err != nil {
			return err
		}
		if err := r.dirtyWith(page); err != errHeld {
			return err
		}
	}
}

// errHeld: a commit is taking its cut.
var errHeld = fmt.Errorf("pager: stores are held")

// dirtyWith makes a present page Dirty with credits that the caller has, and
// gives them back if they are not needed.
func (r *Region) dirtyWith(page uint64) error {
	d := r.d
	for turn := 0; ; turn++ {
		pw, w := d.look(page)
		switch s := w & stateMask; {
		case pw != nil && (s == stEvicting || s == stUnlocking || s == stCopying):
			relaxGo(turn)
			continue
		case pw == nil || !present(w):
			r.p.giveCredits(r.fpp)
			return errAbsent
		case s == stDirty || s == stWriting && w&flagRedirtied != 0:
			r.p.giveCredits(r.fpp) // it has some already
			return nil
		}
		needs := !hasCredit(w)
		held := coro.Unstopped()
		got := unlock(d, pw, w, page, false)
		coro.Stoppable(held)
		switch {
		case got == unlockChanged:
			continue
		case got == unlockHeld && needs: // and has given them back
			return errHeld
		case got == unlockDone && needs: // the page has them now
			return nil
		}
		r.p.giveCredits(r.fpp)
		if got == unlockHeld {
			return errHeld
		}
		return nil
	}
}

// tryDirty makes a present page Dirty if there is a credit for it.
func (r *Region) tryDirty(page uint64) (ok bool, err error) {
	d := r.d
	for turn := 0; ; turn++ {
		pw, w := d.look(page)
		if pw == nil || !present(w) {
			if pw != nil && w&stateMask == stEvicting {
				relaxGo(turn)
				continue
			}
			return false, errAbsent
		}
		switch w & stateMask {
		case stDirty:
			return true, nil
		case stUnlocking, stCopying:
			relaxGo(turn)
			continue
		}
		if r.unlockPage(pw, w, page, 0) {
			return true, nil
		}
		if bare.Load64(pw) != w {
			continue
		}
		if r.p.lineLen[lineCredits].Load() != 0 {
			return false, nil // the others came first
		}
		// Credits may lie in the shards, or with clean pages.
		if r.p.credits.muster(r.fpp) && turn < 8 {
			continue
		}
		return false, nil
	}
}

// WriteAt copies b to off, as io.WriterAt; it never grows the region: what
// does not fit is not written, and the error is io.ErrShortWrite. A page that
// is written whole is not read first. When it returns, every way of reading
// sees the data; Sync makes it durable. It waits for pages that are written in part,
// for room, and while a Commit takes its cut.
//
// Errors: io.ErrShortWrite; *FaultError with the errno of a page that cannot be read,
// or for a negative off; ErrReadOnly; ErrBudget as for Acquire; ErrClosed. The bytes
// before the first that could not be written are written.
func (r *Region) WriteAt(b []byte, off int64) (int, error) {
	if err := r.writableErr(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, r.checkRange("write", off, int64(len(b)))
	}
	in, err := r.pass(context.Background())
	if err != nil {
		return 0, err
	}
	defer r.passed(in)
	if !r.enter() {
		return 0, ErrClosed
	}
	defer r.leave()
	length := r.Len()
	var short error
	if off > length || int64(len(b)) > length-off {
		b, short = b[:max(0, min(int64(len(b)), length-off))], io.ErrShortWrite
	}
	done := 0
	for done < len(b) {
		page := uint64(off) >> r.shift
		lo, hi := int64(page<<r.shift), min(int64((page+1)<<r.shift), length)
		n := min(len(b)-done, int(hi-off))
		var err error
		if off == lo && n == int(hi-lo) {
			err = r.writeWhole(b[done:done+n], page, n == len(b))
		} else {
			err = r.writePart(b[done:done+n], off, page)
		}
		if err != nil {
			return done, err
		}
		done += n
		off += int64(n)
	}
	return done, short
}

// writePart writes within a page, which is read first if it is absent.
func (r *Region) writePart(b []byte, off int64, page uint64) error {
	src := unsafe.Pointer(unsafe.SliceData(b))
	for tries := 0; ; tries++ {
		if tries > 2 {
			// The page leaves again and again before we get to it.
			return r.writeHeld(b, off)
		}
		pw, w := r.d.look(page)
		switch {
		case pw == nil || !present(w):
			if regionAt(uintptr(src)) == nil {
				return r.writeAbsent(b, off, page)
			}
			// Nothing is pinned while b, which is memory of a region, is waited for.
			if err := r.need(page); err != nil {
				return err
			}
			continue
		case w&stateMask != stDirty && !(w&stateMask == stWriting && w&flagRedirtied != 0):
			if err := r.ensureDirty(page); err == errAbsent {
				continue
			} else if err != nil {
				return err
			}
		}
		if w&flagPrefetched != 0 {
			r.firstTouch(pw, w, page)
		}
		if !sp.trap || !sp.wp {
			// Without protection a store that comes while the page is being
			// copied out would be noticed by nobody: pinned it is never clean.
			return r.writeHeld(b, off)
		}
		left, addr := coro.CopyOut(unsafe.Add(r.base, off), src, uintptr(len(b)))
		if left == 0 {
			// A Resize that made the region shorter meanwhile has zeroed what is
			// behind its end, perhaps before we wrote there.
			if l := r.Len(); off+int64(len(b)) > l && page == uint64(l)>>r.shift {
				return r.zeroPast(page, max(off, l), off+int64(len(b)))
			}
			return nil
		}
		if o := regionAt(addr); o != nil && (addr < uintptr(r.base)+uintptr(off) || addr >= uintptr(r.base)+uintptr(off)+uintptr(len(b))) {
			// b is memory of a region and absent.
			if err := o.needAddr(addr); err != nil {
				return err
			}
		}
	}
}

// writeAbsent is writePart for a page that is not there, and a b that is no memory
// of a region.
func (r *Region) writeAbsent(b []byte, off int64, page uint64) error {
	if !sp.trap || !sp.wp {
		return r.writePinned(b, off) // as writePart would once it is there
	}
	pr := pageRange{page, 1}
	if err := r.pinPages(context.Background(), pr, true); err != nil {
		return err
	}
	err := r.writePart(b, off, page)
	r.unpin(pr, false)
	return err
}

// writeHeld is writePinned for a b that may be memory of a region.
func (r *Region) writeHeld(b []byte, off int64) error {
	if regionAt(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) == nil {
		return r.writePinned(b, off)
	}
	buf := bufs.get(1 << r.shift)
	defer bufs.put(buf)
	if err := r.fillBuffer(buf, b); err != nil {
		return err
	}
	return r.writePinned(buf.mem[:len(b)], off)
}

// zeroPast zeros [lo, hi) of a page that may lie behind the end of the region.
func (r *Region) zeroPast(page uint64, lo, hi int64) error {
	pr := pageRange{page, 1}
	if err := r.acquirePages(context.Background(), pr, true); err != nil {
		return err
	}
	bare.Zero(unsafe.Add(r.base, lo), uintptr(hi-lo))
	r.unpin(pr, true)
	return nil
}

func (r *Region) writePinned(b []byte, off int64) error {
	pin, err := r.acquire(context.Background(), off, int64(len(b)), true)
	if err != nil {
		return err
	}
	copy(pin.Bytes(), b)
	pin.Release()
	return nil
}

// Update runs fn over the region's memory, which fn may change, exactly once;
// faults, errors and Close are as for View. It is a bracket, not a
// transaction: nothing keeps others from seeing changes half done, and an
// error, be it fn's or of a page, does not take them back: a Commit of an Atomic
// region has all stores that fn has made, or none.
//
// A store waits for room as long as nothing can be written, on a full disk
// for instance (see EventListener.WriteError and Wedged), but no longer than
// StallLimit once the region is being closed. ctx does not end that.
func (r *Region) Update(ctx context.Context, fn func(mem []byte) error) error {
	if err := r.writableErr(); err != nil {
		return err
	}
	in, err := r.pass(ctx)
	if err != nil {
		return err
	}
	defer r.passed(in)
	return r.bracket(ctx, fn, true)
}

// startParkedWrite: a goroutine is parked at a store to a clean page because
// there was no credit. The region has been entered.
func (r *Region) startParkedWrite(pk coro.Parked, page uint64, stuck bool, begun time.Time) {
	ok, err := r.tryDirty(page)
	if !ok && err == nil && stuck {
		// One store may need two pages dirty at once, and cleaning one for the
		// other would go on for ever: two pages beyond the limit are for that.
		pw, w := r.d.look(page)
		ok = pw != nil && (w&stateMask == stResident || w&stateMask == stWriting) && r.unlockPage(pw, w, page, -2*r.fpp)
	}
	if ok || err == errAbsent {
		r.leave()
		pk.Resume(0)
		return
	}
	op := r.newCreditOp(r.fpp)
	op.isPark, op.parked, op.begun = true, pk, begun
	op.one[0] = pageRange{page, 1}
	op.ranges = op.one[:]
	op.left.Store(1)
	r.p.enqueue(op)
}

// endParkedWrite ends the wait of a parked store: with credits, or with an
// error. The op has been freed.
func (r *Region) endParkedWrite(pk coro.Parked, page uint64, begun time.Time, err error) {
	errno := uintptr(0)
	if err != nil {
		errno = r.noteFault(err)
	} else if r.dirtyWith(page) == errHeld {
		r.startParkedWrite(pk, page, false, begun)
		return
	} // Whatever else became of the page, the store goes on, or faults anew.
	r.leave()
	pk.Resume(errno)
}
