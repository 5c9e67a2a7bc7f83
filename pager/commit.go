//go:build linux

package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/journal"
)

// A commit
//
//	wait for ops ─▶ pre-copy ─▶ gate closed, nobody inside ─▶ cut ─▶ gate open
//	                                                                    │
//	   ops told ◀─ Committed ◀─ flush ◀─ record and images written ◀────┘
//
// One commit of a region is under way at a time; those who ask meanwhile share
// the next one. It runs on the region's committer goroutine (Pager.Commit: on
// the caller's), which holds turn.
//
// The pre-copy writes dirty pages to slots while everything goes on, until what
// is left fits in the copies that a cut may hold in memory. The cut copies all
// that is dirty: from when desc.cut is set no page becomes writable, so a
// goroutine whose next store is held can have no later store in the cut. Only a
// blocked thread that nobody with a P could let go on may pass.
//
// Images, and the record with their checksums, are on their way together; one
// flush makes all durable. If anything fails before that, the images that are
// whole become Loose again, the pages of the others are Dirty again, and the
// next commit takes them.

// cut is what one commit of one region holds.
type cut struct {
	r                 *Region
	ops               []*SyncOp
	length, minLength int64

	images  sync.WaitGroup // their writes
	running atomic.Int64   // frames of them

	mu      sync.Mutex
	entries []journal.Entry
	raw     []int // entries whose checksum has still to be read
	spoiled map[uint32]struct{}
	err     error // the first failed write
}

// errNoSlots: the journal has no room for what is dirty.
var errNoSlots = errors.New("no slots")

func (c *cut) add(w *slotWrite) {
	c.images.Add(1)
	c.running.Add(int64(len(w.pages)) * c.r.fpp)
	c.mu.Lock()
	for i, page := range w.pages {
		slot := w.slot + uint32(i)
		c.entries = append(c.entries, journal.Entry{Page: page, Slot: slot, CRC: *c.r.d.slotCRC(slot)})
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
			c.spoiled = map[uint32]struct{}{}
		}
		for i := range w.pages {
			c.spoiled[w.slot+uint32(i)] = struct{}{}
		}
		c.mu.Unlock()
	}
	c.images.Done()
}

// waitWindow bounds the memory of the copies.
func (c *cut) waitWindow() {
	for turn := 0; c.running.Load() >= writeWindow; turn++ {
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
		p.reapSome(64)
		pause(turn)
	}
	a.mu.Lock()
	c.ops, a.waiting = a.waiting, nil
	c.length, c.minLength = r.Len(), a.minLength
	a.minLength = c.length
	a.mu.Unlock()
	var list []dirtyPage
	for turn := 0; ; turn++ {
		list = p.collectDirty(list[:0], d, 0)
		slices.SortFunc(list, byPage)
		if _, full := r.writeSlots(list, writeSync, c); full {
			return errNoSlots
		}
		// What the cut has copied has no dirty bit any more.
		list = p.collectDirty(list[:0], d, 0)
		if !slices.ContainsFunc(list, func(e dirtyPage) bool { return c.misses(e.page) }) {
			break
		}
		if turn > 1000 {
			return fmt.Errorf("pager: pages cannot be write-protected: %w", ErrBudget)
		}
		p.reapSome(64)
		pause(turn)
	}
	if load64(&d.slotsLoose) > 0 {
		c.takeLoose()
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
	case stDirty, stUnlocking, stCopying, stWriting:
		// Writing: by the fault server. If the cut has a copy, a thread that
		// could not be held has come later.
		return !c.has(page)
	}
	return false
}

// takeLoose takes the images that are in slots already.
func (c *cut) takeLoose() {
	d := c.r.d
	for s := range bare.Load32(&d.slotCount) {
		p := d.slotWord(s)
		for turn := 0; ; turn++ {
			w := bare.Load64(p)
			if w&slotState == slotFilling {
				// The fault server's, for a store that could not be held.
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
}

// readRaw computes the checksums of images that the fault server has written.
func (c *cut) readRaw() error {
	if len(c.raw) == 0 {
		return nil
	}
	r := c.r
	buf := bufs.get(1 << r.shift)
	defer bufs.put(buf)
	for len(c.raw) > 0 {
		e := &c.entries[c.raw[0]]
		op := aio.Op{Code: aio.Read, Off: r.atomic.j.SlotOffset(e.Slot), Buf: buf.mem[:1<<r.shift]}
		err := r.transfer(&op)
		if err == nil && op.N < len(op.Buf) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return r.fault("read", e.Page, err)
		}
		e.CRC = journal.CRC32C(op.Buf)
		*r.d.slotCRC(e.Slot) = e.CRC
		c.raw = c.raw[1:]
	}
	return nil
}

// transfer does ops on the journal's store and waits, repeating what fails with
// an error that passes (but no flush). The first error is returned.
func (r *Region) transfer(ops ...*aio.Op) error {
	var wg sync.WaitGroup
	wg.Add(len(ops))
	for _, op := range ops {
		var tries uint32
		op.Done = func(op *aio.Op) {
			if op.Code == aio.Flush || !r.retry(op, &tries, func() {
				*op = aio.Op{Code: op.Code, Off: op.Off, Buf: op.Buf, Done: op.Done}
				r.write.side.Start(r.p.engine, []*aio.Op{op})
			}) {
				wg.Done()
			}
		}
	}
	r.write.side.Start(r.p.engine, ops)
	wg.Wait()
	for _, op := range ops {
		if op.Err != nil {
			return op.Err
		}
		if op.Code == aio.Write && op.N < len(op.Buf) {
			return io.ErrShortWrite
		}
	}
	return nil
}

// finish makes the cut durable, or takes it back.
func (c *cut) finish() error {
	r, a := c.r, c.r.atomic
	err := c.readRaw()
	a.mu.Lock()
	same := c.length == a.length && c.minLength == a.length
	a.mu.Unlock()
	if err == nil && len(c.entries) == 0 && same {
		return a.flushError() // nothing has changed
	}
	var rec *journal.Record
	if err == nil {
		rec, err = c.record()
	}
	if err == nil {
		err = r.transfer(rec.Ops...)
	}
	c.images.Wait()
	if err == nil {
		err = c.err
	}
	if err == nil {
		r.p.stats.flushes.Add(1)
		if err = r.transfer(&aio.Op{Code: aio.Flush}); err != nil {
			err = a.flushFailed(err)
		}
	}
	if err != nil {
		if rec != nil {
			a.j.Abandoned(rec)
		}
		c.undo()
		if errors.Is(err, aio.ErrClosed) {
			return ErrClosed
		}
		return err
	}
	a.j.Committed(rec)
	a.mu.Lock()
	for _, e := range c.entries {
		bare.Store64(r.d.slotWord(e.Slot), e.Page<<slotPageShift|slotCommitted)
	}
	a.log = append(a.log, journal.Commit{Seq: rec.Seq, Length: c.length, MinLength: c.minLength, Entries: c.entries})
	a.length = c.length
	first := len(a.log) == 1
	a.mu.Unlock()
	r.p.stats.commits.Add(1)
	if first {
		a.startClock()
	}
	return nil
}

// record encodes the commit. If the ring is full a checkpoint makes room.
func (c *cut) record() (*journal.Record, error) {
	a := c.r.atomic
	for tries := 0; ; tries++ {
		rec, err := a.j.Record(journal.Commit{Length: c.length, MinLength: c.minLength, Entries: c.entries})
		switch {
		case !errors.Is(err, journal.ErrFull):
			return rec, err
		case tries > 0:
			return nil, fmt.Errorf("%w: a commit of %d pages: %w", ErrBudget, len(c.entries), err)
		}
		if err := a.checkpoint(context.Background()); err != nil {
			return nil, err
		}
	}
}

// undo takes the cut back.
func (c *cut) undo() {
	a := c.r.atomic
	c.images.Wait()
	for i, e := range c.entries {
		if _, gone := c.spoiled[e.Slot]; gone {
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

// tell ends the ops of the cut.
func (c *cut) tell(err error) {
	ops := c.ops
	c.ops = nil
	for _, s := range ops {
		if err != nil {
			s.fail(err)
		}
		s.finish()
	}
}

// commitTogether commits regions (ascending descriptors) of which the caller
// has the turns, with one cut over all of them. stop ends the wait for the
// gates. The ops that wait are told. Each region's error is at its place.
func (p *Pager) commitTogether(rs []*Region, stop func() error) []error {
	errs := make([]error, len(rs))
	failAll := func(err error) []error {
		for i, r := range rs {
			errs[i] = err
			r.atomic.failWaiting(err)
		}
		return errs
	}
	gaveUp := func(err error) []error { // which is not the others' affair
		for i := range rs {
			errs[i] = err
		}
		return errs
	}
	for tries := 0; ; tries++ {
		for _, r := range rs {
			if err := r.prepare(tries); err != nil {
				return failAll(err)
			}
		}
		if err := closeGates(rs, stop); err != nil {
			return gaveUp(err)
		}
		cuts := make([]*cut, len(rs))
		var err error
		for _, r := range rs {
			r.atomic.cutting.Store(true)
			bare.Store32(&r.d.cut, 1)
		}
		for i, r := range rs {
			cuts[i] = &cut{r: r}
			if e := cuts[i].take(); e != nil {
				err = e
				cuts = cuts[:i+1]
				break
			}
		}
		for _, r := range rs {
			bare.Store32(&r.d.cut, 0)
			r.atomic.cutting.Store(false)
		}
		openGates(rs)
		p.serveLine() // stores that were held
		if err != nil {
			for _, c := range cuts {
				c.undo()
				r := c.r
				r.atomic.mu.Lock()
				r.atomic.waiting = append(c.ops, r.atomic.waiting...)
				r.atomic.mu.Unlock()
			}
			if err == errNoSlots && tries < 3 {
				continue
			}
			if err == errNoSlots {
				err = fmt.Errorf("%w: what is not committed does not fit the journal (JournalOptions.Limit)", ErrBudget)
			}
			return failAll(err)
		}
		var wg sync.WaitGroup
		for i, c := range cuts[1:] {
			wg.Go(func() { errs[i+1] = c.finish() })
		}
		errs[0] = cuts[0].finish()
		wg.Wait()
		for i, c := range cuts {
			c.tell(errs[i])
			c.r.atomic.poke()
		}
		return errs
	}
}

// prepare makes room for a cut, and writes beforehand what is too much for one.
func (r *Region) prepare(tries int) error {
	a, p, d := r.atomic, r.p, r.d
	if err := a.flushError(); err != nil {
		return err
	}
	window := max(1, int(writeWindow/r.fpp))
	for round := 0; ; round++ {
		list := p.collectDirty(nil, d, 0)
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

func byPage(a, b dirtyPage) int {
	if a.page < b.page {
		return -1
	}
	return 1
}

// flushError is the failed flush, which is kept.
func (a *atomicState) flushError() error {
	ws := &a.r.write
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.flushErr
}

func (a *atomicState) flushFailed(err error) error {
	if errors.Is(err, aio.ErrClosed) {
		return ErrClosed
	}
	err = a.r.fault("flush", 0, err)
	ws := &a.r.write
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.flushErr == nil {
		ws.flushErr = err
	}
	return err
}

// failWaiting ends the ops that no cut has taken.
func (a *atomicState) failWaiting(err error) {
	a.mu.Lock()
	ops := a.waiting
	a.waiting = nil
	a.mu.Unlock()
	for _, s := range ops {
		s.fail(err)
		s.finish()
	}
}

// committer is the goroutine that commits.
func (a *atomicState) committer() {
	defer a.wg.Done()
	for {
		select {
		case <-a.wake:
		case <-a.stop:
			a.failWaiting(ErrClosed)
			return
		}
		a.turn <- struct{}{}
		for a.given() == nil {
			a.r.p.commitTogether([]*Region{a.r}, a.given)
		}
		<-a.turn
	}
}

// errNobody: all who wanted the commit have gone.
var errNobody = errors.New("pager: nobody waits for the commit")

// given is nil as long as somebody wants a commit. It ends the ops of those who
// have gone.
func (a *atomicState) given() error {
	if a.r.closing.Load() {
		a.failWaiting(ErrClosed)
		return ErrClosed
	}
	var gone []*SyncOp
	a.mu.Lock()
	a.waiting = slices.DeleteFunc(a.waiting, func(s *SyncOp) bool {
		if s.gone.Load() {
			gone = append(gone, s)
			return true
		}
		return false
	})
	n := len(a.waiting)
	a.mu.Unlock()
	for _, s := range gone {
		s.fail(errNobody)
		s.finish()
	}
	if n == 0 {
		return errNobody
	}
	return nil
}

// request queues an op for the next commit. The region has been entered.
func (a *atomicState) request(s *SyncOp) {
	a.mu.Lock()
	a.waiting = append(a.waiting, s)
	a.mu.Unlock()
	a.wakeUp()
}

// wakeUp makes the committer look whether somebody waits.
func (a *atomicState) wakeUp() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Commit makes all changes of an Atomic region durable whose Update, WriteAt,
// Resize, Discard or write pin ended before the call; after a crash they are
// there whole. It waits for those that are running, and holds new ones for a
// moment. Stores to Bytes outside of these are in the commit or not, a
// goroutine's later ones never without its earlier ones as far as it can be
// parked. Concurrent callers share a commit. ctx ends the wait, not a commit
// that has taken its cut.
//
// Errors: ErrNotSupported if the region is not Atomic; ErrBusy from within an
// Update, or by a goroutine that holds a write pin; ErrBudget if what is not
// committed does not fit the journal; *FaultError of a failed write (everything
// stays as it was, the next Commit tries again) or of a failed flush (which
// every later Commit returns as well, until the region is mapped anew);
// ctx.Err; ErrClosed.
func (r *Region) Commit(ctx context.Context) error {
	if r.atomic == nil {
		if r.opt.Durability == Atomic {
			return ErrReadOnly
		}
		return fmt.Errorf("pager: Commit of a region that is not Atomic: %w", ErrNotSupported)
	}
	s, err := r.commitOp(-1)
	if err != nil {
		return err
	}
	err = s.Wait(ctx)
	if err != nil && err == ctx.Err() {
		s.gone.Store(true)
	}
	return err
}

// commitOp starts an asynchronous commit.
func (r *Region) commitOp(efd int) (*SyncOp, error) {
	if r.closing.Load() {
		return nil, ErrClosed
	}
	if r.atomic.gate.isInside() {
		return nil, errInside
	}
	s, err := r.newSyncOp(efd)
	if err != nil {
		return nil, err
	}
	r.atomic.request(s)
	return s, nil
}

// Commit commits several Atomic regions of this pager with one cut over all of
// them: an Update of one and an Update of another that ended before the call
// are both in it. When it returns nil, each region's commit is durable. It is
// not atomic across regions: a crash before it returns, or an error, may leave
// it done in some and not in others.
//
// Errors as Region.Commit, joined.
func (p *Pager) Commit(ctx context.Context, regions ...*Region) error {
	rs := slices.Clone(regions)
	slices.SortFunc(rs, func(a, b *Region) int { return int(a.d.index) - int(b.d.index) })
	rs = slices.Compact(rs)
	for _, r := range rs {
		switch {
		case r.p != p:
			return errors.New("pager: Commit of another pager's region")
		case r.atomic == nil:
			return fmt.Errorf("pager: Commit of a region that is not Atomic: %w", ErrNotSupported)
		case r.atomic.gate.isInside():
			return errInside
		}
	}
	for i, r := range rs {
		if !r.enter() {
			for _, o := range rs[:i] {
				o.leave()
			}
			return ErrClosed
		}
	}
	defer func() {
		for _, r := range rs {
			r.leave()
		}
	}()
	if len(rs) == 0 {
		return nil
	}
	// In ascending order, so that two callers do not each have what the other
	// wants. A committer has one and wants no other.
	for i, r := range rs {
		var err error
		select {
		case r.atomic.turn <- struct{}{}:
			continue
		case <-ctx.Done():
			err = ctx.Err()
		case <-r.atomic.stop:
			err = ErrClosed
		}
		for _, o := range rs[:i] {
			<-o.atomic.turn
		}
		return err
	}
	done := make(chan error, 1)
	for _, r := range rs {
		r.active.Add(1)
	}
	go func() {
		err := errors.Join(p.commitTogether(rs, func() error {
			for _, r := range rs {
				if r.closing.Load() {
					return ErrClosed
				}
			}
			return ctx.Err()
		})...)
		for _, r := range rs {
			<-r.atomic.turn
			r.atomic.wakeUp()
			r.leave()
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
