//go:build linux

package pager

import (
	"context"
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// Pins of read buffers
//
// What is true of a ReadAt that misses (loan.go) and of one that comes to what was
// read ahead (shelf.go) is true of an Acquire in a region that is ReadOnly: what was
// read is in a buffer that the processor knows, and nobody can make the page differ
// from it. So the pin has the buffer, and the page, which is installed and pinned as
// ever, need not be touched: the first touch is most of what a miss costs under
// a hypervisor that keeps page tables of its own (BenchmarkCycle in uffd). Whoever
// acquires the page again, or reads it as memory of the region, touches it then.
//
// The pins of a pager have so many buffers at a time, and of its budget a small
// part; who comes when there are no more touches the page. So pins that are kept
// for long take nothing from others but that.
const (
	lentPinMost  = 256
	lentPinBytes = 4 << 20
	lentPinShare = 16 // and at most 1/lentPinShare of the budget
)

// lentPins are the buffers that pins have. A slot is its pin's from lend to end, and
// is changed by nobody meanwhile.
type lentPins struct {
	bytes atomic.Int64
	taken [lentPinMost / 64]atomic.Uint64 // a bit for each slot
	slot  [lentPinMost]struct {
		buf  *buffer
		page unsafe.Pointer
	}
}

// lend gives a holder's share of buf, in which the page is at off, to a pin; 0: there
// is no more to be had.
func (t *lentPins) lend(buf *buffer, off int, most int64) pinned {
	size := int64(len(buf.mem))
	if t.bytes.Add(size) <= most {
		for i := range t.taken {
			for v := t.taken[i].Load(); v != ^uint64(0); v = t.taken[i].Load() {
				bit := bits.TrailingZeros64(^v)
				if !t.taken[i].CompareAndSwap(v, v|1<<bit) {
					continue
				}
				n := i*64 + bit
				t.slot[n].buf, t.slot[n].page = buf, unsafe.Pointer(&buf.mem[off])
				return ^pinned(n)
			}
		}
	}
	t.bytes.Add(-size)
	return 0
}

// end takes the buffer back.
func (t *lentPins) end(how pinned) {
	n := ^how
	buf := t.slot[n].buf
	t.slot[n].buf, t.slot[n].page = nil, nil
	if bit := uint64(1) << (n % 64); t.taken[n/64].And(^bit)&bit == 0 || buf == nil {
		panic("pager: Release of a page that is not pinned")
	}
	t.bytes.Add(-int64(len(buf.mem)))
	bufs.put(buf)
}

// lent is Bytes of a pin that has a buffer, or is empty.
//
//go:noinline
func (p Pin) lent() []byte {
	if p.how == 0 {
		return nil
	}
	p.check.use()
	page := p.r.p.lent.slot[^p.how].page
	return unsafe.Slice((*byte)(unsafe.Add(page, p.off&(1<<p.r.shift-1))), p.n)
}

// acquireLent is acquire of bytes of one page in a region that lends, when it was no
// hit.
func (r *Region) acquireLent(ctx context.Context, off, n int64) (Pin, error) {
	buf, at, err := r.pinLent(ctx, uint64(off)>>r.shift)
	if err != nil {
		bufs.put(buf)
		return Pin{}, err
	}
	return newPin(r, off, n, r.p.lendPin(buf, at)), nil
}

// lendPin is how a pin is held that may have buf, if there is one, from at on; if it
// may not, buf is put back.
func (p *Pager) lendPin(buf *buffer, at int) pinned {
	if buf == nil {
		return pinnedHere
	}
	how := p.lent.lend(buf, at, min(lentPinBytes, p.budget.Load()<<frameShift/lentPinShare))
	if how == 0 {
		bufs.put(buf)
		return pinnedHere
	}
	return how
}

// pinEach makes the pins of an AcquireV whose op is complete. The waiters are in the
// order of the pages, and a page has one if it was missed.
func (op *waitOp) pinEach(rs []Range, pins []Pin) {
	r, j := op.r, 0
	for i, g := range rs {
		pins[i] = Pin{}
		if g.Len == 0 {
			continue
		}
		pr, how := r.pageRange(g.Off, g.Len), pinnedHere
		for k := range pr.n {
			if j == op.nw || op.ws[j].page != pr.first+k {
				continue
			}
			l := op.ws[j].loan
			if j++; pr.n == 1 {
				how = r.p.lendPin(l.buf, l.off)
			} else {
				bufs.put(l.buf)
			}
		}
		pins[i] = newPin(r, g.Off, g.Len, how)
	}
	op.putLoans(j)
}

// pinLent pins a page, and returns the buffer that it was read to, if it can be had.
// The caller puts that back, also when there is an error.
func (r *Region) pinLent(ctx context.Context, page uint64) (buf *buffer, at int, err error) {
	if pw, w := r.d.look(page); pw != nil && present(w) {
		if w&flagPrefetched != 0 {
			r.copied(true)
			buf, at = r.p.shelf.take(r, page, uint32(w>>32))
			r.firstTouch(pw, w, page)
		}
		if r.pinHit(page) {
			if r.closing.Load() {
				r.unpin(pageRange{page, 1}, false)
				return buf, at, ErrClosed
			}
			return buf, at, nil
		}
		bufs.put(buf)
	}
	op, err := r.wantPinned(ctx, pageRange{page, 1})
	if err != nil {
		return nil, 0, err
	}
	op.borrows = true
	if err := r.p.begin(op); err != nil {
		return nil, 0, err
	}
	return op.waitLoan(ctx)
}
