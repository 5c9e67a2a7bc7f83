//go:build linux

package pager

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/journal"
)

// The cut
//
// The pre-copy writes dirty pages to slots while everything goes on, until what
// is left fits in the copies that a cut may hold in memory. The cut copies all
// that is dirty: from when desc.cut is set no page becomes writable, so a
// goroutine whose next store is held can have no later store in the cut. Only a
// blocked thread that nobody with a P could let go on may pass.

// cut is what one commit of one region holds.
type cut struct {
	r                 *Region
	ops               []*SyncOp
	length, minLength int64

	writes  pending      // of images, and of the record; then the flush
	spot    *aio.Begun   // last images and record, which are waited for here; the rest is the engine's
	begun   int          // writes of images in it, and held
	held    *aio.Op      // one that goes along with the record
	running atomic.Int64 // frames of images
	track   tracked      // of the record, then of the flush

	hasty   bool // gives up (errHasty) where it would have to wait for a device
	nothing bool // there is nothing to be committed
	rec     *journal.Record
	flushed *aio.Op
	beside  *oneFlush // is this flush
	failed  error     // what keeps the cut from being durable

	mu      sync.Mutex
	entries []journal.Entry  // who takes the cut appends
	raw     []int            // entries whose checksum has still to be read
	spoiled map[int]struct{} // entries that were not written; others may have their slots
	err     error            // the first failed write
}

// pending is a WaitGroup that says whether there is anything to wait for.
type pending struct {
	n  atomic.Int64
	wg sync.WaitGroup
}

func (p *pending) Add(n int) {
	p.n.Add(int64(n))
	p.wg.Add(n)
}

func (p *pending) Done() {
	p.n.Add(-1)
	p.wg.Done()
}

func (p *pending) Wait()      { p.wg.Wait() }
func (p *pending) none() bool { return p.n.Load() == 0 }

// newCut is a cut that holds nothing yet.
func (r *Region) newCut() *cut {
	return &cut{r: r, spot: aio.Begin(r.p.onSpot.engine(r.p.engine))}
}

// errNoSlots: the journal has no room for what is dirty.
var errNoSlots = errors.New("no slots")

func (c *cut) add(w *slotWrite) {
	c.writes.Add(1)
	c.running.Add(int64(len(w.pages)) * c.r.fpp)
	c.mu.Lock()
	w.entry = len(c.entries)
	for i, page := range w.pages {
		c.entries = append(c.entries, journal.Entry{Page: page, Slot: w.slot + uint32(i)})
	}
	c.mu.Unlock()
}

// written ends a write of images.
func (c *cut) written(w *slotWrite, err error) {
	c.running.Add(-int64(len(w.pages)) * c.r.fpp)
	if err != nil {
		c.mu.Lock()
		if c.err == nil {
			c.err = err
		}
		if c.spoiled == nil {
			c.spoiled = map[int]struct{}{}
		}
		for i := range w.pages {
			c.spoiled[w.entry+i] = struct{}{}
		}
		c.mu.Unlock()
	}
	c.writes.Done()
}

// start starts a write of images. The last of a list, of which a commit of a few pages
// has no other, is waited for where the record is: it is among the last to end, and
// nobody has to be woken for it. If it is small it goes to the device in one call with the
// record, which is ready a moment later.
func (c *cut) start(op *aio.Op, last bool) {
	switch {
	case !last || c.begun == spotMost: // waitWindow waits for the others
		c.r.write.side.Start(c.r.p.engine, []*aio.Op{op})
	case len(op.Buf) < beginAlone && c.held == nil:
		c.held = op
		c.begun++
	default:
		c.r.write.side.Start(c.spot, []*aio.Op{op})
		c.begun++
	}
}

const (
	spotMost = 2

	// So many bytes of images are begun before the record is ready: their checksums take
	// longer than what a call of its own costs, some 15 µs.
	beginAlone = 256 << 10
)

// begin starts what is held back, and more, where it is waited for.
func (c *cut) begin(more ...*aio.Op) {
	ops := more
	if c.held != nil {
		ops = append([]*aio.Op{c.held}, more...)
		c.held = nil
	}
	if len(ops) > 0 {
		c.r.write.side.Start(c.spot, ops)
	}
}

// await waits for all that the cut has under way.
func (c *cut) await() {
	c.begin()
	c.spot.End(nil)
	c.writes.Wait()
}

// waitWindow bounds the memory of the copies.
func (c *cut) waitWindow() {
	for turn := 0; c.running.Load() >= writeWindow && !c.hasty; turn++ {
		c.r.p.reapSome(64)
		pause(turn)
	}
}

// has: the page's image in the cut is one that the cut has copied.
func (c *cut) has(page uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.entries, func(e journal.Entry) bool { return e.Page == page })
}

// take takes the cut: the gate is closed, nobody is inside, desc.cut is set.
func (c *cut) take() error {
	r, p, d, a := c.r, c.r.p, c.r.d, c.r.atomic
	for turn := 0; a.writers.Load() != 0 || load64(&d.slotsFilling) != 0; turn++ {
		if c.hasty {
			c.minLength = math.MaxInt64 // undo has nothing to take back
			return errHasty
		}
		p.reapSome(64)
		pause(turn)
	}
	// (The gate may have been waited for, and more have become dirty meanwhile.)
	if c.hasty && load64(&d.dirty) > hereMost {
		c.minLength = math.MaxInt64
		return errHasty
	}
	a.mu.Lock()
	c.ops, a.waiting = a.waiting, nil
	c.length, c.minLength = r.Len(), a.minLength
	a.minLength = c.length
	a.mu.Unlock()
	list := a.list[:0]
	defer func() { a.keepList(list) }()
	for turn := 0; ; turn++ {
		list = p.collectDirty(list[:0], d, 0)
		slices.SortFunc(list, byPage)
		if turn == 0 {
			c.mu.Lock()
			c.entries = slices.Grow(c.entries, len(list)+int(max(0, load64(&d.slotsLoose))))
			c.mu.Unlock()
		}
		if _, full := r.writeSlots(list, writeSync, c); full {
			return errNoSlots
		}
		// What the cut has copied has no dirty bit any more.
		list = p.collectDirty(list[:0], d, 0)
		if !slices.ContainsFunc(list, func(e dirtyPage) bool { return c.misses(e.page) }) {
			break
		}
		if c.hasty && turn > 10 {
			return errHasty
		}
		if turn > 1000 {
			return fmt.Errorf("pager: pages cannot be write-protected: %w", ErrBudget)
		}
		p.reapSome(64)
		pause(turn)
	}
	if load64(&d.slotsLoose) > 0 {
		return c.takeLoose()
	}
	return nil
}

// misses: the page may still have stores that belong in the cut.
func (c *cut) misses(page uint64) bool {
	pw, w := c.r.d.look(page)
	if pw == nil {
		return false
	}
	switch w & stateMask {
	case stInstalling, stDirty, stUnlocking, stCopying, stWriting:
		// Installing: it is being born dirty, by who had looked before desc.cut
		// was set. Writing: by the fault server. If the cut has a copy, a thread
		// that could not be held has come later.
		return !c.has(page)
	}
	return false
}

// takeLoose takes the images that are in slots already.
func (c *cut) takeLoose() error {
	d := c.r.d
	for s := range bare.Load32(&d.slotCount) {
		p := d.slotWord(s)
		for turn := 0; ; turn++ {
			w := bare.Load64(p)
			if w&slotState == slotFilling {
				// The fault server's, for a store that could not be held.
				if c.hasty && turn > 10 {
					return errHasty
				}
				pause(turn)
				continue
			}
			if w&slotState != slotLoose {
				break
			}
			page := w >> slotPageShift
			if w&slotRaw != 0 && c.has(page) {
				break // the same, later than the copy in the cut
			}
			if !bare.Cas64(p, w, page<<slotPageShift|slotCommitting) {
				continue
			}
			add64(&d.slotsLoose, -1)
			c.mu.Lock()
			if w&slotRaw != 0 {
				c.raw = append(c.raw, len(c.entries))
			}
			c.entries = append(c.entries, journal.Entry{Page: page, Slot: s, CRC: *d.slotCRC(s)})
			c.mu.Unlock()
			break
		}
	}
	return nil
}

// undo takes the cut back.
func (c *cut) undo() {
	a := c.r.atomic
	c.await()
	for i, e := range c.entries {
		if _, gone := c.spoiled[i]; gone {
			continue
		}
		var flags uint64
		if slices.Contains(c.raw, i) {
			flags = slotRaw // a checksum that is taken for known ends the log at recovery
		}
		uncommit(c.r.d, e.Page, e.Slot, flags)
	}
	a.mu.Lock()
	a.minLength = min(a.minLength, c.minLength)
	a.mu.Unlock()
}

// prepare makes room for a cut, and writes beforehand what is too much for one.
func (r *Region) prepare(tries int) error {
	a, p, d := r.atomic, r.p, r.d
	if err := a.flushError(); err != nil {
		return err
	}
	p.relieve(r)
	window := max(1, int(writeWindow/r.fpp))
	for round := 0; ; round++ {
		list := p.collectDirty(a.list[:0], d, 0)
		a.keepList(list)
		if err := a.makeRoom(int64(len(list)), tries > 0); err != nil {
			return err
		}
		if len(list) <= window || round == 3 {
			return nil
		}
		slices.SortFunc(list, byPage)
		list = list[:len(list)-window/2]
		for len(list) > 0 {
			n := min(len(list), window/4+1)
			if started, _ := r.writeSlots(list[:n], writeSync, nil); started == 0 {
				break
			}
			list = list[n:]
			for turn := 0; r.write.inflight.Load() > int64(window); turn++ {
				p.reapSome(64)
				pause(turn)
			}
		}
	}
}

// keepList keeps the memory of a list of dirty pages for the next one, unless it
// is large. Who uses it has the turn to commit.
func (a *atomicState) keepList(list []dirtyPage) {
	if a.list = list[:0]; cap(list) > 2*writeWindow {
		a.list = nil
	}
}

func byPage(a, b dirtyPage) int {
	if a.page < b.page {
		return -1
	}
	return 1
}
