//go:build linux

package pager

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// The slots of an Atomic region
//
// The side store of an Atomic region (where.go) is its journal, and a place in
// it is a slot: room for the image of one page. Every slot has a word:
//
//	 63                      8 7    4 3    0
//	┌─────────────────────────┬──────┬──────┐
//	│          page           │ flags│ state│
//	└─────────────────────────┴──────┴──────┘
//
//	        a dirty page must leave       written; the page's place is the slot
//	┌──────┐ ─────────────────▶ ┌─────────┐ ─────────────────▶ ┌───────┐
//	│ Free │ ◀───────────────── │ Filling │ ◀───────────────── │ Loose │
//	└──────┘  write failed      └─────────┘  the page is dirty └───────┘
//	  ▲ ▲ │                                  again: the same    │  ▲ │
//	  │ │ │ the cut takes a dirty page       slot once more     │  │ │ superseded,
//	  │ │ └─────────────────┐      ┌────────────────────────────┘  │ │ cut off: Free
//	  │ │                   ▼      ▼ the cut                       │
//	  │ │ write failed  ┌────────────┐   commit failed, the page is still here
//	  │ └────────────── │ Committing │ ──────────────────────────────┘
//	  │                 └────────────┘
//	  │                       │ record durable
//	  │ checkpoint: header    ▼
//	  │ durable         ┌───────────┐
//	  └──────────────── │ Committed │
//	                    └───────────┘
//
// Only Loose and Filling slots may be written to: a Committing or Committed one
// never, until the header is durable that makes its record unnecessary. The
// fault server takes part with the same words; that is why they are words, and
// not a Go structure. It computes no checksums: its images are marked raw, and
// the next commit reads them back.
//
// A page's place changes to a slot only while the page is Writing, and back to
// 0 by a checkpoint, once the store has what the slot has, or by a Resize that
// cuts the page off. So who reads a slot for a Loading page looks at the place
// again afterwards: if it is still the same, nobody has used the slot for
// something else meanwhile.
const (
	slotFree uint64 = iota
	slotFilling
	slotLoose
	slotCommitting
	slotCommitted

	slotState uint64 = 0xf
	slotRaw   uint64 = 1 << 4 // the checksum is not known

	slotPageShift = 8
)

// openSlots makes the tables for most slots, of which none exists yet.
func (d *desc) openSlots(most uint32) error {
	m, err := reserve(slotBytes(most))
	if err != nil {
		return err
	}
	d.slotTab, d.slotSum = m, unsafe.Add(m, uintptr(most)*8)
	d.slotMost = most
	return nil
}

func slotBytes(most uint32) uintptr { return (uintptr(most)*12 + FrameSize) &^ (FrameSize - 1) }

func (d *desc) closeSlots() error {
	if d.slotTab == nil {
		return nil
	}
	m := d.slotTab
	d.slotTab = nil
	return unix.MunmapPtr(m, slotBytes(d.slotMost))
}

// moreSlots makes the slots up to n available.
func (d *desc) moreSlots(n uint32) {
	n = min(n, d.slotMost)
	if old := bare.Load32(&d.slotCount); n > old {
		bare.Store32(&d.slotCount, n)
		add64(&d.slotsFree, int64(n-old))
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) slotWord(slot uint32) *uint64 {
	return (*uint64)(unsafe.Add(d.slotTab, uintptr(slot)*8))
}

// slotCRC is where the checksum of a slot's image is.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) slotCRC(slot uint32) *uint32 {
	return (*uint32)(unsafe.Add(d.slotSum, uintptr(slot)*4))
}

// takeSlot finds a slot for the image of page, which is dirty, and puts it into
// state to (Filling or Committing): the page's own if it is Loose, else a free
// one, if more than floor are free. was is what untakeSlot needs.
//
//go:nosplit
//go:norace
//go:nocheckptr
func takeSlot(d *desc, page, to uint64, floor int64) (slot uint32, was uint64, res slotResult) {
	if v := d.place(page); v != 0 {
		p := d.slotWord(v - 1)
		w := bare.Load64(p)
		if w>>slotPageShift == page && w&slotState == slotFilling {
			return 0, 0, slotBusy
		}
		if w>>slotPageShift == page && w&slotState == slotLoose {
			if !bare.Cas64(p, w, page<<slotPageShift|to) {
				return 0, 0, slotBusy
			}
			if to == slotFilling {
				add64(&d.slotsFilling, 1)
			} else {
				add64(&d.slotsLoose, -1)
			}
			return v - 1, w, slotTaken
		}
	}
	if to == slotFilling {
		// What is committed can be made free by a checkpoint; what is not
		// must leave room for the pages that are still dirty.
		add64(&d.slotsFilling, 1)
		if add64(&d.slotsLoose, 1) > load64(&d.slotsMayLoose) {
			add64(&d.slotsLoose, -1)
			add64(&d.slotsFilling, -1)
			return 0, 0, slotNone
		}
	}
	if add64(&d.slotsFree, -1) < floor {
		add64(&d.slotsFree, 1)
		if to == slotFilling {
			add64(&d.slotsLoose, -1)
			add64(&d.slotsFilling, -1)
		}
		return 0, 0, slotNone
	}
	// One of the free ones is ours.
	for s := bare.Load32(&d.slotHint); ; s++ {
		if s >= bare.Load32(&d.slotCount) {
			s = 0
		}
		if p := d.slotWord(s); bare.Load64(p) == slotFree && bare.Cas64(p, slotFree, page<<slotPageShift|to) {
			bare.Store32(&d.slotHint, s+1)
			return s, 0, slotTaken
		}
	}
}

type slotResult uint8

const (
	slotTaken slotResult = iota
	slotNone             // none may be taken now
	slotBusy             // somebody else is writing the page
)

// untakeSlot undoes takeSlot: nothing was written.
//
//go:nosplit
//go:norace
//go:nocheckptr
func untakeSlot(d *desc, slot uint32, was uint64) {
	p := d.slotWord(slot)
	filling := bare.Load64(p)&slotState == slotFilling
	if was != 0 {
		if !filling {
			add64(&d.slotsLoose, 1)
		}
		bare.Store64(p, was)
	} else {
		if filling {
			add64(&d.slotsLoose, -1)
		}
		bare.Store64(p, slotFree)
		bare.Store32(&d.slotHint, slot)
		add64(&d.slotsFree, 1)
	}
	if filling {
		add64(&d.slotsFilling, -1)
	}
}

// fillSlot notes that the image of page, which is still Writing, is in slot.
// What the page had before is superseded.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fillSlot(d *desc, page uint64, slot uint32, flags uint64) {
	old := bare.Xchg32(d.sideWord(page), slot+1)
	if old != 0 && old-1 != slot {
		dropLoose(d, page, old-1)
	}
	p := d.slotWord(slot)
	if bare.Load64(p)&slotState == slotFilling {
		bare.Store64(p, page<<slotPageShift|slotLoose|flags)
		add64(&d.slotsFilling, -1)
	}
}

// spoilSlot frees a slot whose write failed. Its page is going to be Dirty.
//
//go:nosplit
//go:norace
//go:nocheckptr
func spoilSlot(d *desc, page uint64, slot uint32) {
	bare.Cas32(d.sideWord(page), slot+1, 0)
	untakeSlot(d, slot, 0)
}

// dropLoose frees slot if it holds an uncommitted image of page.
//
//go:nosplit
//go:norace
//go:nocheckptr
func dropLoose(d *desc, page uint64, slot uint32) {
	p := d.slotWord(slot)
	if w := bare.Load64(p); w>>slotPageShift == page && w&slotState == slotLoose && bare.Cas64(p, w, slotFree) {
		add64(&d.slotsLoose, -1)
		add64(&d.slotsFree, 1)
	}
}

// freeCommitted frees a slot that no live record names any more.
func freeCommitted(d *desc, slot uint32) {
	bare.Store64(d.slotWord(slot), slotFree)
	add64(&d.slotsFree, 1)
}

// uncommit takes a whole image out of a commit that failed. flags: slotRaw or 0.
func uncommit(d *desc, page uint64, slot uint32, flags uint64) {
	add64(&d.slotsLoose, 1)
	bare.Store64(d.slotWord(slot), page<<slotPageShift|slotLoose|flags)
	// Superseded meanwhile? Whoever did that looked at the slot after he had
	// changed the place; we do it the other way round.
	if d.place(page) != slot+1 {
		dropLoose(d, page, slot)
	}
}
