//go:build linux

package pager

import (
	"errors"
	"unsafe"

	"github.com/uffdpager/uffdpager/pager/evict"
)

// writeWhole writes all of a page (of the part within the region, for the last
// one). An absent page is born dirty, from a private buffer, without a read.
func (r *Region) writeWhole(b []byte, page uint64, alone bool) error {
	var seat int32
	if alone && r.p.posts(r, page) {
		seat = r.p.posting.take(r.muchDirty())
	}
	posted, err := r.writeWholeAs(b, page, alone, seat)
	if seat != 0 && !posted {
		r.p.posting.give(seat)
	}
	return err
}

// writeWholeAs is writeWhole with a seat for the page if it is to be posted, which it
// may have been then. Else seat is 0.
func (r *Region) writeWholeAs(b []byte, page uint64, alone bool, seat int32) (posted bool, err error) {
	p, d := r.p, r.d
	extra, hot := word(0), false
	for tries := 0; ; tries++ {
		pw, w := d.look(page)
		if pw != nil && w&stateMask != stMissing {
			if p.replaced(r, page, w) {
				// One that was written to before, and is again, is better mapped.
				extra, hot = flagTouched, w&flagTouched != 0 && !r.muchDirty()
				continue
			}
			err := r.writePart(b, int64(page<<r.shift), page)
			if err != nil && tries < 3 && r.notRead(page, err) {
				continue // who needs nothing of what was there is not concerned
			}
			return false, err
		}
		// A frame and a credit for a dirty page, together.
		if err := p.waitFrames(r, r.fpp, true); err != nil {
			return false, err
		}
		buf := bufs.get(1 << r.shift)
		if err := r.fillBuffer(buf, b); err != nil {
			bufs.put(buf)
			p.giveCredits(r.fpp)
			p.unreserve(r.fpp)
			return false, err
		}
		pw, gen, got := d.claim(page, extra)
		if got != claimed {
			bufs.put(buf)
			p.giveCredits(r.fpp)
			p.unreserve(r.fpp)
			if got == claimTaken {
				continue
			}
			return false, errTable
		}
		if d.past(page) {
			bufs.put(buf)
			p.giveCredits(r.fpp)
			err := r.fault("write", page, errRange)
			p.failPage(r, page, gen, stLoading, err)
			return false, err
		}
		if seat != 0 && !hot && p.post(r, pw, gen, page, buf, seat) {
			p.keepRoom()
			return true, nil
		}
		if r.posts && alone && r.copies.Load() < unmappedAfter {
			r.copies.Add(1)
		}
		old, errno, through := bornWhole(d, pw, gen, page, unsafe.Pointer(&buf.mem[0]), alone && p.writesThrough(r, page))
		if !through {
			bufs.put(buf)
		}
		if errno != 0 {
			p.giveCredits(r.fpp)
			if errno == errnoTakenOver {
				p.settle(r, page)
				continue
			}
			err := r.fault("map", page, errnoError(errno))
			p.failPage(r, page, gen, stLoading, err)
			return false, err
		}
		if old&pinMask != 0 {
			p.giveCredits(r.fpp) // whoever joined and pins it brought one
		}
		p.tellEvict(r, page, evict.Demand)
		if old&flagWaited != 0 {
			p.settle(r, page)
		}
		if through {
			p.writeThrough(r, page, buf)
		}
		p.keepRoom()
		return false, nil
	}
}

// notRead: err is that of a read of the page, which is not there.
func (r *Region) notRead(page uint64, err error) bool {
	var f *FaultError
	if !errors.As(err, &f) || f.Op != "read" && f.Op != "verify" || f.Store != r.name || uint64(f.Offset)>>r.shift != page {
		return false
	}
	pw, w := r.d.look(page)
	return pw == nil || !present(w)
}

// fillBuffer copies b, which may be memory of a region, and zeros the rest.
func (r *Region) fillBuffer(buf *buffer, b []byte) error {
	if !sp.trap {
		copy(buf.mem, b)
	} else if err := copyAcross(buf.mem, b, touchRead); err != nil {
		return err
	}
	clear(buf.mem[len(b) : 1<<r.shift])
	return nil
}
