//go:build linux

package pager

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/prefetch"
)

// ReadAt copies len(b) bytes from off, as io.ReaderAt: fewer only together
// with an error, io.EOF at the end of the region. A hit is a copy and a look
// at the page's word; a miss parks the calling goroutine. b may be any memory,
// also a region's.
//
// Errors: io.EOF; *FaultError with the errno of a page that cannot be read, or for
// a negative off; ErrClosed.
func (r *Region) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, r.checkRange("read", off, int64(len(b)))
	}
	if r.closing.Load() {
		return 0, ErrClosed
	}
	length := r.Len()
	if off >= length {
		return 0, io.EOF
	}
	var eof error
	if int64(len(b)) > length-off {
		b, eof = b[:length-off], io.EOF
	}
	done := 0
	for done < len(b) {
		page := uint64(off) >> r.shift
		n := min(len(b)-done, int(int64(page+1)<<r.shift-off))
		if err := r.readPage(b[done:done+n], off, page, uint64(off+int64(len(b)-done)-1)>>r.shift); err != nil {
			return done, err
		}
		done += n
		off += int64(n)
	}
	if r.closing.Load() {
		return 0, ErrClosed
	}
	return done, eof
}

// look is desc.look for ordinary code: one call instead of four.
func (r *Region) look(page uint64) (*word, word) {
	e := (*uint64)(unsafe.Add(r.dir, page>>leafShift*8))
	if v := atomic.LoadUint64(e); v != 0 {
		pw := leafWord(uint32(v)&dirLeafMask, page)
		w := atomic.LoadUint64(pw)
		if (atomic.LoadUint64(e)^v)&^dirCountMask == 0 {
			return pw, w
		}
	}
	return r.d.look(page)
}

// readPage copies from within one page. last is the last page the caller
// wants.
func (r *Region) readPage(b []byte, off int64, page, last uint64) error {
	if sp.fd < 0 {
		return r.readPlain(b, off, page, last)
	}
	if !sp.trap {
		return r.readPinned(b, off, page)
	}
	for tries := 0; ; tries++ {
		if r.closing.Load() {
			return ErrClosed
		}
		if pw, w := r.look(page); pw != nil && present(w) {
			if w&(flagTouched|flagPrefetched) != flagTouched {
				if w&flagPrefetched != 0 {
					if r.copyFirst(b, int(off-int64(page<<r.shift)), pw, w, page) {
						return nil
					}
				} else if tries == 0 {
					bare.Cas64(pw, w, w|flagTouched)
				}
			}
			left, addr := coro.CopyOut(unsafe.Pointer(unsafe.SliceData(b)), unsafe.Add(r.base, off), uintptr(len(b)))
			if left == 0 {
				return nil
			}
			if (addr-r.d.base)>>r.shift != uintptr(page) && regionAt(addr) != nil {
				// b itself is memory of a region, and its page is missing.
				if tries > 1 {
					return r.readVia(b, off, page, last)
				}
				if err := touchWrite(addr, int(left)); err != nil {
					return err
				}
				continue
			}
		} else if pw != nil && isMarker(w) && r.copyUnmapped(b, int(off-int64(page<<r.shift)), pw, w, page) {
			return nil
		}
		if tries > 1 {
			if regionAt(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) != nil {
				return r.readVia(b, off, page, last)
			}
			// The page is evicted again and again before we run: pin it, unless
			// others keep everything pinned.
			if err := r.readPinned(b, off, page); !errors.Is(err, ErrBudget) {
				return err
			}
		}
		n, err := r.needInto(b, int(off-int64(page<<r.shift)), page, last)
		if err != nil || n == len(b) {
			return err
		}
	}
}

// readVia is readPage by way of a buffer, for a b that is memory of a region. In a
// small budget its pages, each of which needs a credit, and the one that is read
// can make each other leave for ever; so only one of them is needed at a time.
func (r *Region) readVia(b []byte, off int64, page, last uint64) error {
	buf := bufs.get(len(b))
	defer bufs.put(buf)
	if err := r.readPage(buf.mem[:len(b)], off, page, last); err != nil {
		return err
	}
	return copyAcross(b, buf.mem[:len(b)], touchWrite)
}

// copyAcross copies src to dst, one of which may be memory of a region: touch makes
// the page at addr ready where it is not, and is told how many bytes are left from
// there on.
func copyAcross(dst, src []byte, touch func(addr uintptr, left int) error) error {
	to, from, n := unsafe.Pointer(unsafe.SliceData(dst)), unsafe.Pointer(unsafe.SliceData(src)), uintptr(len(src))
	for {
		left, addr := coro.CopyOut(to, from, n)
		if left == 0 {
			return nil
		}
		if err := touch(addr, int(left)); err != nil {
			return err
		}
		to, from, n = unsafe.Add(to, n-left), unsafe.Add(from, n-left), left
	}
}

// touchRead is touchWrite for a page that is read.
func touchRead(addr uintptr, _ int) error {
	r := regionAt(addr)
	if r == nil {
		return ErrClosed
	}
	return r.needAddr(addr)
}

// readPinned copies from a page while it is pinned.
func (r *Region) readPinned(b []byte, off int64, page uint64) error {
	if !r.pinHit(page) && !r.pinUntouched(page) {
		pin, err := r.acquire(context.Background(), int64(page<<r.shift), min(int64(1)<<r.shift, r.Len()-int64(page<<r.shift)), false)
		if err != nil {
			return err
		}
		copy(b, pin.Bytes()[off-int64(page<<r.shift):])
		pin.Release()
		return nil
	}
	copy(b, unsafe.Slice((*byte)(unsafe.Add(r.base, off)), len(b)))
	r.unpin(pageRange{page, 1}, false)
	return nil
}

// readPlain is readPage where there is no userfaultfd and a region plain memory, in
// which no access faults. Like any read it must not need a credit, all of which may
// be with pins: a page that cannot be pinned is copied from, and if it has not left
// meanwhile that was the page.
func (r *Region) readPlain(b []byte, off int64, page, last uint64) error {
	for tries := 0; ; tries++ {
		if r.closing.Load() {
			return ErrClosed
		}
		if r.pinHit(page) {
			copy(b, unsafe.Slice((*byte)(unsafe.Add(r.base, off)), len(b)))
			r.unpin(pageRange{page, 1}, false)
			return nil
		}
		if r.copyUnpinned(b, off, page) {
			return nil
		}
		if tries > 2 { // it leaves again and again before we run
			if err := r.readPinned(b, off, page); !errors.Is(err, ErrBudget) {
				return err
			}
		}
		n, err := r.needInto(b, int(off-int64(page<<r.shift)), page, last)
		if err != nil || n == len(b) {
			return err
		}
	}
}

// copyUnpinned copies from within a page of plain memory. false: it was not there
// all the time.
func (r *Region) copyUnpinned(b []byte, off int64, page uint64) bool {
	pw, w := r.d.look(page)
	if pw == nil || !present(w) {
		return false
	}
	if w&flagPrefetched != 0 {
		r.copied(false)
		r.firstTouch(pw, w, page)
	}
	copy(b, unsafe.Slice((*byte)(unsafe.Add(r.base, off)), len(b)))
	for {
		v := atomic.LoadUint64(pw)
		if !present(v) || (v^w)&genMask != 0 { // generations are given out once
			return false
		}
		// A swap, so that what was copied has been read before.
		if atomic.CompareAndSwapUint64(pw, v, v) {
			return true
		}
	}
}

// needAddr is need for an address of the region.
func (r *Region) needAddr(addr uintptr) error {
	page := uint64(addr-r.d.base) >> r.shift
	return r.need(page)
}

// need waits until the page has been resident, without pinning it.
func (r *Region) need(page uint64) error {
	op, err := r.want(page, false)
	if err != nil {
		return err
	}
	return op.wait(context.Background())
}

// want begins an op for one page, which is not pinned.
func (r *Region) want(page uint64, loan bool) (*waitOp, error) {
	if !r.enter() {
		return nil, ErrClosed
	}
	op := newOp(r)
	op.one[0] = pageRange{page, 1}
	op.ranges = op.one[:]
	op.borrows = loan
	op.alone = true
	return op, r.p.begin(op)
}

// needRest starts the reads of the pages behind one that was missed, up to last,
// which are needed next. The policy is told of the first of them, as of those of
// an Acquire: one page in eight or more would not look like a scan.
func (r *Region) needRest(page, last uint64) {
	missed := page
	for missed < min(last, page+eventsMost-1) {
		if pw, w := r.d.look(missed + 1); pw != nil && w&stateMask != stMissing {
			break
		}
		missed++
	}
	r.readAhead(pageRange{page + 1, last - page}, min(r.p.budget.Load()/8, maxRun>>frameShift))
	for k := page + 1; k <= missed; k++ {
		r.observe(prefetch.Event{Kind: prefetch.Miss, Page: int64(k)}, false)
	}
	r.p.pumpNow()
}

// needInto is need for somebody who wants no more than to copy to b from skip on
// in the page, and the following ones up to last, whose reads are started. It
// copies from the buffer that the page was read to, if it can, and returns how
// much.
func (r *Region) needInto(b []byte, skip int, page, last uint64) (n int, err error) {
	op, err := r.want(page, true)
	if err != nil {
		return 0, err
	}
	if last > page && r.enter() {
		r.needRest(page, last)
		r.leave()
	}
	buf, off, err := op.waitLoan()
	if buf == nil {
		return 0, err
	}
	defer bufs.put(buf)
	if err != nil {
		return 0, err
	}
	// (b may be memory of a region, of which a page is missing.)
	left, _ := coro.CopyOut(unsafe.Pointer(unsafe.SliceData(b)), unsafe.Pointer(&buf.mem[off+skip]), uintptr(len(b)))
	return len(b) - int(left), nil
}
