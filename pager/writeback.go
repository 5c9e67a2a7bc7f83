//go:build linux

package pager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Writeback
//
// A dirty page is written from a private copy, which is made while the page is
// write-protected: the store never sees a torn page, and a writer who comes
// later makes the page writable again and goes on. Neighbours are written with
// one I/O. The states of a page make sure that it has at most one write in
// flight. Pages are chosen by eviction (the victims that are dirty), by share
// and age (the housekeeper), or all of them (Sync).

// writeIO is one write of consecutive pages.
type writeIO struct {
	op    aio.Op
	r     *Region
	first uint64
	n     int
	why   writeWhy
	buf   *buffer
	st    store.Store // where to
	track tracked
	tries uint32 // that were repeated, see retry.go
}

// writeWhy says who wants pages written.
type writeWhy uint8

const (
	writeAge   writeWhy = iota // in the background: the clock, too many dirty pages, a policy
	writeNeed                  // somebody waits for room among the dirty pages
	writeEvict                 // eviction: they leave as soon as they are clean
	writeSync                  // somebody waits for it: no limit on writes in flight
)

var writePool = sync.Pool{New: func() any { return new(writeIO) }}

// copyMax is how many frames are protected and copied without a safe-point.
const copyMax = 64

// copyOut takes up to n consecutive pages from Dirty to Writing, with a copy
// of each at dst, and returns how many it took: it ends at the first page that
// is not Dirty. Protecting them is one call, copying them takes some tens of
// microseconds; nobody can stop us in between.
//
// A page with write pins is copied as it is and stays writable: its holder may
// write to it at this very moment, and the page will not become clean.
//
//go:nosplit
//go:norace
//go:nocheckptr
func copyOut(d *desc, first uint64, n int, dst unsafe.Pointer) (took int) {
	var k int
	pinned := false
	for k = 0; k < n; k++ {
		pw, w := d.look(first + uint64(k))
		if pw == nil || w&stateMask != stDirty {
			break
		}
		if w&flagWritePin != 0 {
			if k > 0 {
				break // by itself, next time
			}
			pinned = true
		}
		if !bare.Cas64(pw, w, w&^(stateMask|flagRedirtied)|stCopying) {
			if k == 0 && bare.Load64(pw)&stateMask == stDirty {
				k--
				pinned = false
				continue
			}
			break
		}
		if d.held(first + uint64(k)) {
			// After the transition: who holds pages sets the hold and then
			// looks at their states.
			setState(pw, stCopying, stDirty, 0, 0)
			break
		}
		if pinned {
			k++
			break
		}
	}
	if k <= 0 {
		return 0
	}
	if !pinned && protectRange(d.addr(first), uintptr(k)<<d.shift, true) != 0 {
		// Out of memory for page tables: what is protected half way is made
		// writable again before anybody may rely on it.
		protectRange(d.addr(first), uintptr(k)<<d.shift, false)
		for i := 0; i < k; i++ {
			pw, _ := d.look(first + uint64(i))
			setState(pw, stCopying, stDirty, 0, 0)
		}
		return 0
	}
	for i := 0; i < k; i++ {
		d.clearDirty(first + uint64(i))
		bare.Copy(unsafe.Add(dst, uintptr(i)<<d.shift), bare.Ptr(d.addr(first+uint64(i))), d.pageSize())
	}
	var set word
	if pinned {
		set = flagRedirtied
	}
	for i := 0; i < k; i++ {
		pw, _ := d.look(first + uint64(i))
		setState(pw, stCopying, stWriting, 0, set)
	}
	return k
}

//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) clearDirty(page uint64) {
	leaf := uint32(bare.Load64(d.dirEntry(page))) & dirLeafMask
	bare.And64(&metaOf(leaf).dirty, ^(uint64(1) << (page & (leafPages - 1))))
}

// endWrite takes a page from Writing to Resident, or back to Dirty if the
// write failed or the page has been written to since. clean says which, and
// free that its credit is not needed any more: nobody pins it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func endWrite(d *desc, page uint64, ok bool) (clean, free bool) {
	for turn := 0; ; turn++ {
		pw, w := d.look(page)
		if pw == nil {
			return false, false
		}
		switch {
		case w&stateMask == stUnlocking:
			relax(turn) // a writer is making it writable
		case w&stateMask != stWriting:
			return false, false
		case w&(flagRedirtied|flagWritePin) != 0:
			// Writable already, or about to be made so by AcquireWrite.
			if w&flagRedirtied == 0 {
				if bare.Cas64(pw, w, w&^stateMask|stUnlocking|flagHeld) {
					d.markDirty(page)
					protectRange(d.addr(page), d.pageSize(), false)
					setState(pw, stUnlocking, stDirty, flagHeld, 0)
					return false, false
				}
				continue
			}
			d.markDirty(page)
			if bare.Cas64(pw, w, w&^(stateMask|flagRedirtied)|stDirty) {
				return false, false
			}
		case ok:
			if bare.Cas64(pw, w, w&^stateMask|stResident) {
				d.countClean()
				return true, w&pinMask == 0
			}
		default:
			if bare.Cas64(pw, w, w&^stateMask|stUnlocking|flagHeld) {
				d.markDirty(page)
				protectRange(d.addr(page), d.pageSize(), false)
				setState(pw, stUnlocking, stDirty, flagHeld, 0)
				return false, false
			}
		}
	}
}

// flusher is the pager's side of writing back.
type flusher struct {
	mu     sync.Mutex
	room   chan struct{} // closed and replaced whenever a dirty page became clean
	want   atomic.Bool   // somebody needs room
	last   atomic.Int64  // when a page last became clean (UnixNano)
	parked []parkedWrite
	hand   atomic.Uint32 // the leaf to look at next
	ios    atomic.Int64  // writes in the background that are under way

	sweeping bool // the housekeeper's: some region has something left to write
}

type parkedWrite struct {
	r     *Region
	pk    coro.Parked
	page  uint64
	stuck bool
	begun time.Time
	told  bool // the wedge detector's
}

// waitRoom waits until some dirty page has become clean, or a while.
func (f *flusher) waitRoom(ctx context.Context, p *Pager) error {
	f.mu.Lock()
	if f.room == nil {
		f.room = make(chan struct{})
	}
	ch := f.room
	f.mu.Unlock()
	f.want.Store(true)
	p.flushForRoom()
	t := time.NewTimer(5 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ch:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// stalled: nothing has become clean since begun.
func (f *flusher) stalled(begun time.Time) bool { return f.last.Load() < begun.UnixNano() }

// roomMade tells those who wait for dirty pages to become clean.
func (p *Pager) roomMade() {
	f := &p.flush
	f.last.Store(time.Now().UnixNano())
	if !f.want.Load() {
		return
	}
	f.mu.Lock()
	f.want.Store(false)
	if f.room != nil {
		close(f.room)
		f.room = nil
	}
	parked := f.parked
	f.parked = nil
	f.mu.Unlock()
	for _, w := range parked {
		w.r.startParkedWrite(w.pk, w.page, w.stuck, w.begun)
	}
}

// wakeFlusher asks the housekeeper to write something.
func (p *Pager) wakeFlusher() {
	p.flush.want.Store(true)
	p.rouse()
}

// dirtyPage names a page that may be dirty.
type dirtyPage struct {
	d    *desc
	page uint64
}

// writeWindow bounds, in frames, the copies of pages on their way to the store.
const writeWindow = 2048

// writeRoom limits how much of what is dirty may be in flight at once, so that
// the fault server always finds a dirty page that it may write itself.
func (p *Pager) writeRoom() int64 {
	return max(1, min(p.pinnable.Load()/2, writeWindow)) - p.writingFrames.Load()
}

// writeBack starts writing the given pages, as far as they are Dirty, each
// together with its neighbours in the list, and returns how many it started.
func (p *Pager) writeBack(list []dirtyPage, why writeWhy) (started int) {
	slices.SortFunc(list, func(a, b dirtyPage) int {
		if a.d != b.d {
			return cmp.Compare(a.d.index, b.d.index)
		}
		return cmp.Compare(a.page, b.page)
	})
	for i := 0; i < len(list); {
		d, page := list[i].d, list[i].page
		r := regionOf(d)
		if r != nil && (why == writeSync && !r.enterAlways() || why != writeSync && !r.enterFault()) {
			r = nil
		}
		k := i + 1
		for k < len(list) && list[k].d == d && (r != nil && r.atomic != nil || list[k].page == list[k-1].page+1) {
			k++
		}
		part := list[i:k]
		n := list[k-1].page - page + 1
		i = k
		if r == nil || r.p != p || r.d != d {
			if r != nil {
				r.leave()
			}
			continue
		}
		if r.atomic != nil {
			k, full := r.writeSlots(part, why, nil)
			started += k
			if full {
				r.atomic.poke()
			}
			n = 0
		}
		for n > 0 {
			if why != writeSync && p.writeRoom() <= 0 {
				r.leave()
				return started
			}
			took := p.writeRun(r, page, n, why)
			started += int(took)
			took = max(1, took) // not dirty (any more): next
			if took >= n {
				break
			}
			page += took
			n -= took
		}
		r.leave()
	}
	return started
}

// writeRun starts one write of at most n consecutive dirty pages and says how
// many it took.
func (p *Pager) writeRun(r *Region, first, n uint64, why writeWhy) (took uint64) {
	if pw, w := r.d.look(first); pw == nil || w&stateMask != stDirty {
		return 0
	}
	if !r.d.placeRoom(first) || why != writeSync && r.tooSoonToAsk() {
		return 0
	}
	maxPages := max(1, uint64(copyMax)*FrameSize>>r.shift)
	n = min(n, uint64(maxRun>>r.shift))
	n = max(1, n)
	buf := bufs.get(int(n << r.shift))
	for took < n {
		k := copyOut(r.d, first+took, int(min(n-took, maxPages)), unsafe.Pointer(&buf.mem[took<<r.shift]))
		if k == 0 {
			break
		}
		took += uint64(k)
	}
	if took == 0 {
		bufs.put(buf)
		return 0
	}
	if r.opt.Writeback.BeforeWrite != nil && !r.mayWrite(first, took, buf.mem[:took<<r.shift]) {
		bufs.put(buf)
		r.putBack(first, took)
		if took > 1 { // one of them may be what keeps the others
			for i := range took {
				p.writeRun(r, first+i, 1, why)
			}
		}
		return took
	}
	if r.opt.Seal != nil {
		for i := range took {
			if err := r.seal(first+i, buf.mem[i<<r.shift:(i+1)<<r.shift]); err != nil {
				w := writePool.Get().(*writeIO)
				*w = writeIO{r: r, first: first, n: int(took), why: why, buf: buf}
				p.began(why)
				r.active.Add(1)
				r.write.inflight.Add(int64(took))
				p.writingFrames.Add(int64(took) * r.fpp)
				p.writeDone(w, fmt.Errorf("seal: %w", err))
				return took
			}
		}
	}
	p.began(why)
	r.active.Add(1) // until writeDone
	r.write.inflight.Add(int64(took))
	p.writingFrames.Add(int64(took) * r.fpp)
	w := writePool.Get().(*writeIO)
	*w = writeIO{r: r, first: first, n: int(took), why: why, buf: buf, st: r.writeStore()}
	w.op = aio.Op{Code: aio.Write, Off: int64(first << r.shift), Buf: buf.mem[:took<<r.shift], Done: writeIODone, Arg: w}
	ops := [1]*aio.Op{&w.op}
	w.track = tracked{kind: WedgedWrite, r: r, off: w.op.Off, n: int64(len(w.op.Buf))}
	p.tracks.add(&w.track)
	w.st.Start(p.engine, ops[:])
	return took
}

func writeIODone(op *aio.Op) {
	w := op.Arg.(*writeIO)
	p := w.r.p
	if w.r.retry(op, &w.tries, func() { p.writeAgain(w) }) {
		return
	}
	err := op.Err
	if err == nil && op.N < len(op.Buf) {
		err = io.ErrShortWrite
	}
	if errors.Is(err, aio.ErrClosed) {
		err = ErrClosed
	}
	p.tracks.remove(&w.track)
	p.stats.writes.Add(1)
	p.stats.writtenBytes.Add(int64(op.N))
	p.writeDone(w, err)
}

// writeDone ends the write of w's pages.
func (p *Pager) writeDone(w *writeIO, err error) {
	r := w.r
	first, n, why := w.first, w.n, w.why
	bufs.put(w.buf)
	*w = writeIO{}
	writePool.Put(w)
	if err == nil {
		p.stats.writebacks.Add(int64(n))
		r.write.unflushed.Store(true)
		for i := range uint64(n) {
			r.d.written(first+i, uint64(r.Len()))
		}
	} else {
		p.stats.writeErrors.Add(1)
		err = r.fault("write", first, err)
		p.event(func(e *EventListener) {
			if e.WriteError != nil {
				e.WriteError(r, int64(first<<r.shift), int64(n)<<r.shift, err)
			}
		})
	}
	if why == writeAge {
		p.backgroundDone()
	}
	clean, free, ready, more := r.endWrites(first, uint64(n), err)
	if free > 0 {
		p.giveCredits(free * r.fpp)
	}
	p.writingFrames.Add(-int64(n) * r.fpp)
	r.write.inflight.Add(-int64(n))
	for _, s := range ready {
		s.pageDone()
	}
	if len(more) > 0 {
		p.writeBack(more, writeSync)
	}
	p.transition()
	if clean > 0 {
		if why == writeEvict {
			p.evictNext(r, first, uint64(n))
		}
		p.cleaned()
	}
	r.leave()
}

// evictNext makes clean pages leave that eviction had chosen while they were
// dirty.
func (p *Pager) evictNext(r *Region, first, n uint64) {
	p.evictMu.Lock()
	for page := first; page < first+n; page++ {
		if pw, w := r.d.look(page); pw != nil && w&stateMask == stResident {
			r.domain.policy.Cold(pageKey(r.d, page))
		}
	}
	p.evictMu.Unlock()
}

// cleaned lets those go on who wait for dirty pages to become clean, or for
// clean ones to leave.
func (p *Pager) cleaned() {
	p.roomMade()
	if p.waiting.Load() != 0 {
		p.serveLine()
	}
}

// collectDirty appends the pages of d (nil: of all regions of p) that are
// marked dirty, at most limit (0: all), going round through the leaves.
func (p *Pager) collectDirty(list []dirtyPage, only *desc, limit int) []dirtyPage {
	used := atomic.LoadUint32(&sp.leafUsed)
	start := p.flush.hand.Load()
	if limit == 0 {
		start = 0
	}
	for i := uint32(0); i <= used; i++ {
		leaf := (start + i) % (used + 1)
		m := metaOf(leaf)
		bits := atomic.LoadUint64(&m.dirty)
		if leaf == 0 || bits == 0 {
			continue
		}
		di := atomic.LoadUint32(&m.desc)
		if di == 0 || only != nil && di != only.index {
			continue
		}
		d := descAt(di)
		if d.words != p.w {
			continue
		}
		if only == nil {
			if r := regionOf(d); r == nil || r.opt.Writeback.NoSteal {
				continue
			}
		}
		group := atomic.LoadUint64(&m.group)
		if !d.owns(leaf, group) {
			continue
		}
		for k := range uint64(leafPages) {
			if bits>>k&1 != 0 && (limit == 0 || d.mayClean(group<<leafShift+k)) {
				list = append(list, dirtyPage{d, group<<leafShift + k})
			}
		}
		if limit > 0 && len(list) >= limit {
			p.flush.hand.Store(leaf + 1)
			break
		}
	}
	return list
}

// owns: the leaf is the one of this group of the region now.
func (d *desc) owns(leaf uint32, group uint64) bool {
	return group<<leafShift < d.pages && uint32(atomic.LoadUint64(d.dirEntry(group<<leafShift)))&dirLeafMask == leaf
}

// mayClean: the page is Dirty and would be clean after a write.
func (d *desc) mayClean(page uint64) bool {
	pw, w := d.look(page)
	return pw != nil && w&stateMask == stDirty && w&flagWritePin == 0
}

// flushForRoom writes some dirty pages because somebody needs room.
func (p *Pager) flushForRoom() {
	n := int(max(1, min(256, p.writeRoom())))
	if p.writeRoom() <= 0 {
		return
	}
	p.writeBack(p.collectDirty(nil, nil, n), writeNeed)
}

// roomIfCredits wakes those who wait for room if there is some after all.
func (p *Pager) roomIfCredits() {
	p.credits.gather()
	if load64(&p.w.credits) > 0 {
		p.roomMade()
	}
}
