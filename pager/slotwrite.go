//go:build linux

package pager

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"unsafe"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/journal"
)

// slotWrite is one write of page images to consecutive slots. The pages may be
// any: 256 dirty pages from all over a region go to the journal with one I/O.
type slotWrite struct {
	op    aio.Op
	r     *Region
	pages []uint64
	slot  uint32 // of the first
	why   writeWhy
	buf   *buffer
	cut   *cut // nil: not for a commit
	entry int  // of the first page in the cut
	last  bool // of its list
	track tracked
	tries uint32 // that were repeated, see retry.go
}

var slotWritePool = sync.Pool{New: func() any { return new(slotWrite) }}

// writeSlots starts writes of the listed pages (ascending) to slots, as far as
// they are Dirty, and returns how many it started: for a commit, or because
// they are to leave. full says that slots were missing.
func (r *Region) writeSlots(list []dirtyPage, why writeWhy, c *cut) (started int, full bool) {
	p, a := r.p, r.atomic
	if c == nil {
		// A commit that takes its cut waits for the writes under way, and no
		// new ones make it wait longer. (The count comes before the flag.)
		a.writers.Add(1)
		defer a.writers.Add(-1)
		if a.cutting.Load() {
			return 0, false
		}
	}
	most := max(1, maxRun>>r.shift)
	for len(list) > 0 {
		n := min(len(list), most)
		if c != nil {
			c.waitWindow()
		} else if why != writeSync {
			room := p.writeRoom()
			if room <= 0 {
				break
			}
			if n = min(n, int(max(1, room/r.fpp)), p.mayFly(r)); n == 0 {
				break
			}
		}
		// Where blocked stores need what is dirty, pages that wait for their turn
		// in a span are in nobody's reach.
		ws, used, none := r.gather(list[:n], c, why == writeSync || !p.w.tight())
		full = full || none
		list = list[used:]
		for _, w := range ws {
			started += len(w.pages)
			w.why, w.last = why, len(list) == 0
			p.began(why)
			w.start()
		}
		if none && len(ws) == 0 {
			break
		}
	}
	return started, full
}

// gather copies pages of the list out, from its beginning, as long as they get
// consecutive slots, and returns how far it got in the list. What it has copied
// is one write, or none; more, if pages in the middle were taken by somebody
// else meanwhile. With spans pages that are near each other are protected
// together (span.go).
func (r *Region) gather(list []dirtyPage, c *cut, spans bool) (ws []*slotWrite, used int, none bool) {
	g := gathering{r: r, cut: c, list: list, spans: spans}
	none = g.run()
	if g.w != nil && len(g.w.pages) > 0 {
		g.done = append(g.done, g.w)
	} else if g.w != nil {
		// Every page that got a slot was taken by somebody else before it was
		// copied.
		bufs.put(g.w.buf)
		g.w.buf = nil
		slotWritePool.Put(g.w)
	}
	return g.done, g.used, none
}

// gathering is one gather.
type gathering struct {
	r     *Region
	cut   *cut
	list  []dirtyPage
	spans bool

	used int          // pages of the list that are dealt with
	w    *slotWrite   // what is being filled; it may have no pages yet
	done []*slotWrite // others

	got  [copyMax]slotClaim // slots for pages that are about to be copied
	k    int                // how many
	runs [spanRuns]outRun   // these pages
	n    int                // how many runs
}

// slotClaim is a slot for a page.
type slotClaim struct {
	page uint64
	slot uint32
	was  uint64 // what untakeSlot needs
	lost bool   // the page was not copied
}

// run gathers until slots are missing (true), or are not consecutive, or the
// list ends.
func (g *gathering) run() bool {
	d := g.r.d
	for g.used < len(g.list) {
		next, none := g.claim()
		if g.k == 0 {
			if none {
				return true
			}
			g.used++ // not dirty any more, or somebody else writes it
			continue
		}
		if g.w != nil && len(g.w.pages) == 0 {
			g.w.slot = g.got[0].slot
		}
		if g.w != nil && g.got[0].slot != g.w.slot+uint32(len(g.w.pages)) {
			for g.k--; g.k >= 0; g.k-- {
				untakeSlot(d, g.got[g.k].slot, g.got[g.k].was)
			}
			return none
		}
		if g.w == nil {
			g.w = g.r.newSlotWrite(g.got[0].slot, len(g.list), g.cut)
		}
		g.copy()
		took := g.settle()
		if g.n == 1 && took < g.k {
			g.used += max(took, 1)
		} else {
			// What a span has left out is not dirty any more, or will be found
			// again by who looks for dirty pages: a cut looks until there are none.
			g.used = next
		}
	}
	return false
}

// claim takes consecutive slots for the pages that are to be copied next: of
// one run of neighbours, or of several that may be in one span. It returns
// where in the list they end.
func (g *gathering) claim() (next int, none bool) {
	d, fpp := g.r.d, uint64(g.r.fpp)
	to, floor := slotFilling, int64(d.slotReserve)
	if g.cut != nil {
		to, floor = slotCommitting, 0
	}
	most := max(1, copyMax>>(g.r.shift-frameShift))
	g.k, g.n = 0, 0
	for next = g.used; next < len(g.list) && g.k < most; next++ {
		page := g.list[next].page
		apart := g.k == 0 || page != g.got[g.k-1].page+1
		if apart && g.k > 0 {
			last := g.got[g.k-1].page
			if !g.spans || g.n == spanRuns || (page-last-1)*fpp > spanGap || (page+1-g.got[0].page)*fpp > spanMost {
				break
			}
		}
		pw, word := d.look(page)
		if pw == nil || word&stateMask != stDirty {
			if g.k > 0 && g.spans {
				continue
			}
			break
		}
		if word&flagWritePin != 0 && g.k > 0 {
			break // by itself, next time
		}
		slot, was, res := takeSlot(d, page, to, floor)
		if res != slotTaken {
			none = res == slotNone
			break
		}
		if g.k > 0 && slot != g.got[g.k-1].slot+1 {
			untakeSlot(d, slot, was)
			break
		}
		if apart {
			g.runs[g.n] = outRun{first: page}
			g.n++
		}
		g.runs[g.n-1].n++
		g.got[g.k] = slotClaim{page: page, slot: slot, was: was}
		g.k++
	}
	return next, none
}

// copy protects and copies what was claimed, as far as it is still dirty, to
// where it belongs in w.
func (g *gathering) copy() {
	at := len(g.w.pages)
	for i := range g.n {
		g.runs[i].dst = unsafe.Pointer(&g.w.buf.mem[at<<g.r.shift])
		at += g.runs[i].n
	}
	if g.n > 1 && g.r.copyOutSpan(g.runs[:g.n]) {
		return
	}
	for i := range g.n {
		run := &g.runs[i]
		run.took = g.r.copyOut(run.first, run.n, run.dst)
	}
}

// settle puts what was copied into w, and what comes after a page that was not
// into writes of their own: its slot is free again. It returns how many pages
// were copied.
func (g *gathering) settle() (took int) {
	r, base := g.r, len(g.w.pages)
	w, k := g.w, 0
	for _, run := range g.runs[:g.n] {
		for i := range run.n {
			if i >= run.took {
				g.got[k].lost = true
				w = nil
			} else {
				if w == nil {
					w = r.newSlotWrite(g.got[k].slot, g.k-k, g.cut)
					g.done = append(g.done, w)
				}
				if w != g.w {
					from := (base + k) << r.shift
					copy(w.buf.mem[len(w.pages)<<r.shift:], g.w.buf.mem[from:from+1<<r.shift])
				}
				w.pages = append(w.pages, g.got[k].page)
				took++
			}
			k++
		}
	}
	// From the last one on, so that the next search begins at the first.
	for k--; k >= 0; k-- {
		if g.got[k].lost {
			untakeSlot(r.d, g.got[k].slot, g.got[k].was)
		}
	}
	return took
}

// newSlotWrite is a write of no pages yet, and room for most.
func (r *Region) newSlotWrite(slot uint32, most int, c *cut) *slotWrite {
	w := slotWritePool.Get().(*slotWrite)
	*w = slotWrite{r: r, slot: slot, cut: c, pages: w.pages[:0], buf: bufs.get(most << r.shift)}
	return w
}

// start submits the write.
func (w *slotWrite) start() {
	r, n := w.r, len(w.pages)
	r.active.Add(1)
	r.write.inflight.Add(int64(n))
	r.p.writingFrames.Add(int64(n) * r.fpp)
	var err error
	for i, page := range w.pages {
		if r.opt.Seal != nil && err == nil {
			if err = r.seal(page, w.buf.mem[i<<r.shift:(i+1)<<r.shift]); err != nil {
				err = fmt.Errorf("seal: %w", err)
			}
		}
	}
	if w.cut == nil {
		r.checksums(w.slot, w.buf.mem[:n<<r.shift], nil)
		r.atomic.writers.Add(1)
	} else {
		w.cut.add(w)
	}
	if err != nil {
		w.end(err)
		return
	}
	w.op = aio.Op{Code: aio.Write, Off: r.atomic.j.SlotOffset(w.slot), Buf: w.buf.mem[:n<<r.shift], Done: slotWriteDone, Arg: w}
	w.track = tracked{kind: WedgedWrite, r: r, off: int64(w.pages[0] << r.shift), n: int64(len(w.op.Buf))}
	r.p.tracks.add(&w.track)
	if w.cut != nil {
		// The record has the checksums, so they can be computed while the device has
		// the images. (The write may end at any time, but its slots become nobody's
		// else meanwhile whose images have checksums, but for a later write of this
		// cut.)
		slot, buf, entries := w.slot, w.buf, w.cut.entries[w.entry:][:n]
		buf.lent.Add(1)
		w.cut.start(&w.op, w.last)
		r.checksums(slot, buf.mem[:n<<r.shift], entries)
		bufs.put(buf)
		return
	}
	ops := [1]*aio.Op{&w.op}
	r.write.side.Start(r.p.engine, ops[:])
}

// checksums computes the checksums of images for the slots from this one on, and for
// their entries in a cut, if they are in one. A slot whose write has failed may get
// another page's image before the record is made: that must not verify as this one's.
func (r *Region) checksums(slot uint32, images []byte, entries []journal.Entry) {
	for i := 0; len(images) > 0; i++ {
		sum := journal.CRC32C(images[:1<<r.shift])
		*r.d.slotCRC(slot + uint32(i)) = sum
		if entries != nil {
			entries[i].CRC = sum
		}
		images = images[1<<r.shift:]
	}
}

// again repeats the I/O.
func (w *slotWrite) again() {
	w.op = aio.Op{Code: aio.Write, Off: w.op.Off, Buf: w.op.Buf, Done: slotWriteDone, Arg: w}
	ops := [1]*aio.Op{&w.op}
	w.r.write.side.Start(w.r.p.engine, ops[:])
}

func slotWriteDone(op *aio.Op) {
	w := op.Arg.(*slotWrite)
	if w.r.retry(op, &w.tries, w.again) {
		return
	}
	w.r.p.tracks.remove(&w.track)
	err := op.Err
	if err == nil && op.N < len(op.Buf) {
		err = io.ErrShortWrite
	}
	if errors.Is(err, aio.ErrClosed) {
		err = ErrClosed
	}
	s := &w.r.p.stats
	s.writes.Add(1)
	s.writtenBytes.Add(int64(op.N))
	s.journalBytes.Add(int64(op.N))
	w.end(err)
}

// end ends the write of all its pages.
func (w *slotWrite) end(err error) {
	r, p, n := w.r, w.r.p, int64(len(w.pages))
	bufs.put(w.buf)
	w.buf = nil
	if err == nil {
		p.stats.writebacks.Add(n)
	} else {
		p.stats.writeErrors.Add(1)
		first := w.pages[0]
		err = r.fault("write", first, err)
		p.event(func(e *EventListener) {
			if e.WriteError != nil {
				e.WriteError(r, int64(first<<r.shift), n<<r.shift, err)
			}
		})
	}
	for i, page := range w.pages {
		if slot := w.slot + uint32(i); err == nil {
			fillSlot(r.d, page, slot, 0)
		} else {
			spoilSlot(r.d, page, slot)
		}
	}
	var clean int64
	for i := 0; i < len(w.pages); {
		k := 1
		for i+k < len(w.pages) && w.pages[i+k] == w.pages[i]+uint64(k) {
			k++
		}
		// Nobody waits for single pages of an Atomic region.
		c, free, _, _ := r.endWrites(w.pages[i], uint64(k), err)
		if free > 0 {
			p.giveCredits(free * r.fpp)
		}
		if clean += c; c > 0 && w.why == writeEvict {
			p.evictNext(r, w.pages[i], uint64(k))
		}
		i += k
	}
	if w.why == writeAge {
		p.backgroundDone()
	}
	p.writingFrames.Add(-n * r.fpp)
	r.write.inflight.Add(-n)
	if w.cut == nil {
		r.atomic.writers.Add(-1)
	} else {
		w.cut.written(w, err)
	}
	*w = slotWrite{pages: w.pages[:0]}
	slotWritePool.Put(w)
	if clean > 0 || err == nil && p.lineLen[lineCredits].Load() > 0 {
		p.cleaned()
	}
	p.feed()
	r.leave()
}
