package store

import (
	"errors"
	"io"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Writing sums
//
// One goroutine writes them. It takes all writes that have come meanwhile
// together:
//
//	sums:  {new, old} for every block ─ write ─ flush ┐
//	data:                                             └─ write ─ Done ┐
//	data flush, whoever asks for it:                                  └─ {new, new}
//
// The last step is made in memory and written when there is time: until then
// the old contents would be taken for good after a crash, which they are not
// any more, but nothing that is good is ever taken for bad. A block that is
// written a second time before a flush would need three sums; it has the data
// flushed first.

// sumWrite is a write in the queue.
type sumWrite struct {
	op *aio.Op
	e  aio.Engine
}

// sumCall is a Truncate or Discard in the queue.
type sumCall struct {
	fn   func() error
	err  error
	done chan struct{}
}

func (c *Checksummed) enqueue(w []sumWrite) {
	c.mu.Lock()
	c.queue = append(c.queue, w...)
	c.wake.Signal()
	c.mu.Unlock()
}

// call has fn run by the scribe's goroutine.
func (c *Checksummed) call(fn func() error) error {
	x := &sumCall{fn: fn, done: make(chan struct{})}
	c.mu.Lock()
	c.calls = append(c.calls, x)
	c.wake.Signal()
	c.mu.Unlock()
	<-x.done
	return x.err
}

// write is the goroutine.
func (c *Checksummed) write() {
	defer close(c.done)
	c.mu.Lock()
	for {
		switch {
		case len(c.queue) > 0:
			w := c.queue
			c.queue = nil
			c.mu.Unlock()
			c.writeAll(w)
			c.mu.Lock()
		case len(c.calls) > 0:
			x := c.calls[0]
			c.calls = c.calls[1:]
			c.mu.Unlock()
			x.err = x.fn()
			close(x.done)
			c.mu.Lock()
		case len(c.stale) > 0 && c.err == nil && c.Writable() && (c.closing || len(c.stale) >= sumLazy):
			pages := slices.Collect(maps.Keys(c.stale))
			c.mu.Unlock()
			err := c.writePages(pages)
			if err == nil && c.closing {
				err = c.scribe.flush(c.sums)
			}
			c.mu.Lock()
			if err != nil {
				clear(c.stale) // they are good as they are, only not exact
				if c.closing {
					c.scribe.last = c.fail("write the sums", err)
				}
			}
		case c.closing:
			c.mu.Unlock()
			return
		default:
			c.wake.Wait()
		}
	}
}

// sumLazy is how many settled pages of sums (each for 2 MiB of data) may wait
// to be written.
const sumLazy = 64

// writeAll writes the sums of the ops and starts them.
func (c *Checksummed) writeAll(list []sumWrite) {
	err := c.sticky()
	size := c.data.Size()
	var again bool
	type change struct {
		block    int64
		sum, old uint32
	}
	changes := make([][]change, len(list))
	c.mu.Lock()
	for _, w := range list {
		for at := 0; at < len(w.op.Buf); at += SumBlock {
			if o := c.open[(w.op.Off+int64(at))/SumBlock]; o != nil && o.state != blockFailed {
				again = true
			}
		}
	}
	c.mu.Unlock()
	if again && err == nil {
		err = c.flushData()
	}
	pages := map[int64]struct{}{}
	if err == nil {
		for i, w := range list {
			for at := int64(0); at < int64(len(w.op.Buf)) && w.op.Off+at < size; at += SumBlock {
				b := w.op.Buf[at:min(at+SumBlock, at+size-w.op.Off-at)]
				changes[i] = append(changes[i], change{block: (w.op.Off + at) / SumBlock, sum: sumOf(b)})
			}
		}
		c.mu.Lock()
		for i := range changes {
			for k := range changes[i] {
				x := &changes[i][k]
				x.old = uint32(atomic.LoadUint64(c.entry(x.block)))
				if o := c.open[x.block]; o != nil {
					x.old = o.old // a write failed before: what it was to write is not there for sure
				}
				c.seq++
				c.open[x.block] = &openBlock{old: x.old, seq: c.seq}
				atomic.StoreUint64(c.entry(x.block), pair(x.sum, x.old))
				pages[pageOf(x.block)] = struct{}{}
			}
		}
		c.mu.Unlock()
		err = c.writePages(slices.Collect(maps.Keys(pages)))
		if err == nil {
			err = c.flushSums()
		}
	}
	for i, w := range list {
		if err != nil {
			c.mu.Lock()
			for _, x := range changes[i] {
				// The data is as it was. Its sums may be the new ones on disk:
				// they have the old one with them.
				atomic.StoreUint64(c.entry(x.block), pair(x.old, x.old))
				delete(c.open, x.block)
				c.stale[pageOf(x.block)] = struct{}{}
			}
			c.mu.Unlock()
			finish(w.op, 0, err)
			continue
		}
		d := &sumWritten{whole: w.op, c: c}
		d.Op = aio.Op{Code: aio.Write, Off: w.op.Off, Buf: w.op.Buf, Done: sumWriteDone, Arg: d}
		c.data.Start(w.e, []*aio.Op{&d.Op})
	}
}

// sumWritten is a write of data on its way.
type sumWritten struct {
	aio.Op
	whole *aio.Op
	c     *Checksummed
}

func sumWriteDone(op *aio.Op) {
	d := op.Arg.(*sumWritten)
	c := d.c
	ok := op.Err == nil && op.N == len(op.Buf)
	c.mu.Lock()
	for at := int64(0); at < int64(len(op.Buf)); at += SumBlock {
		block := (op.Off + at) / SumBlock
		o := c.open[block]
		if o == nil {
			continue // past the end
		}
		if !ok {
			o.state = blockFailed
			continue
		}
		o.state = blockWritten
		e := c.entry(block)
		now := uint32(atomic.LoadUint64(e))
		atomic.StoreUint64(e, pair(now, now))
		delete(c.torn, block)
	}
	c.mu.Unlock()
	finish(d.whole, op.N, op.Err)
}

// written is what a flush that begins now makes durable.
func (c *Checksummed) written() map[int64]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := map[int64]uint64{}
	for block, o := range c.open {
		if o.state == blockWritten {
			m[block] = o.seq
		}
	}
	return m
}

// settle forgets the old sums of blocks that a flush has made durable.
func (c *Checksummed) settle(m map[int64]uint64) {
	c.mu.Lock()
	for block, seq := range m {
		if o := c.open[block]; o != nil && o.seq == seq && o.state == blockWritten {
			delete(c.open, block)
			c.stale[pageOf(block)] = struct{}{}
		}
	}
	if len(c.stale) >= sumLazy {
		c.wake.Signal()
	}
	c.mu.Unlock()
}

func (c *Checksummed) sticky() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// stick keeps the error of a flush: nobody knows what it has lost.
func (c *Checksummed) stick(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	return err
}

// flushData flushes the data for the scribe.
func (c *Checksummed) flushData() error {
	m := c.written()
	if err := c.scribe.flush(c.data); err != nil {
		return c.stick(c.fail("flush", err))
	}
	c.settle(m)
	return nil
}

func (c *Checksummed) flushSums() error {
	if err := c.scribe.flush(c.sums); err != nil {
		return c.stick(c.fail("flush the sums", err))
	}
	return nil
}

// sumFlush is a flush on its way.
type sumFlush struct {
	aio.Op
	whole *aio.Op
	c     *Checksummed
	what  map[int64]uint64
}

func (c *Checksummed) startFlush(e aio.Engine, op *aio.Op) {
	if err := c.sticky(); err != nil {
		finish(op, 0, err)
		return
	}
	f := &sumFlush{whole: op, c: c, what: c.written()}
	f.Op = aio.Op{Code: aio.Flush, Done: sumFlushDone, Arg: f}
	c.data.Start(e, []*aio.Op{&f.Op})
}

func sumFlushDone(op *aio.Op) {
	f := op.Arg.(*sumFlush)
	if op.Err == nil {
		f.c.settle(f.what)
	} else {
		_ = f.c.stick(op.Err)
	}
	finish(f.whole, op.N, op.Err)
}

// writePages writes pages of the sums as they should be now.
func (c *Checksummed) writePages(pages []int64) error {
	slices.Sort(pages)
	for i := 0; i < len(pages); {
		k := 0
		c.mu.Lock()
		for i+k < len(pages) && pages[i+k] == pages[i]+int64(k) && k < len(c.scribe.buf)/sumPage {
			c.compose(c.scribe.buf[k*sumPage:], pages[i+k])
			delete(c.stale, pages[i+k])
			k++
		}
		c.mu.Unlock()
		if err := c.scribe.write(c.sums, c.scribe.buf[:k*sumPage], sumPage+pages[i]*sumPage); err != nil {
			return c.fail("write the sums", err)
		}
		i += k
	}
	return nil
}

// Truncate implements Store.
func (c *Checksummed) Truncate(size int64) error {
	if !c.Writable() {
		return c.fail("truncate", ErrReadOnly)
	}
	return c.call(func() error { return c.truncate(size) })
}

func (c *Checksummed) truncate(size int64) error {
	old := c.data.Size()
	if size < 0 || blocks(size)*8 > int64(len(c.mem)) {
		return c.fail("truncate", invalid("to %d bytes", size))
	}
	if size >= old {
		if want := SumsSize(size); c.sums.Size() < want {
			if err := c.sums.Truncate(want); err != nil {
				return c.fail("grow the sums", err)
			}
		}
		if err := commit(c.mem, blocks(size)*8); err != nil {
			return c.fail("grow the table", err)
		}
		c.n.Store(max(c.n.Load(), blocks(size)))
		return c.data.Truncate(size)
	}
	return c.change(size, blocks(old)*SumBlock, func() error { return c.data.Truncate(size) })
}

// Discard implements Store.
func (c *Checksummed) Discard(off, n int64) error {
	if !c.Writable() {
		return c.fail("discard", ErrReadOnly)
	}
	if err := checkRange(off, n); err != nil {
		return err
	}
	return c.call(func() error {
		end := min(off+n, c.data.Size())
		if off >= end {
			return nil
		}
		return c.change(off, end, func() error { return c.data.Discard(off, n) })
	})
}

// change is a change of [off, end) to zeros, made by fn. It is settled when it
// returns. A block of which a part stays, and which is wrong, stays wrong: the
// recovery of a journal cuts the data through a block that a crash has torn
// before it writes it whole.
func (c *Checksummed) change(off, end int64, fn func() error) error {
	if err := c.sticky(); err != nil {
		return err
	}
	if err := c.flushData(); err != nil { // no block of the range has three sums
		return err
	}
	first, last := off/SumBlock, (end-1)/SumBlock
	sums := map[int64]uint32{}    // of blocks that do not become all zeros
	wrong := map[int64]struct{}{} // of these, those that have none
	for _, block := range []int64{first, last} {
		at := block * SumBlock
		lo, hi := max(0, off-at), min(SumBlock, end-at)
		valid := min(SumBlock, c.data.Size()-at)
		if lo <= 0 && hi >= valid {
			continue
		}
		b := c.scribe.buf[:SumBlock]
		n, err := c.scribe.readSome(c.data, b, at)
		if err == nil {
			err = c.check(b[:n], at)
		}
		if errors.Is(err, ErrChecksum) {
			wrong[block] = struct{}{}
			continue
		}
		if err != nil {
			return err
		}
		clear(b[lo:min(hi, int64(n))])
		sums[block] = sumOf(b[:n])
	}
	pages := map[int64]struct{}{}
	c.mu.Lock()
	for block := first; block <= last; block++ {
		if _, is := wrong[block]; is {
			continue
		}
		e := c.entry(block)
		v := atomic.LoadUint64(e)
		old := uint32(v)
		if o := c.open[block]; o != nil {
			old = o.old
			delete(c.open, block)
		}
		if s := sums[block]; v != pair(s, s) {
			atomic.StoreUint64(e, pair(s, old))
			pages[pageOf(block)] = struct{}{}
		}
	}
	c.mu.Unlock()
	if len(pages) > 0 {
		if err := c.writePages(slices.Collect(maps.Keys(pages))); err != nil {
			return err
		}
		if err := c.flushSums(); err != nil {
			return err
		}
	}
	if err := fn(); err != nil {
		return err // either contents are good
	}
	if err := c.flushData(); err != nil {
		return err
	}
	c.mu.Lock()
	for block := first; block <= last; block++ {
		if _, is := wrong[block]; is {
			continue
		}
		if e := c.entry(block); atomic.LoadUint64(e) != 0 {
			atomic.StoreUint64(e, pair(sums[block], sums[block]))
		}
		delete(c.torn, block)
	}
	for page := range pages {
		c.stale[page] = struct{}{}
	}
	c.mu.Unlock()
	return nil
}

// scribe does I/O and waits for it, with an engine of its own.
type scribe struct {
	e    aio.Engine
	mem  []byte
	buf  []byte // of it, what is used
	last error  // of the last look at the sums, in Close
}

func (s *scribe) open() (err error) {
	if s.e, err = aio.Open(aio.Options{Kind: aio.Threads, Depth: 1}); err != nil {
		return err
	}
	s.mem, err = reserve(1 << 18)
	if err == nil {
		s.buf = s.mem[:1<<18]
	}
	return err
}

func (s *scribe) close() error {
	if s.e == nil {
		return nil
	}
	err := s.e.Close()
	if s.mem != nil {
		err = errors.Join(err, unreserve(s.mem))
	}
	s.e, s.mem, s.buf = nil, nil, nil
	return err
}

// readSome reads to b, or up to the end of the store.
func (s *scribe) readSome(st Store, b []byte, off int64) (int, error) {
	op := &aio.Op{Code: aio.Read, Off: off, Buf: b}
	err := await(st, s.e, op)
	return op.N, err
}

func (s *scribe) read(st Store, b []byte, off int64) error {
	n, err := s.readSome(st, b, off)
	if err == nil && n < len(b) {
		err = errShort
	}
	return err
}

func (s *scribe) write(st Store, b []byte, off int64) error {
	op := &aio.Op{Code: aio.Write, Off: off, Buf: b}
	err := await(st, s.e, op)
	if err == nil && op.N < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

func (s *scribe) flush(st Store) error { return await(st, s.e, &aio.Op{Code: aio.Flush}) }

var errShort = io.ErrUnexpectedEOF
