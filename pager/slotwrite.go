//go:build linux

package pager

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
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
		w, used, none := r.gather(list[:n], c)
		full = full || none
		list = list[used:]
		if w != nil {
			started += len(w.pages)
			w.why = why
			p.began(why)
			w.start()
		}
		if none && w == nil {
			break
		}
	}
	return started, full
}

// gather copies pages of the list out, from its beginning, as long as they get
// consecutive slots. It returns how far it got in the list; w is nil if there
// was nothing to copy.
func (r *Region) gather(list []dirtyPage, c *cut) (w *slotWrite, used int, none bool) {
	w, used, none = r.gatherInto(list, c)
	if w != nil && len(w.pages) == 0 {
		// Every page that got a slot was taken by somebody else before it was
		// copied.
		bufs.put(w.buf)
		w.buf = nil
		slotWritePool.Put(w)
		w = nil
	}
	return w, used, none
}

// gatherInto is gather, but that w may be a write of no pages.
func (r *Region) gatherInto(list []dirtyPage, c *cut) (w *slotWrite, used int, none bool) {
	d := r.d
	to, floor := slotFilling, int64(d.slotReserve)
	if c != nil {
		to, floor = slotCommitting, 0
	}
	type taken struct {
		slot uint32
		was  uint64
	}
	var got [copyMax]taken
	most := max(1, copyMax>>(r.shift-frameShift))
	for used < len(list) {
		// A run of neighbours with consecutive slots, which are protected and
		// copied at once.
		k := 0
		for k < most && used+k < len(list) && list[used+k].page == list[used].page+uint64(k) {
			page := list[used+k].page
			if pw, word := d.look(page); pw == nil || word&stateMask != stDirty {
				break
			}
			slot, was, res := takeSlot(d, page, to, floor)
			if res != slotTaken {
				none = none || res == slotNone
				break
			}
			if k > 0 && slot != got[0].slot+uint32(k) {
				untakeSlot(d, slot, was)
				break
			}
			got[k] = taken{slot, was}
			k++
		}
		if k == 0 {
			if none {
				return w, used, true
			}
			used++ // not dirty any more, or somebody else writes it
			continue
		}
		if w != nil && len(w.pages) == 0 {
			w.slot = got[0].slot
		}
		if w != nil && got[0].slot != w.slot+uint32(len(w.pages)) {
			for k--; k >= 0; k-- {
				untakeSlot(d, got[k].slot, got[k].was)
			}
			return w, used, none
		}
		if w == nil {
			w = slotWritePool.Get().(*slotWrite)
			*w = slotWrite{r: r, slot: got[0].slot, cut: c, pages: w.pages[:0], buf: bufs.get(len(list) << r.shift)}
		}
		held := coro.Unstopped()
		took := copyOut(d, list[used].page, k, unsafe.Pointer(&w.buf.mem[len(w.pages)<<r.shift]))
		coro.Stoppable(held)
		for k--; k >= took; k-- {
			untakeSlot(d, got[k].slot, got[k].was)
		}
		for i := range took {
			w.pages = append(w.pages, list[used+i].page)
		}
		used += max(took, 1)
	}
	return w, used, none
}

// start submits the write.
func (w *slotWrite) start() {
	r, n := w.r, len(w.pages)
	r.active.Add(1)
	r.write.inflight.Add(int64(n))
	r.p.writingFrames.Add(int64(n) * r.fpp)
	var err error
	for i, page := range w.pages {
		b := w.buf.mem[i<<r.shift : (i+1)<<r.shift]
		if r.opt.Seal != nil && err == nil {
			if err = r.seal(page, b); err != nil {
				err = fmt.Errorf("seal: %w", err)
			}
		}
		*r.d.slotCRC(w.slot + uint32(i)) = journal.CRC32C(b)
	}
	if w.cut == nil {
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
		w.cut.start(&w.op)
		return
	}
	ops := [1]*aio.Op{&w.op}
	r.write.side.Start(r.p.engine, ops[:])
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
