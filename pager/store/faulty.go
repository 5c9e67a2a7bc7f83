package store

import (
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// FaultyOptions configure NewFaulty. The zero value passes everything on and
// counts it.
type FaultyOptions struct {
	Seed   uint64  // decides what Fault.Prob, Jitter and Reorder leave open
	Faults []Fault // as by Inject

	// Latency is how long an op takes before its data moves, plus a share of
	// Jitter. Ops overlap in it; it costs no goroutine each.
	Latency, Jitter time.Duration

	// Reorder > 1 collects that many finished ops and lets a random one go,
	// until no others are on their way.
	Reorder int

	// Check sums the buffer of every write when it starts and when it ends;
	// FaultyCounts.Changed tells how many differ.
	Check bool

	// Kernel passes on the kernel form of the store below. What is read
	// through that meets no faults and is not counted. Default: no kernel form.
	Kernel bool
}

// Faulty is a Store over another one that fails, dawdles, reorders and stops
// on command, and counts: for tests of what uses a store. All methods may be
// called at any time from any goroutine.
//
//	Start ─ Fault? ─ Latency ─ Hold ─ data moves ─ Reorder ─ HoldDone ─ Done
//
// Done runs on the goroutine that lets the op go: of Start, of the store
// below, of Step or Release, or of one timer for all ops.
type Faulty struct {
	below Store
	o     FaultyOptions

	mu     sync.Mutex
	rng    *rand.Rand
	faults []*Fault
	visits map[visit]uint64 // how often each transfer has been asked for
	end    int64            // reads end here; -1: wherever the store ends

	delayed delayed // waiting for its time
	before  gate    // waiting to move data
	after   gate    // waiting to be done
	pool    []*flight
	moving  int // from the first gate to the pool: what Reorder may wait for

	writes []*flight // in flight, for the overlap counts
	counts FaultyCounts
}

// FaultyCounts is what a Faulty has seen. Bytes are those that moved.
type FaultyCounts struct {
	Reads, Writes, Flushes, Truncates, Discards int64 // asked for
	ReadBytes, WriteBytes                       int64
	Failed                                      int64 // ended with an injected error
	Shortened                                   int64 // ended short by Fault.Short or SetEnd
	InFlight, MaxInFlight                       int   // transfers started and not done
	Held                                        int   // of these, waiting at Hold or HoldDone

	Overlaps        int64 // writes started while a write of the same bytes was in flight
	ReadsUnderWrite int64 // reads started while a write of the same bytes was in flight
	Changed         int64 // writes whose buffer changed under way (FaultyOptions.Check)
}

// flight is one op under way.
type flight struct {
	op    *aio.Op // the caller's, untouched until Done
	inner aio.Op  // what goes below
	f     *Faulty
	e     aio.Engine
	ops   Ops
	fault *Fault // nil: none
	sum   uint32
	due   time.Time
	seq   int64 // order of Start, among equal due
	n     int   // result
	err   error
}

// NewFaulty wraps s, which it owns.
func NewFaulty(s Store, o FaultyOptions) *Faulty {
	if s == nil {
		s = &memory{broken: invalid("NewFaulty of a store that is nil")} // whoever uses it is told
	}
	f := &Faulty{
		below:  s,
		o:      o,
		rng:    rand.New(rand.NewPCG(o.Seed, 0x9e3779b97f4a7c15)),
		visits: make(map[visit]uint64),
		end:    -1,
	}
	f.Inject(o.Faults...)
	return f
}

var _ Store = (*Faulty)(nil)

// Size implements Store.
func (f *Faulty) Size() int64 { return f.below.Size() }

// BlockSize implements Store.
func (f *Faulty) BlockSize() int { return f.below.BlockSize() }

// Writable implements Store.
func (f *Faulty) Writable() bool { return f.below.Writable() }

// String implements Store.
func (f *Faulty) String() string { return "faulty " + f.below.String() }

// Kernel implements Store; see FaultyOptions.Kernel.
func (f *Faulty) Kernel() (Kernel, bool) {
	if !f.o.Kernel {
		return Kernel{FD: -1}, false
	}
	return f.below.Kernel()
}

// Close implements Store.
func (f *Faulty) Close() error {
	f.mu.Lock()
	f.delayed.stop()
	f.mu.Unlock()
	return f.below.Close()
}

// Truncate implements Store.
func (f *Faulty) Truncate(size int64) error {
	if err := f.judgeCall(OnTruncate, 0, 0); err != nil {
		return err
	}
	return f.below.Truncate(size)
}

// Discard implements Store.
func (f *Faulty) Discard(off, n int64) error {
	if err := f.judgeCall(OnDiscard, off, n); err != nil {
		return err
	}
	return f.below.Discard(off, n)
}

// Counts returns the counts so far.
func (f *Faulty) Counts() FaultyCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.counts
	c.Held = len(f.before.waiting) + len(f.after.waiting)
	return c
}

// Start implements Store.
func (f *Faulty) Start(e aio.Engine, ops []*aio.Op) {
	var ready []*flight
	f.mu.Lock()
	for _, op := range ops {
		fl := f.admit(e, op)
		if wait := f.latency(fl); wait > 0 {
			fl.due = time.Now().Add(wait)
			f.delayed.push(fl, f.wake)
		} else if !f.before.keep(fl) {
			ready = append(ready, fl)
		}
	}
	f.moving += len(ready)
	f.mu.Unlock()
	f.move(ready)
}

// admit counts op and decides its fate. f.mu is held.
func (f *Faulty) admit(e aio.Engine, op *aio.Op) *flight {
	fl := &flight{op: op, f: f, e: e, ops: opsOf(op.Code)}
	c := &f.counts
	fl.seq = c.Reads + c.Writes + c.Flushes
	c.InFlight++
	c.MaxInFlight = max(c.MaxInFlight, c.InFlight)
	switch op.Code {
	case aio.Read:
		c.Reads++
		if f.writeInFlight(op) {
			c.ReadsUnderWrite++
		}
	case aio.Write:
		c.Writes++
		if f.writeInFlight(op) {
			c.Overlaps++
		}
		f.writes = append(f.writes, fl)
		if f.o.Check {
			fl.sum = crc32.ChecksumIEEE(op.Buf)
		}
	default:
		c.Flushes++
	}
	fl.fault = f.judge(fl.ops, op.Off, int64(len(op.Buf)))
	return fl
}

func (f *Faulty) writeInFlight(op *aio.Op) bool {
	for _, w := range f.writes {
		if op.Off < w.op.Off+int64(len(w.op.Buf)) && w.op.Off < op.Off+int64(len(op.Buf)) {
			return true
		}
	}
	return false
}

// SetLatency changes FaultyOptions.Latency and Jitter for what starts from now
// on.
func (f *Faulty) SetLatency(latency, jitter time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.o.Latency, f.o.Jitter = latency, jitter
}

// latency of one op. f.mu is held.
func (f *Faulty) latency(fl *flight) time.Duration {
	wait := f.o.Latency
	if f.o.Jitter > 0 {
		wait += time.Duration(f.rng.Int64N(int64(f.o.Jitter)))
	}
	if fl.fault != nil {
		wait += fl.fault.Delay
	}
	return wait
}

// wake lets go what is due. It runs on the timer's goroutine.
func (f *Faulty) wake() {
	var ready []*flight
	f.mu.Lock()
	for _, fl := range f.delayed.due(time.Now()) {
		if !f.before.keep(fl) {
			ready = append(ready, fl)
		}
	}
	f.moving += len(ready)
	f.mu.Unlock()
	f.move(ready)
}

// move hands the ops to the store below, in one Start for each engine, or ends
// those that go nowhere.
func (f *Faulty) move(ready []*flight) {
	var batch []*aio.Op
	for i, fl := range ready {
		n, err := f.share(fl)
		if n < 0 {
			fl.n, fl.err = 0, err
			f.moved(fl)
		} else {
			buf := fl.op.Buf
			if fl.op.Code == aio.Write {
				buf = buf[:n]
			}
			fl.n, fl.err = n, err
			fl.inner = aio.Op{Code: fl.op.Code, Off: fl.op.Off, Buf: buf, Done: innerDone, Arg: fl}
			batch = append(batch, &fl.inner)
		}
		if len(batch) > 0 && (i == len(ready)-1 || ready[i+1].e != fl.e) {
			f.below.Start(fl.e, batch)
			batch = nil
		}
	}
}

// share is how much of the transfer takes place (-1: it does not go below at
// all) and the error it ends with.
func (f *Faulty) share(fl *flight) (int, error) {
	n := len(fl.op.Buf)
	if fl.fault == nil {
		return n, nil
	}
	err := fl.fault.Err
	if fl.fault.Short > 0 && fl.op.Code != aio.Flush {
		n = min(n, fl.fault.Short)
		if fl.op.Code == aio.Write { // the store below takes whole blocks only
			n &^= f.below.BlockSize() - 1
		}
	}
	if n == 0 && len(fl.op.Buf) > 0 || fl.fault.Short < 0 || fl.fault.Short == 0 && err != nil {
		n = -1
	}
	return n, err
}

// junk is what a buffer holds past what a read has filled: neither zeros nor
// what was there before, so that nobody who looks at it gets away with it.
const junk = 0xdb

// innerDone takes the result of the store below.
func innerDone(o *aio.Op) {
	fl := o.Arg.(*flight)
	if o.Err != nil {
		fl.n, fl.err = o.N, o.Err
	}
	fl.n = min(fl.n, o.N)
	fl.f.moved(fl)
}

// moved passes a finished transfer through Reorder and HoldDone.
func (f *Faulty) moved(fl *flight) {
	if fl.op.Code == aio.Read {
		f.mu.Lock()
		if f.end >= 0 {
			fl.n = max(0, min(fl.n, int(min(f.end-fl.op.Off, int64(len(fl.op.Buf))))))
		}
		f.mu.Unlock()
		for i := range fl.op.Buf[fl.n:] {
			fl.op.Buf[fl.n+i] = junk
		}
	}
	var done []*flight
	f.mu.Lock()
	f.pool = append(f.pool, fl)
	for len(f.pool) > 0 && (len(f.pool) >= f.o.Reorder || len(f.pool) == f.moving) {
		i := 0
		if f.o.Reorder > 1 {
			i = f.rng.IntN(len(f.pool))
		}
		out := f.pool[i]
		f.pool = append(f.pool[:i], f.pool[i+1:]...)
		f.moving--
		if !f.after.keep(out) {
			done = append(done, out)
		}
	}
	f.mu.Unlock()
	f.done(done)
}

// done counts the results and hands them over.
func (f *Faulty) done(flights []*flight) {
	for _, fl := range flights {
		changed := fl.op.Code == aio.Write && f.o.Check && crc32.ChecksumIEEE(fl.op.Buf) != fl.sum
		f.mu.Lock()
		f.tally(fl, changed)
		f.mu.Unlock()
		finish(fl.op, fl.n, fl.err)
	}
}

// tally counts a result. f.mu is held.
func (f *Faulty) tally(fl *flight, changed bool) {
	c := &f.counts
	c.InFlight--
	switch fl.op.Code {
	case aio.Read:
		c.ReadBytes += int64(fl.n)
	case aio.Write:
		c.WriteBytes += int64(fl.n)
		for i, w := range f.writes {
			if w == fl {
				f.writes = append(f.writes[:i], f.writes[i+1:]...)
				break
			}
		}
	}
	if changed {
		c.Changed++
	}
	switch {
	case fl.fault != nil && fl.fault.Err != nil:
		c.Failed++
	case fl.err == nil && fl.n < len(fl.op.Buf) && (fl.fault != nil || f.end >= 0):
		c.Shortened++
	}
}
