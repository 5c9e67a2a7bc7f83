//go:build linux

package pager

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/aio"
)

// Reading pages
//
// The requester claims pages into a batch and submits it himself: no other
// goroutine, and so no other core, has to wake for a read to start. A load is
// one I/O over consecutive pages. How many may be with the store at a time is
// in flight.go. Completions run on whichever goroutine reaps, and map the pages
// (install.go).
const (
	demand = iota
	ahead  // prefetch: nobody waits yet

	maxRun   = 1 << 20 // bytes of one read
	groupMax = 64      // pages installed with one COPY: at 256 KiB the call itself costs nothing any more
)

// load is one read of consecutive claimed pages.
type load struct {
	op     aio.Op
	next   *load
	r      *Region
	first  uint64
	gens   []uint32 // generation of each page's claim
	kind   int
	marks  bool // there may be markers among them
	from   source
	at     int64  // where in from the first page is
	stored uint64 // bytes the store had when the page was claimed
	begun  time.Time
	buf    *buffer
	tries  uint32 // that were repeated, see retry.go
	seat   uint64 // where the rescuer finds it, 0: nowhere
	alone  bool   // it rings the Bell, see alone.go
	stays  bool   // what it reads is copied, not moved; see move.go
	kept   bool   // its buffer is a marker's, who may have moved it
}

var loadPool = sync.Pool{New: func() any { return new(load) }}

// batch is what one request is about to submit.
type batch struct {
	loads []*load
	ops   []*aio.Op
	first uint64 // the first page that missed, for predict
	count int    // pages that missed
	apart bool   // the next page begins a read of its own
	mark  uint64 // a marker that was touched, plus one; 0: none
}

var batchPool = sync.Pool{New: func() any { return new(batch) }}

func newBatch() *batch { return batchPool.Get().(*batch) }

func (b *batch) free() {
	clear(b.loads)
	clear(b.ops)
	b.loads, b.ops, b.count, b.apart, b.mark = b.loads[:0], b.ops[:0], 0, false, 0
	batchPool.Put(b)
}

func (b *batch) misses() bool { return b.count > 0 }

// add appends a claimed page, to the last load if it is its neighbour, and
// returns the load.
func (b *batch) add(r *Region, page uint64, gen uint32, kind int) *load {
	if kind == demand {
		if b.count == 0 {
			b.first = page
		}
		b.count++
	}
	from, at := r.sourceOf(page)
	if k := len(b.loads) - 1; k >= 0 && !b.apart {
		l := b.loads[k]
		n := uint64(len(l.gens))
		if l.r == r && l.kind == kind && l.from == from && l.first+n == page && l.at+int64(n<<r.shift) == at && (n+1)<<r.shift <= maxRun {
			l.gens = append(l.gens, gen)
			if kind == demand {
				l.sit()
			}
			return l
		}
	}
	b.apart = false
	r.active.Add(1) // until landed
	if kind == ahead {
		r.p.aheadLoads.Add(1)
	}
	l := loadPool.Get().(*load)
	l.r, l.first, l.kind, l.from, l.at = r, page, kind, from, at
	l.stored = bare.Load64(&r.d.stored)
	l.gens = append(l.gens, gen)
	if kind == demand {
		l.sit()
	}
	b.loads = append(b.loads, l)
	return l
}

// submit starts the batch's reads and frees the batch.
func (p *Pager) submit(b *batch) {
	for _, l := range b.loads {
		l.begun = time.Now()
		p.launch(l, b)
	}
	if b.misses() {
		rescueLater()
	}
	lead := b.misses() && !p.single() && p.lead()
	p.flushBatch(b)
	b.free()
	if lead {
		p.gather.yield()
		p.gather.flush()
	}
	// Whatever has finished meanwhile is taken along: it saves its reaper a
	// wake-up, and costs no system call when there is nothing. (But not while the
	// reads that have just been gathered wait for their leader, who may be the caller.)
	if !p.gather.led.Load() && !p.crowded() {
		p.reapSome(8)
	}
}

// bytes is how much l reads.
func (l *load) bytes() int64 { return int64(len(l.gens)) << l.r.shift }

// launch makes l ready to go with b, or queues it while the queue depth is
// used up.
func (p *Pager) launch(l *load, b *batch) {
	if !p.takeOff(l) {
		q := &p.queue
		q.mu.Lock()
		q.push(l)
		q.mu.Unlock()
		// A completion between the count and the push did not see it.
		p.unqueue(b)
		return
	}
	p.ready(l, b)
}

// ready gives l its buffer and puts its op into b.
func (p *Pager) ready(l *load, b *batch) {
	n := len(l.gens) << l.r.shift
	l.buf = bufs.get(n)
	l.op = aio.Op{Code: aio.Read, Off: l.at, Buf: l.buf.mem[:n], Later: l.kind == ahead, Done: loadDone, Arg: l}
	if l.alone {
		l.op.Bell = p.alone.bell
	}
	b.ops = append(b.ops, &l.op)
}

// flushBatch hands b's ops to their stores, those of one store together.
func (p *Pager) flushBatch(b *batch) {
	for i := 0; i < len(b.ops); {
		l := b.ops[i].Arg.(*load)
		k := i + 1
		if l.from == fromZeros {
			clear(l.op.Buf)
			l.op.N = len(l.op.Buf)
			p.finish(l, nil)
			i = k
			continue
		}
		for k < len(b.ops) {
			if o := b.ops[k].Arg.(*load); o.r != l.r || o.from != l.from {
				break
			}
			k++
		}
		l.r.sourceStore(l.from).Start(&p.gather, b.ops[i:k])
		i = k
	}
	clear(b.ops)
	b.ops = b.ops[:0]
}

// loadDone is the Done of every read.
func loadDone(op *aio.Op) {
	l := op.Arg.(*load)
	p := l.r.p
	if op.Err != nil && l.r.retry(op, &l.tries, func() { p.readAgain(l) }) {
		return
	}
	p.stats.reads.Add(1)
	p.stats.readBytes.Add(int64(op.N))
	p.stats.readLatency.add(time.Since(l.begun))
	err := op.Err
	if err == nil {
		// What the store should have; the rest of the last page is zeros.
		stored := int64(l.stored)
		want := max(0, min(int64(len(op.Buf)), stored-op.Off))
		if l.from == fromSide {
			want = int64(len(op.Buf))
		}
		if int64(op.N) < want {
			err = fmt.Errorf("the store ends at %d, not at %d as when it was opened: %w", op.Off+int64(op.N), stored, io.ErrUnexpectedEOF)
		} else {
			clear(op.Buf[want:])
		}
	} else if errors.Is(err, aio.ErrClosed) {
		err = ErrClosed
	}
	p.finish(l, err)
}

// finish ends a load: its pages become resident, or their waiters get err.
func (p *Pager) finish(l *load, err error) {
	r := l.r
	if l.alone {
		p.alone.done()
	}
	if l.from == fromSide && r.moved(l) {
		p.readAnew(l)
		return
	}
	if err != nil && len(l.gens) > 1 {
		p.readSingly(l, err)
		return
	}
	if err != nil && l.owns() {
		p.readFailed(r, l.first, len(l.gens), err)
	}
	move := err == nil && l.moves()
	if err == nil && !move && l.kind == ahead && r.ahead.copied.Load() {
		p.shelve(l)
	}
	for i := 0; i < len(l.gens) && (err != nil || move || !p.keepUnmapped(l)); i += groupMax {
		k := min(groupMax, len(l.gens)-i)
		if p.finishGroup(l, i, k, move, err) {
			p.readAnew(l)
			return
		}
	}
	if l.kind == demand {
		p.stats.missLatency.add(time.Since(l.begun))
	} else {
		p.aheadPages.Add(-int64(len(l.gens)) * r.fpp)
	}
	r.arrived(l)
	p.landed(l)
	p.transition()
}

// owns: some page is still the load's. If none is, they were taken over or given
// up, perhaps because the region is shorter now, and how the read has ended is
// nobody's concern.
func (l *load) owns() bool {
	for i, gen := range l.gens {
		if l.r.d.loading(l.first+uint64(i), gen) {
			return true
		}
	}
	return false
}

// loading: the page is on its way, under the claim of generation gen.
func (d *desc) loading(page uint64, gen uint32) bool {
	pw, w := d.look(page)
	return pw != nil && w&stateMask == stLoading && uint32(w>>32) == gen
}

// landed frees a load and its place in the queue depth, and starts what waits
// for that.
func (p *Pager) landed(l *load) {
	buf, r, n := l.buf, l.r, l.bytes()
	if l.kind == ahead {
		p.aheadLoads.Add(-1)
		p.aheadOut.Add(-n)
	}
	l.rise()
	*l = load{gens: l.gens[:0]} // the memory of a long run is used again
	loadPool.Put(l)
	bufs.put(buf)
	p.flight.Add(-n)
	p.inflight.Add(-1)
	defer r.leave()
	if p.queue.n.Load() != 0 || p.jobs.pending.Load() != 0 {
		b := newBatch()
		p.unqueue(b)
		p.pump(b)
		p.flushBatch(b)
		b.free()
	}
	if p.waiting.Load() != 0 {
		p.serveLine()
	}
}

// readSingly follows up a failed read of several pages: those that somebody
// waits for are read one by one, so that the error meets the page it belongs
// to; the others were read ahead and are given up.
func (p *Pager) readSingly(l *load, err error) {
	r := l.r
	b := newBatch()
	wanted := word(flagWaited | pinMask)
	if errors.Is(err, ErrClosed) {
		wanted = 0
	}
	for i, gen := range l.gens {
		page := l.first + uint64(i)
		// Somebody may come to wait for it at this very moment.
		if !p.failPageBut(wanted, r, page, gen, stLoading, r.fault("read", page, err)) {
			s := loadPool.Get().(*load)
			r.active.Add(1)
			s.r, s.first, s.kind, s.begun, s.stored = r, page, demand, l.begun, l.stored
			s.from, s.at = r.sourceOf(page)
			s.gens = append(s.gens, gen)
			s.sit()
			b.loads = append(b.loads, s)
		}
	}
	if l.kind == ahead {
		p.aheadPages.Add(-int64(len(l.gens)) * r.fpp)
	}
	p.landed(l)
	p.launchAll(b)
}

// readAnew reads the pages of a load again, as anew says.
func (p *Pager) readAnew(l *load) {
	b := p.anew(l)
	p.landed(l)
	p.launchAll(b)
}

// anew makes loads of the pages of l, one by one, from where they are now, to be copied.
func (p *Pager) anew(l *load) *batch {
	b := newBatch()
	for i, gen := range l.gens {
		s := loadPool.Get().(*load)
		l.r.active.Add(1)
		s.r, s.first, s.kind, s.marks, s.begun = l.r, l.first+uint64(i), l.kind, l.marks, l.begun
		s.from, s.at = l.r.sourceOf(s.first)
		s.stored, s.stays = bare.Load64(&l.r.d.stored), true
		s.gens = append(s.gens, gen)
		if s.kind == ahead {
			p.aheadLoads.Add(1)
		} else {
			s.sit()
		}
		b.loads = append(b.loads, s)
	}
	return b
}

// launchAll starts the loads of b, which nobody is just asking for, and frees b.
func (p *Pager) launchAll(b *batch) {
	for _, l := range b.loads {
		p.launch(l, b)
	}
	p.flushBatch(b)
	b.free()
}

// readFailed counts a failed read and tells of it.
func (p *Pager) readFailed(r *Region, first uint64, n int, err error) {
	p.stats.readErrors.Add(1)
	p.event(func(e *EventListener) {
		if e.ReadError != nil {
			e.ReadError(r, int64(first<<r.shift), int64(n)<<r.shift, err)
		}
	})
}
