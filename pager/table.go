//go:build linux

package pager

import (
	"iter"
	"sync/atomic"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// The page table of the pager
//
// A region may be far larger than memory, so page words exist only for groups
// of pages of which at least one is not Missing:
//
//	directory (one 8-byte entry per 64 pages, zero = nothing there)
//	┌───────────────┬─────────┬──────────┐
//	│ incarnation 32│ count 8 │ leaf 24  │ ──▶ leaf: 64 page words, 512 bytes
//	└───────────────┴─────────┴──────────┘
//
// count is the number of pages of the group that are claimed, that is, not
// Missing. A claimer first raises count, which makes the leaf his, and only
// then looks at the word; when a page becomes Missing again count is lowered,
// and whoever lowers it to zero has unlinked the leaf in the same
// compare-and-swap and puts it on the free list. Leaves are never unmapped,
// so a stale reader reads some word, if not the right one; he finds out by
// reading the directory again (the incarnation makes a reused leaf look
// different), and a compare-and-swap with what he read cannot succeed on
// another page's word because no two claims have the same generation. Nor does he
// who owned a page, and has lost it, take it for his in another leaf.
//
// The kernel's page tables are memory too: a counter per 2 MiB of address
// space (a span) says how many pages in it are claimed; when it is zero the
// whole span is unmapped, which gives the page-table page back.
const (
	leafPages     = 64
	leafShift     = 6
	dirLeafMask   = 1<<24 - 1
	dirCountOne   = 1 << 24
	dirCountMask  = (1<<8 - 1) << 24
	dirIncOne     = 1 << 32
	maxLeaves     = 1 << 24
	leafBytes     = leafPages * 8
	spanShift     = 21 // 2 MiB
	spanFreeing   = 1 << 31
	spanCountMask = spanFreeing - 1
)

// leafMeta is what is known of a leaf besides its words.
type leafMeta struct {
	next  uint32 // free list
	desc  uint32 // index of the region's descriptor
	group uint64 // group number in the region; stored before the leaf is linked
	dirty uint64 // bit per page: set before a page becomes writable, cleared when it is written back
	inc   uint32 // incarnations so far
	_     uint32
}

// desc is what the handler and the fault server know of a region: plain words
// in memory that the collector does not own. A descriptor is reused only after
// its region is closed, drained and has no users.
type desc struct {
	state  uint32 // descFree, descLive, descClosing
	users  uint32 // fault servers at work on this region
	flags  uint32 // desc* flags
	shift  uint32 // log2 of the page size
	base   uintptr
	pages  uint64         // what the addresses hold, constant: the reach of the region
	length uint64         // bytes; accesses past it are faults
	stored uint64         // bytes that the store has; pages past it read as zeros
	dir    unsafe.Pointer // *[groups]uint64
	spans  unsafe.Pointer // *[…]uint32, one per 2 MiB of the region
	words  *pagerWords
	index  uint32
	inc    uint32 // how often the descriptor has been used
	fd     int32
	fdOff  uint64
	mem    unsafe.Pointer // memory store
	sums   unsafe.Pointer // *[…]uint64: what the store's blocks must be, nil: not known; see store.Kernel.Sums

	resident    int64  // frames, also on their way in
	dirty       int64  // frames
	misses      uint64 // made by the fault server
	minResident int64  // frames that eviction leaves
	storeUsed   int64  // pages that were read ahead and first touched by a store

	// Which errors of the store pass; see retry.go.
	retrySet      [retryErrnos / 64]uint64
	retryPause    int64 // ns
	retryPauseMax int64
	retryTimes    uint32
	unflushed     uint32 // something was written to the store since the last flush

	// The side store, if the region has one; see where.go.
	sideMap  unsafe.Pointer // *[pages]uint32, nil: none
	sideMem  unsafe.Pointer // its memory, nil: it is a file
	sideOff  uint64         // of its first place
	sideUsed int64          // Private: places taken
	sideMax  int64          // Private: places there may be
	sideFD   int32
	cut      uint32 // a commit is taking its cut: no page becomes writable
	span     uint64 // the pages that are being protected together; see span.go

	// Atomic regions: the slots of the journal; see slots.go.
	slotTab       unsafe.Pointer // *[slotMost]uint64, nil: not Atomic
	slotSum       unsafe.Pointer // *[slotMost]uint32
	slotMost      uint32         // how many there can be
	slotCount     uint32         // how many there are
	slotHint      uint32         // where to look for a free one
	slotReserve   uint32         // free ones that only the fault server and commits take
	slotsFree     int64
	slotsFilling  int64
	slotsLoose    int64 // Loose and Filling
	slotsMayLoose int64 // as many at most by eviction

	holdFirst, holdEnd uint64 // pages that must not be written now: see Discard
}

const (
	descFree = iota
	descLive
	descClosing
)

const (
	descReadOnly   = 1 << iota // writes are refused
	descRaw                    // the fault server may fill pages
	descServeDirty             // the fault server may also write dirty pages
	descNotices                // misses of the fault server are told to the prefetcher
	descRestart                // every fault becomes a Go fault
	descWaitError              // OnReadError: Wait
	descMoves                  // pages are moved, see move.go
	descSideOwn                // a page's place in the side store is its own offset
)

// reset clears all but state and users: a fault server may just be finding out
// that the region it knew is gone.
func (d *desc) reset() {
	const from = unsafe.Offsetof(d.flags)
	inc := d.inc
	clear(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(d), from)), unsafe.Sizeof(*d)-from))
	d.inc = inc + 1
}

// dirEntry is where the directory entry of page's group is.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) dirEntry(page uint64) *uint64 {
	return (*uint64)(unsafe.Add(d.dir, page>>leafShift*8))
}

//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) spanWord(page uint64) *uint32 {
	return (*uint32)(unsafe.Add(d.spans, page<<d.shift>>spanShift*4))
}

//go:nosplit
//go:norace
func (d *desc) addr(page uint64) uintptr { return d.base + uintptr(page)<<d.shift }

//go:nosplit
//go:norace
func (d *desc) pageSize() uintptr { return 1 << d.shift }

//go:nosplit
//go:norace
func (d *desc) framesPerPage() int64 { return 1 << (d.shift - frameShift) }

// leafWord is the word of page within leaf.
//
//go:nosplit
//go:norace
//go:nocheckptr
func leafWord(leaf uint32, page uint64) *word {
	return (*word)(unsafe.Add(sp.leaves, uintptr(leaf)*leafBytes+uintptr(page&(leafPages-1))*8))
}

//go:nosplit
//go:norace
//go:nocheckptr
func metaOf(leaf uint32) *leafMeta {
	return (*leafMeta)(unsafe.Add(sp.leafMeta, uintptr(leaf)*unsafe.Sizeof(leafMeta{})))
}

// look returns page's word and its value, or nil if the page is Missing and
// has no leaf. The value was the page's at some moment during the call.
//
//go:nosplit
//go:norace
func (d *desc) look(page uint64) (p *word, w word) {
	e := d.dirEntry(page)
	for {
		v := bare.Load64(e)
		if v == 0 {
			return nil, 0
		}
		p = leafWord(uint32(v)&dirLeafMask, page)
		w = bare.Load64(p)
		if (bare.Load64(e)^v)&^dirCountMask == 0 {
			return p, w
		}
	}
}

// hold raises the group's count (linking a leaf if there is none) and the
// span's, after which the page's word belongs to the page until drop. It
// returns nil if no leaf is left.
//
//go:nosplit
//go:norace
func (d *desc) hold(page uint64) *word {
	d.spanEnter(page)
	e := d.dirEntry(page)
	for {
		v := bare.Load64(e)
		if v != 0 {
			if bare.Cas64(e, v, v+dirCountOne) {
				return leafWord(uint32(v)&dirLeafMask, page)
			}
			continue
		}
		leaf := allocLeaf()
		if leaf == 0 {
			d.spanLeave(page)
			return nil
		}
		m := metaOf(leaf)
		bare.Store32(&m.desc, d.index)
		bare.Store64(&m.group, page>>leafShift)
		bare.Store64(&m.dirty, 0)
		inc := bare.Add32(&m.inc, 1)
		if bare.Cas64(e, 0, uint64(inc)<<32|dirCountOne|uint64(leaf)) {
			return leafWord(leaf, page)
		}
		freeLeaf(leaf)
	}
}

// drop undoes hold. The caller's page is Missing or was never his. It reports
// whether the span is now empty.
//
//go:nosplit
//go:norace
func (d *desc) drop(page uint64) (empty bool) {
	e := d.dirEntry(page)
	for {
		v := bare.Load64(e)
		n := v - dirCountOne
		if n&dirCountMask == 0 {
			n = 0
		}
		if bare.Cas64(e, v, n) {
			if n == 0 {
				freeLeaf(uint32(v) & dirLeafMask)
			}
			return d.spanLeave(page)
		}
	}
}

// spanEnter counts a page of the span as claimed. It waits while the span is
// being given back (bounded).
//
//go:nosplit
//go:norace
func (d *desc) spanEnter(page uint64) {
	s := d.spanWord(page)
	for i := 0; ; i++ {
		v := bare.Load32(s)
		if v&spanFreeing == 0 && bare.Cas32(s, v, v+1) {
			return
		}
		relax(i)
	}
}

//go:nosplit
//go:norace
func (d *desc) spanLeave(page uint64) (empty bool) {
	return bare.Add32(d.spanWord(page), ^uint32(0))&spanCountMask == 0
}

// generation is the last that was given out.
var generation struct {
	_    [64]byte
	last uint32
	_    [60]byte
}

// newGen is a generation, where it is in a word, that no page has had; and not 0.
// (After 2³² claims, a matter of hours at the least, they are used again. Somebody
// who has waited for that long would have to come back to the very page, on its way
// once more, with the very number.)
//
//go:nosplit
//go:norace
//go:nocheckptr
func newGen() word {
	for {
		if g := bare.Add32(&generation.last, 1); g != 0 {
			return word(g) << 32
		}
	}
}

// allocLeaf takes a leaf from the free list or the slab; 0 if all are used.
// Its words are Missing, with generations from their last use.
//
//go:nosplit
//go:norace
func allocLeaf() uint32 {
	for {
		h := bare.Load64(&sp.leafFree)
		if uint32(h) == 0 {
			break
		}
		n := bare.Load32(&metaOf(uint32(h)).next)
		if bare.Cas64(&sp.leafFree, h, (h>>32+1)<<32|uint64(n)) {
			return uint32(h)
		}
	}
	n := bare.Add32(&sp.leafUsed, 1)
	if n >= maxLeaves {
		bare.Add32(&sp.leafUsed, ^uint32(0))
		return 0
	}
	return n
}

//go:nosplit
//go:norace
func freeLeaf(leaf uint32) {
	m := metaOf(leaf)
	bare.Store32(&m.desc, 0)
	bare.Store64(&m.dirty, 0)
	for {
		h := bare.Load64(&sp.leafFree)
		bare.Store32(&m.next, uint32(h))
		if bare.Cas64(&sp.leafFree, h, (h>>32+1)<<32|uint64(leaf)) {
			return
		}
	}
}

// ownedLeaf is a leaf that holds the words of 64 pages of d, from group on.
type ownedLeaf struct {
	leaf  uint32
	d     *desc
	group uint64
}

// leaves goes through the leaves in which the pager has pages. Nothing is held
// meanwhile: a leaf may change hands at any time, which only who acts on
// what he saw in it has to mind.
func (p *Pager) leaves() iter.Seq[ownedLeaf] {
	return func(yield func(ownedLeaf) bool) {
		used := min(atomic.LoadUint32(&sp.leafUsed), maxLeaves-1)
		for leaf := uint32(1); leaf <= used; leaf++ {
			m := metaOf(leaf)
			di := atomic.LoadUint32(&m.desc)
			if di == 0 {
				continue
			}
			d, group := descAt(di), atomic.LoadUint64(&m.group)
			// A leaf on the free list still names its last group.
			if d.words == p.w && d.owns(leaf, group) && !yield(ownedLeaf{leaf, d, group}) {
				return
			}
		}
	}
}

// claim makes a Missing page Loading, owned by the caller, who has reserved
// its frames. extra is added to the new word (pins, flags).
//
// The caller looks at the length after the claim (see past) and fails the page
// if it lies behind: Resize lowers the length before it looks for claimed
// pages, so one of the two sees the other.
//
//go:nosplit
//go:norace
func (d *desc) claim(page uint64, extra word) (p *word, gen uint32, got claimResult) {
	p = d.hold(page)
	if p == nil {
		return nil, 0, claimFull
	}
	for {
		w := bare.Load64(p)
		if w&stateMask != stMissing {
			d.drop(page)
			return p, 0, claimTaken
		}
		n := newGen() | stLoading | extra
		if bare.Cas64(p, w, n) {
			bare.Add64((*uint64)(unsafe.Pointer(&d.resident)), uint64(d.framesPerPage()))
			return p, uint32(n >> 32), claimed
		}
	}
}

// past: the page lies behind the end of the region.
//
//go:nosplit
//go:norace
func (d *desc) past(page uint64) bool { return page<<d.shift >= bare.Load64(&d.length) }

type claimResult uint8

const (
	claimed    claimResult = iota
	claimTaken             // the page is not Missing
	claimFull              // no leaf is left
)

// vacate makes the caller's page (in a state only he may leave) Missing and
// reports whether its span became empty. The caller owns the frames now.
//
//go:nosplit
//go:norace
func (d *desc) vacate(p *word, page uint64) (empty bool) {
	for {
		w := bare.Load64(p)
		if bare.Cas64(p, w, w&genMask) {
			break
		}
	}
	bare.Add64((*uint64)(unsafe.Pointer(&d.resident)), -uint64(d.framesPerPage()))
	return d.drop(page)
}
