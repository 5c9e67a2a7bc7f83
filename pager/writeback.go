//go:build linux

package pager

import (
	"cmp"
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
	gen   uint32 // of a page that is Posted, and …
	seat  int32  // … its seat; 0: it is not
}

// writeWhy says who wants pages written.
type writeWhy uint8

const (
	writeAge   writeWhy = iota // in the background: the clock, too many dirty pages, a policy
	writeNeed                  // somebody waits for room among the dirty pages
	writeEvict                 // eviction: they leave as soon as they are clean
	writeSync                  // somebody waits for it, and has seen to it that there is room in flight
)

var writePool = sync.Pool{New: func() any { return new(writeIO) }}

// copyMax is how many frames are protected and copied at a time, unstopped.
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
	if !pinned && protectVia(d.addr(first), uintptr(k)<<d.shift, true) != 0 {
		// Out of memory for page tables: what is protected half way is made
		// writable again before anybody may rely on it. Syncs that have left the
		// pages to us see to them: see leftOver.
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

// copyOut is copyOut for goroutines.
func (r *Region) copyOut(first uint64, n int, dst unsafe.Pointer) (took int) {
	held := coro.Unstopped()
	took = copyOut(r.d, first, n, dst)
	coro.Stoppable(held)
	return took
}

//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) clearDirty(page uint64) {
	leaf := uint32(bare.Load64(d.dirEntry(page))) & dirLeafMask
	bare.And64(&metaOf(leaf).dirty, ^(uint64(1) << (page & (leafPages - 1))))
}

// endWrite takes a page from Writing to Resident (from Posted to a marker), or back
// to Dirty if the write failed or the page has been written to since. clean says which, and
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
		case w&stateMask == stUnlocking || w&stateMask == stMapping:
			relax(turn) // a writer is making it writable, somebody maps it
		case w&stateMask == stPosted:
			// (One that has failed is not, see writeIODone.)
			if bare.Cas64(pw, w, w&^stateMask|stLoading|flagMark) {
				d.countClean()
				return true, true
			}
		case w&stateMask != stWriting:
			return false, false
		case w&(flagRedirtied|flagWritePin) != 0:
			// Writable already, or about to be made so by AcquireWrite.
			if w&flagRedirtied == 0 {
				if bare.Cas64(pw, w, w&^stateMask|stUnlocking|flagHeld) {
					d.markDirty(page)
					d.afterSpan(page)
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
				d.afterSpan(page)
				protectRange(d.addr(page), d.pageSize(), false)
				setState(pw, stUnlocking, stDirty, flagHeld, 0)
				return false, false
			}
		}
	}
}

// endWrite is endWrite for goroutines.
func (r *Region) endWrite(page uint64, ok bool) (clean, free bool) {
	held := coro.Unstopped()
	clean, free = endWrite(r.d, page, ok)
	coro.Stoppable(held)
	return clean, free
}

// dirtyPage names a page that may be dirty.
type dirtyPage struct {
	d    *desc
	page uint64
}

// writeBatch is writes that are about to be started through e: those of one
// region go to the store together, and the device is told once.
type writeBatch struct {
	e   aio.Engine
	st  store.Store
	ops []*aio.Op
}

// writeBatchMax is how many writes of a batch wait for each other at most.
const writeBatchMax = 32

var writeBatchPool = sync.Pool{New: func() any { return &writeBatch{ops: make([]*aio.Op, 0, writeBatchMax)} }}

func newWriteBatch(e aio.Engine) *writeBatch {
	b := writeBatchPool.Get().(*writeBatch)
	b.e = e
	return b
}

func (b *writeBatch) free() {
	b.e = nil
	writeBatchPool.Put(b)
}

func (b *writeBatch) add(w *writeIO) {
	if len(b.ops) == writeBatchMax || len(b.ops) > 0 && b.st != w.st {
		b.start()
	}
	b.st, b.ops = w.st, append(b.ops, &w.op)
}

// start hands the batch over. The region has been entered.
func (b *writeBatch) start() {
	if len(b.ops) > 0 {
		b.st.Start(b.e, b.ops)
		clear(b.ops)
		b.st, b.ops = nil, b.ops[:0]
	}
}

// writeBack starts writing the given pages, as far as they are Dirty, each
// together with its neighbours in the list, and returns how many it started. But
// for writeSync it ends when enough is in flight.
func (p *Pager) writeBack(list []dirtyPage, why writeWhy) (started int) {
	return p.writeBackTo(p.engine, list, why)
}

// writeBackTo is writeBack through an engine of the caller's.
func (p *Pager) writeBackTo(e aio.Engine, list []dirtyPage, why writeWhy) (started int) {
	slices.SortFunc(list, func(a, b dirtyPage) int {
		if a.d != b.d {
			return cmp.Compare(a.d.index, b.d.index)
		}
		return cmp.Compare(a.page, b.page)
	})
	b := newWriteBatch(e)
	defer b.free()
	for len(list) > 0 {
		d := list[0].d
		k := 1
		for k < len(list) && list[k].d == d {
			k++
		}
		if r := regionOf(d); r != nil && (why == writeSync && r.enterAlways() || why != writeSync && r.enterFault()) {
			// The descriptor may be another region's by now.
			switch {
			case r.p != p || r.d != d || why != writeSync && r.opt.Writeback.NoSteal:
			case r.atomic != nil:
				n, full := r.writeSlots(list[:k], why, nil)
				if started += n; full {
					r.atomic.poke()
				}
			default:
				started += p.writePages(r, list[:k], why, b)
			}
			r.leave()
		}
		list = list[k:]
	}
	return started
}

// writePages is writeBack for the pages of one region, in order.
func (p *Pager) writePages(r *Region, list []dirtyPage, why writeWhy, b *writeBatch) (started int) {
	for i := 0; i < len(list) && (why == writeSync || p.writeRoom() > 0); {
		if used, took := p.writeSpan(r, list[i:], why, b); used > 0 {
			started += took
			i += used
			continue
		}
		took := int(p.writeRun(r, list[i].page, neighbours(list[i:]), why, b))
		started += took
		i += max(1, took) // 0: it is not dirty (any more)
	}
	b.start()
	return started
}

// neighbours is how many pages at the beginning of the list follow one another.
func neighbours(list []dirtyPage) (n uint64) {
	for n = 1; n < uint64(len(list)) && list[n].page == list[0].page+n; n++ {
	}
	return n
}

// writeSpan makes writes of runs of dirty pages that are near each other, as
// many as are protected at once, and says how many pages of the list it has
// dealt with; 0: there is no more than one run, or another span is under way.
func (p *Pager) writeSpan(r *Region, list []dirtyPage, why writeWhy, b *writeBatch) (used, started int) {
	var runs [spanRuns]outRun
	var to [spanRuns]*buffer
	fpp := uint64(r.fpp)
	n, pages := 0, uint64(0)
	for used < len(list) && n < spanRuns {
		first, k := list[used].page, neighbours(list[used:])
		if n > 0 {
			end := runs[n-1].first + uint64(runs[n-1].n)
			if (first-end)*fpp > spanGap || (first+k-runs[0].first)*fpp > spanMost {
				break
			}
		}
		if pages += k; pages*fpp > copyMax {
			break
		}
		runs[n] = outRun{first: first, n: int(k)}
		used += int(k)
		n++
	}
	if n < 2 || !r.d.placeRoom(runs[0].first) || why != writeSync && (r.tooSoonToAsk() || p.w.tight()) {
		return 0, 0
	}
	for i := range n {
		to[i] = bufs.get(runs[i].n << r.shift)
		runs[i].dst = unsafe.Pointer(&to[i].mem[0])
	}
	if !r.copyOutSpan(runs[:n]) {
		for i := range n {
			bufs.put(to[i])
		}
		return 0, 0
	}
	for i, run := range runs[:n] {
		at, end := run.first, run.first+uint64(run.n)
		if run.took == 0 {
			bufs.put(to[i])
		} else {
			took := p.write(r, at, uint64(run.took), to[i], why, b)
			started += int(took)
			at += max(1, took)
		}
		// What is write-pinned, and what comes after a page that is not dirty
		// any more.
		for at < end {
			took := p.writeRun(r, at, end-at, why, b)
			started += int(took)
			at += max(1, took)
		}
	}
	return used, started
}

// dirtyRun is how many of n consecutive pages are Dirty, from the first on.
func (r *Region) dirtyRun(first, n uint64) (k uint64) {
	for ; k < n; k++ {
		if pw, w := r.d.look(first + k); pw == nil || w&stateMask != stDirty {
			break
		}
	}
	return k
}

// writeRun makes one write of at most n consecutive dirty pages, puts it into
// b, and says how many pages it took.
func (p *Pager) writeRun(r *Region, first, n uint64, why writeWhy, b *writeBatch) (took uint64) {
	// What is not dirty now must not have a buffer.
	n = r.dirtyRun(first, min(n, max(1, uint64(maxRun>>r.shift))))
	if n == 0 || !r.d.placeRoom(first) || why != writeSync && r.tooSoonToAsk() {
		if why == writeSync {
			r.leftOver(first)
		}
		return 0
	}
	if why != writeSync {
		if n = min(n, uint64(p.mayFly(r))); n == 0 {
			return 0
		}
	}
	maxPages := max(1, uint64(copyMax)*FrameSize>>r.shift)
	buf := bufs.get(int(n << r.shift))
	for took < n {
		k := r.copyOut(first+took, int(min(n-took, maxPages)), unsafe.Pointer(&buf.mem[took<<r.shift]))
		if k == 0 {
			break
		}
		took += uint64(k)
	}
	if took == 0 {
		bufs.put(buf)
		if why == writeSync {
			r.leftOver(first)
		}
		return 0
	}
	return p.write(r, first, took, buf, why, b)
}

// write makes one write of pages that have been copied out to buf, puts it into
// b, and says how many pages it has dealt with.
func (p *Pager) write(r *Region, first, took uint64, buf *buffer, why writeWhy, b *writeBatch) (started uint64) {
	if r.opt.Writeback.BeforeWrite != nil && !r.mayWrite(first, took, buf.mem[:took<<r.shift]) {
		bufs.put(buf)
		r.putBack(first, took)
		if took > 1 { // one of them may be what keeps the others
			for i := range took {
				p.writeRun(r, first+i, 1, why, b)
			}
		}
		return took
	}
	if k := r.takePlaces(first, took); k < took {
		r.putBack(first+k, took-k)
		if took = k; took == 0 {
			bufs.put(buf)
			return 0
		}
	}
	w := p.newWrite(r, first, int(took), buf, why)
	if r.opt.Seal != nil {
		for i := range took {
			if err := r.seal(first+i, buf.mem[i<<r.shift:(i+1)<<r.shift]); err != nil {
				p.writeDone(w, fmt.Errorf("seal: %w", err))
				return took
			}
		}
	}
	p.addWrite(w, b)
	return took
}

// newWrite is one write of n pages, which counts as being under way until writeDone.
func (p *Pager) newWrite(r *Region, first uint64, n int, buf *buffer, why writeWhy) *writeIO {
	p.began(why)
	r.active.Add(1)
	r.write.inflight.Add(int64(n))
	p.writingFrames.Add(int64(n) * r.fpp)
	p.writingIOs.Add(1)
	w := writePool.Get().(*writeIO)
	*w = writeIO{r: r, first: first, n: n, why: why, buf: buf, st: r.writeStore()}
	return w
}

// addWrite puts w into b.
func (p *Pager) addWrite(w *writeIO, b *writeBatch) {
	r := w.r
	w.op = aio.Op{Code: aio.Write, Off: int64(w.first << r.shift), Buf: w.buf.mem[:w.n<<r.shift], Done: writeIODone, Arg: w}
	w.track = tracked{kind: WedgedWrite, r: r, off: w.op.Off, n: int64(len(w.op.Buf))}
	p.tracks.add(&w.track)
	b.add(w)
}

// takePlaces gives places in the spill file to pages that are Writing, and says
// how many got one before it was full.
func (r *Region) takePlaces(first, n uint64) (k uint64) {
	for k < n && r.d.takePlace(first+k) {
		k++
	}
	return k
}

func writeIODone(op *aio.Op) {
	w := op.Arg.(*writeIO)
	p := w.r.p
	if op.Err != nil && w.r.retry(op, &w.tries, func() { p.writeAgain(w) }) {
		return
	}
	err := op.Err
	if err == nil && op.N < len(op.Buf) {
		err = io.ErrShortWrite
	}
	if errors.Is(err, aio.ErrClosed) {
		err = ErrClosed
	}
	if err != nil && w.seat != 0 && !w.r.mapFailed(w.first) && err != ErrClosed {
		p.postAgain(w)
		return
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
	buf, gen, seat := w.buf, w.gen, w.seat
	switch {
	case seat == 0:
		bufs.put(buf)
	case err == nil:
		p.keepPosted(r, first, gen, buf)
	}
	*w = writeIO{}
	writePool.Put(w)
	if err == nil {
		p.stats.writebacks.Add(int64(n))
		atomic.StoreUint32(&r.d.unflushed, 1)
		for i := range uint64(n) {
			r.d.written(first+i, uint64(r.Len()))
		}
	} else {
		for i := range uint64(n) {
			r.d.losePlace(first + i)
		}
		p.stats.writeErrors.Add(1)
		err = r.fault("write", first, err)
		p.flush.failedWith.Store(&err)
		p.flush.failed.Store(time.Now().UnixNano())
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
	p.writingIOs.Add(-1)
	if seat != 0 {
		p.endPosted(r, first, gen, buf, seat)
	}
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
	}
	if clean > 0 || err == nil && p.lineLen[lineCredits].Load() > 0 {
		p.cleaned() // or somebody is to have other pages written
	}
	p.feed()
	r.leave()
}

// evictNext makes clean pages leave that eviction had chosen while they were
// dirty.
func (p *Pager) evictNext(r *Region, first, n uint64) {
	p.lockEvict()
	for page := first; page < first+n; page++ {
		if pw, w := r.d.look(page); pw != nil && w&stateMask == stResident {
			r.domain.policy.Cold(pageKey(r.d, page))
		}
	}
	p.evictMu.Unlock()
}

// cleaned lets those go on who wait for credits, or for clean pages to leave.
func (p *Pager) cleaned() {
	if p.waiting.Load() != 0 {
		p.serveLine()
	}
}
