//go:build linux

package pager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

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
// the next one. It runs on the region's committer goroutine, or on that of a
// caller who waits to the end in any case, which holds turn (committer.go). The
// pre-copy and the cut are in cut.go.
//
// Images are on their way when the cut has copied them (a few go along with the record), and
// the record follows with their checksums, which are computed meanwhile; whoever has waited for them flushes,
// which makes all durable. The last images, the record and the flush are carried
// out by the committing goroutine itself (onSpot): a commit of a few pages
// waits for two system calls and for nobody else. If anything fails before the flush, the images that are whole become
// Loose again, the pages of the others are Dirty again, and the next commit
// takes them.

// commitTogether commits regions (ascending descriptors) of which the caller
// has the turns, with one cut over all of them. stop ends the wait for the
// gates. The ops that wait are told. Each region's error is at its place; if one
// is, and no cut was taken, nothing has become of the others' either.
func (p *Pager) commitTogether(rs []*Region, stop func() error) []error {
	errs := make([]error, len(rs))
	// What waits for the region that keeps the others from being committed fails
	// with it; what waits for these goes on waiting.
	fail := func(i int, err error) []error {
		errs[i] = err
		rs[i].atomic.failWaiting(err)
		return errs
	}
	gaveUp := func(err error) []error { // which is not the others' affair
		for i := range rs {
			errs[i] = err
		}
		return errs
	}
	for tries := 0; ; tries++ {
		for i, r := range rs {
			if err := r.prepare(tries); err != nil {
				return fail(i, err)
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
			cuts[i] = r.newCut()
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
			return fail(len(cuts)-1, err)
		}
		var wg sync.WaitGroup
		for i, c := range cuts[1:] {
			wg.Go(func() { errs[i+1] = c.finish() })
		}
		errs[0] = cuts[0].finish()
		wg.Wait()
		for i, c := range cuts {
			c.tell(errs[i])
			c.r.atomic.pokeIfDue()
		}
		return errs
	}
}

// finish makes the cut durable, or takes it back.
func (c *cut) finish() error {
	c.write()
	c.await()
	c.flush(c.r.p.onSpot.engine(c.r.p.engine))
	c.await()
	return c.conclude()
}

// write starts the write of the record. The images are on their way.
func (c *cut) write() {
	r, a := c.r, c.r.atomic
	c.failed = c.readRaw()
	a.mu.Lock()
	same := c.length == a.length && c.minLength == a.length
	a.mu.Unlock()
	if c.failed == nil && len(c.entries) == 0 && same {
		c.nothing = true
		return
	}
	if c.failed == nil {
		c.rec, c.failed = c.record()
	}
	if c.failed != nil {
		return
	}
	c.writes.Add(len(c.rec.Ops))
	r.repeating(c.rec.Ops, c.writes.Done)
	c.track = tracked{kind: WedgedWrite, r: r, n: r.Len(), name: "commit record"}
	r.p.tracks.add(&c.track)
	c.begin(c.rec.Ops...)
}

// flush starts the flush through e, when all writes of the cut have ended.
func (c *cut) flush(e aio.Engine) {
	r := c.r
	if c.rec == nil {
		return
	}
	r.p.tracks.remove(&c.track)
	if c.failed = cmp.Or(failed(c.rec.Ops), c.err); c.failed != nil {
		return
	}
	r.p.stats.flushes.Add(1)
	c.track = tracked{kind: WedgedFlush, r: r, n: r.Len(), name: "journal"}
	r.p.tracks.add(&c.track)
	c.writes.Add(1)
	c.flushed, c.beside = &aio.Op{Code: aio.Flush, Done: c.flushDone}, r.write.flushes.begin()
	r.write.side.Start(e, []*aio.Op{c.flushed})
}

func (c *cut) flushDone(op *aio.Op) {
	r := c.r
	r.p.tracks.remove(&c.track)
	if op.Err != nil {
		c.failed = r.atomic.flushFailed(op.Err)
	}
	r.write.flushes.end(c.beside, c.writes.Done)
}

// conclude tells what has become of the cut, when its flush has ended.
func (c *cut) conclude() error {
	r, a := c.r, c.r.atomic
	if c.nothing {
		return a.flushError() // nothing has changed
	}
	rec, err := c.rec, c.failed
	if err == nil {
		err = a.flushError() // one beside it may have taken the blame for what is ours
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
	if len(a.log) == 1 {
		a.startClock()
	}
	a.mu.Unlock()
	r.p.stats.commits.Add(1)
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

// onSpot is the engine of goroutines that wait for what they start.
type onSpot struct {
	once sync.Once
	e    aio.Engine // nil: nobody has needed it
}

func (o *onSpot) engine(below aio.Engine) aio.Engine {
	o.once.Do(func() { o.e = aio.InPlace(below) })
	return o.e
}

func (o *onSpot) close() error {
	o.once.Do(func() {})
	if o.e == nil {
		return nil
	}
	return o.e.Close()
}

// transfer does ops on the journal's store and waits, repeating what fails with
// an error that passes (but no flush). The goroutine carries them out itself as far
// as the store lets it. The first error is returned.
func (r *Region) transfer(ops ...*aio.Op) error {
	var wg sync.WaitGroup
	wg.Add(len(ops))
	r.repeating(ops, wg.Done)
	r.write.side.Start(r.p.onSpot.engine(r.p.engine), ops)
	wg.Wait()
	return failed(ops)
}

// repeating makes done be called when an op on the journal's store has ended and
// need not be repeated.
func (r *Region) repeating(ops []*aio.Op, done func()) {
	for _, op := range ops {
		var tries uint32
		op.Done = func(op *aio.Op) {
			if !r.retry(op, &tries, func() {
				*op = aio.Op{Code: op.Code, Off: op.Off, Buf: op.Buf, Done: op.Done}
				r.write.side.Start(r.p.engine, []*aio.Op{op})
			}) {
				done()
			}
		}
	}
}

// failed is the first error of ops that have ended.
func failed(ops []*aio.Op) error {
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
