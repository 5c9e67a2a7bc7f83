//go:build linux

package pager

import (
	"bytes"
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
// part, from the moment at which the page is installed; who comes when there are no
// more touches the page. So pins that are kept for long, and an AcquireV of many
// pages, take nothing from others but that.
const (
	lentPinMost  = 256 // at most 1 << lentPinBits
	lentPinBits  = 8
	lentPinBytes = 4 << 20
	lentPinShare = 16 // and at most 1/lentPinShare of the budget
)

// lentPins are the buffers that pins have. A slot is its pin's from lend to end, and
// is changed by nobody meanwhile.
type lentPins struct {
	bytes atomic.Int64
	taken [lentPinMost / 64]atomic.Uint64 // a bit for each slot
	slot  [lentPinMost]lentSlot
}

// lentSlot has a number that is another for each of its pins, so that one that was
// released is found out.
type lentSlot struct {
	uses int
	buf  *buffer
	page unsafe.Pointer
}

// lend gives a share of buf, in which the page is at off, to a pin; 0: there is no more
// to be had. The caller has a share himself.
func (t *lentPins) lend(buf *buffer, off int, most int64) pinned {
	size := int64(len(buf.mem))
	if t.bytes.Add(size) <= most {
		for i := range t.taken {
			for v := t.taken[i].Load(); v != ^uint64(0); v = t.taken[i].Load() {
				bit := bits.TrailingZeros64(^v)
				if !t.taken[i].CompareAndSwap(v, v|1<<bit) {
					continue
				}
				buf.lent.Add(1)
				n := i*64 + bit
				s := &t.slot[n]
				s.buf, s.page = buf, unsafe.Pointer(&buf.mem[off])
				return ^pinned(s.uses<<lentPinBits | n)
			}
		}
	}
	t.bytes.Add(-size)
	return 0
}

// of is the slot of a pin that is held.
func (t *lentPins) of(how pinned) (s *lentSlot, n pinned) {
	n = ^how & (lentPinMost - 1)
	if s = &t.slot[n]; s.uses != int(^how>>lentPinBits) || s.buf == nil {
		panic("pager: a Pin is used after its Release")
	}
	return s, n
}

// end takes the buffer back.
func (t *lentPins) end(how pinned) {
	s, n := t.of(how)
	buf := s.buf
	s.buf, s.page = nil, nil
	s.uses++
	t.taken[n/64].And(^(uint64(1) << (n % 64)))
	t.bytes.Add(-int64(len(buf.mem)))
	bufs.put(buf)
}

// lendPin is how a pin is held that has a share of buf, in which the page is at off; 0:
// it may have none.
func (p *Pager) lendPin(buf *buffer, off int) pinned {
	return p.lent.lend(buf, off, min(lentPinBytes, p.budget.Load()<<frameShift/lentPinShare))
}

// lent is Bytes of a pin that has a buffer, or is empty.
//
//go:noinline
func (p Pin) lent() []byte {
	if p.how == 0 {
		return nil
	}
	p.check.use()
	s, _ := p.r.p.lent.of(p.how)
	return unsafe.Slice((*byte)(unsafe.Add(s.page, p.off&(1<<p.r.shift-1))), p.n)
}

// endLent is Release of such a pin, whose page is still pinned.
func (r *Region) endLent(p Pin) {
	if invariants {
		s, _ := r.p.lent.of(p.how)
		lent := unsafe.Add(s.page, p.off&(1<<r.shift-1))
		if !bytes.Equal(unsafe.Slice((*byte)(lent), p.n), unsafe.Slice((*byte)(unsafe.Add(r.base, p.off)), p.n)) {
			panic("pager: invariant: the buffer that a pin has is not what the page is")
		}
	}
	r.p.lent.end(p.how)
}

// acquireLent is acquire of bytes of one page in a region that lends, when it was no
// hit.
func (r *Region) acquireLent(ctx context.Context, off, n int64) (Pin, error) {
	how, err := r.pinLent(ctx, uint64(off)>>r.shift)
	if err != nil {
		return Pin{}, err
	}
	if how == 0 {
		how = pinnedHere
	}
	return newPin(r, off, n, how), nil
}

// pinLent pins a page, and returns how a pin of it has the buffer that it was read to; 0:
// that cannot be had.
func (r *Region) pinLent(ctx context.Context, page uint64) (pinned, error) {
	for {
		pw, w := r.d.look(page)
		if pw == nil || !present(w) {
			break
		}
		if w&flagPrefetched == 0 {
			if !r.pinHit(page) {
				break
			}
			return 0, r.pinnedOpen(pageRange{page, 1})
		}
		r.copied(true)
		buf, off := r.p.shelf.take(r, page, uint32(w>>32))
		if !r.firstTouch(pw, w, page) || !r.pinHit(page) {
			bufs.put(buf)
			continue
		}
		err := r.pinnedOpen(pageRange{page, 1})
		how := pinned(0)
		// (It may have left, and come again, before it was pinned.)
		if _, v := r.d.look(page); buf != nil && err == nil && (v^w)&genMask == 0 {
			how = r.p.lendPin(buf, off)
		}
		bufs.put(buf)
		return how, err
	}
	op, err := r.wantPinned(ctx, pageRange{page, 1})
	if err != nil {
		return 0, err
	}
	op.borrows = true
	if err := r.p.begin(op); err != nil {
		return 0, err
	}
	if err := op.hear(ctx); err != nil {
		return 0, err
	}
	how := op.w0[0].loan.pin
	if op.err != nil {
		op.putLoans()
		how = 0
	}
	return how, op.end()
}

// pinEach makes the pins of an AcquireV. waiters are those of its op, which is
// complete, in the order of the pages: a page has one if it was missed.
func (r *Region) pinEach(rs []Range, pins []Pin, waiters []waiter) {
	for i, g := range rs {
		pins[i] = Pin{}
		if g.Len == 0 {
			continue
		}
		pr, how := r.pageRange(g.Off, g.Len), pinnedHere
		for k := range pr.n {
			if len(waiters) == 0 || waiters[0].page != pr.first+k {
				continue
			}
			if lent := waiters[0].loan.pin; lent != 0 {
				how = lent
			}
			waiters = waiters[1:]
		}
		pins[i] = newPin(r, g.Off, g.Len, how)
	}
}
