package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/workload"
	"github.com/uffdpager/uffdpager/pager"
)

// crew is the goroutines of a run and what they share.
type crew struct {
	ctx    context.Context // ended by Ctrl-C only
	region *pager.Region
	access access
	proof  *proof
	verify bool
	stop   atomic.Bool
	lasts  time.Duration // 0: until stop. Who sets stop may have to wait for his turn
	began  time.Time

	workers []worker
	wait    sync.WaitGroup
	latency [latencyShards]latency

	mu       sync.Mutex
	firstErr error  // the first op that failed
	firstBad string // the first block that differed
}

// tally counts what a worker has done. Only the worker writes it; progress
// reads it.
type tally struct {
	ops        atomic.Int64 // finished, failed ones included
	writes     atomic.Int64 // of these, writes
	errors     atomic.Int64 // ops that failed
	accessed   atomic.Int64 // bytes read
	verified   atomic.Int64 // of these, compared
	mismatches atomic.Int64 // blocks that differed
	since      atomic.Int64 // when the op under way began, in ns since the crew started; 0: none
}

func bump(c *atomic.Int64, n int64) { c.Store(c.Load() + n) } // one writer

// total adds up the tallies of all workers.
type total struct{ ops, writes, errors, accessed, verified, mismatches int64 }

func (c *crew) total() (t total) {
	for i := range c.workers {
		w := &c.workers[i]
		t.ops += w.ops.Load()
		t.writes += w.writes.Load()
		t.errors += w.errors.Load()
		t.accessed += w.accessed.Load()
		t.verified += w.verified.Load()
		t.mismatches += w.mismatches.Load()
	}
	return t
}

// Latencies go into a few histograms rather than one, which everybody would
// queue for, or one per worker, which would take more memory than the pager.
const latencyShards = 16

type latency struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram // nanoseconds
	_  [40]byte                // one cache line each
}

// maxLatency is where the histograms end; two digits are exact.
const maxLatency = int64(10 * time.Minute)

func newLatencyHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxLatency, 2) }

func (l *latency) add(d time.Duration) {
	l.mu.Lock()
	l.h.RecordValue(min(max(int64(d), 1), maxLatency))
	l.mu.Unlock()
}

func (c *crew) latencies() *hdrhistogram.Histogram {
	all := newLatencyHistogram()
	for i := range c.latency {
		c.latency[i].mu.Lock()
		all.Merge(c.latency[i].h)
		c.latency[i].mu.Unlock()
	}
	return all
}

// newCrew prepares the goroutines of a run. ops is how many they do together, 0
// for as many as they can until stop.
func newCrew(ctx context.Context, r *pager.Region, way access, p *proof, verify bool, w *workload.Workload, goroutines int, ops int64) *crew {
	c := &crew{ctx: ctx, region: r, access: way, proof: p, verify: verify, workers: make([]worker, goroutines)}
	for i := range c.latency {
		c.latency[i].h = newLatencyHistogram()
	}
	n := int64(goroutines)
	for i := range c.workers {
		k := &c.workers[i]
		k.crew, k.stream, k.latency = c, w.Stream(i), &c.latency[i%latencyShards]
		k.quota = -1
		if ops > 0 {
			// Split beforehand, so that the same seed does the same ops.
			k.quota = ops / n
			if int64(i) < ops%n {
				k.quota++
			}
		}
		if way == accessReadAt {
			k.buf = make([]byte, stamp.Block)
		}
		if p.kind == proofRead {
			k.ref = make([]byte, stamp.Block)
		}
		// Made once: a closure for every op would be garbage for every op.
		k.inBytes = func() error {
			k.touch(k.crew.region.Bytes()[k.off : k.off+int64(k.n)])
			return nil
		}
		k.inView = func(mem []byte) error {
			k.touch(mem[k.off : k.off+int64(k.n)])
			return nil
		}
	}
	return c
}

// parked is how many goroutines seem to wait for a page: their op has been under
// way for far longer than one that finds its page.
func (c *crew) parked() (n int64) {
	const long = int64(50 * time.Microsecond)
	now := int64(time.Since(c.began))
	for i := range c.workers {
		if since := c.workers[i].since.Load(); since != 0 && now-since > long {
			n++
		}
	}
	return n
}

func (c *crew) start() {
	c.began = time.Now()
	for i := range c.workers {
		c.wait.Go(c.workers[i].work)
	}
}

// worker is one goroutine of a run. The fields below the tally belong to the op
// it is doing.
type worker struct {
	tally
	crew    *crew
	stream  *workload.Stream
	latency *latency
	quota   int64  // ops left to do; negative: no end
	buf     []byte // ReadAt, WriteAt
	ref     []byte // what an ordinary read says

	inBytes func() error
	inView  func(mem []byte) error

	off      int64
	n        int
	write    bool
	version  uint32 // before the op
	last     uint64 // a word of the block, for workloads that follow the data
	looked   int    // bytes read
	compared int    // … and compared
	at       int    // first difference, or -1
	_        [64]byte
}

// fairShare is how long a worker goes on before it lets others run. Work that
// finds its pages, or blocks its thread, never gives up its P by itself; with a
// thousand such goroutines everybody else – the one that waits for Ctrl-C, say –
// would have its turn every few seconds. An op that takes long counts as
// longOp: it has most likely been parked.
const (
	fairShare = 250 * time.Microsecond
	longOp    = 100 * time.Microsecond
)

// hopeless is how many ops of a worker may fail, when none has succeeded,
// before it gives up.
const hopeless = 100

func (w *worker) work() {
	c := w.crew
	defer w.since.Store(0)
	began := time.Now()
	var ran time.Duration
	for ; w.quota != 0 && !c.stop.Load(); w.quota-- {
		w.since.Store(max(int64(began.Sub(c.began)), 1))
		err := w.do(w.stream.Next(w.last))
		now := time.Now()
		if err != nil {
			if c.ctx.Err() != nil && errors.Is(err, c.ctx.Err()) {
				return // interrupted in the middle: not an op
			}
			bump(&w.errors, 1)
			c.note(err, "")
		} else {
			w.latency.add(now.Sub(began))
		}
		if ran += min(now.Sub(began), longOp); ran > fairShare {
			runtime.Gosched()
			ran = 0
			now = time.Now()
		}
		began = now
		bump(&w.ops, 1)
		if c.lasts > 0 && now.Sub(c.began) > c.lasts {
			return
		}
		if n := w.errors.Load(); n >= hopeless && n == w.ops.Load() {
			return
		}
	}
}

// note remembers the first error and the first difference.
func (c *crew) note(err error, bad string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.firstErr == nil {
		c.firstErr = err
	}
	if c.firstBad == "" {
		c.firstBad = bad
	}
}

func (w *worker) do(op workload.Op) error {
	p := w.crew.proof
	w.off, w.write = op.Block*stamp.Block, op.Write
	w.n = int(min(stamp.Block, p.size-w.off))
	if p.versions != nil {
		lock := p.lock(op.Block)
		if op.Write {
			lock.Lock()
			defer lock.Unlock()
		} else {
			lock.RLock()
			defer lock.RUnlock()
		}
	}
	w.version, w.looked, w.compared, w.at = p.version(op.Block), 0, 0, -1
	if w.crew.verify {
		if err := p.prepare(w.ref[:min(w.n, len(w.ref))], w.off, w.version); err != nil {
			return err
		}
	}
	err := w.enter()
	if op.Write {
		// Whatever a failed write has left behind, it proves nothing.
		p.versions[op.Block] = versionLost
		if err == nil {
			p.versions[op.Block] = w.next()
			bump(&w.writes, 1)
		}
	}
	if err != nil {
		return err
	}
	bump(&w.accessed, int64(w.looked))
	bump(&w.verified, int64(w.compared))
	if w.at != -1 {
		bump(&w.mismatches, 1)
	}
	return nil
}

// next is the version that a write gives to the block.
func (w *worker) next() uint32 {
	if w.version >= versionLost-1 {
		return 1
	}
	return w.version + 1
}

// enter takes the way in that the run was asked to take.
func (w *worker) enter() error {
	r, ctx := w.crew.region, w.crew.ctx
	switch w.crew.access {
	case accessBytes:
		return pager.Guard(w.inBytes)
	case accessView:
		if w.write {
			return r.Update(ctx, w.inView)
		}
		return r.View(ctx, w.inView)
	case accessReadAt:
		b := w.buf[:w.n]
		if w.write {
			stamp.Fill(b, w.off, w.next()) // whole blocks: nothing need be read
			_, err := r.WriteAt(b, w.off)
			return err
		}
		if _, err := r.ReadAt(b, w.off); err != nil {
			return err
		}
		w.touch(b)
		return nil
	}
	acquire := r.Acquire
	if w.write {
		acquire = r.AcquireWrite
	}
	pin, err := acquire(ctx, w.off, int64(w.n))
	if err != nil {
		return err
	}
	w.touch(pin.Bytes())
	pin.Release()
	return nil
}

// touch reads a block and, in an op that writes, overwrites it. It may be run
// again for the same op, so it only ever assigns.
func (w *worker) touch(mem []byte) {
	if w.crew.verify {
		w.compared, w.at = w.crew.proof.check(mem, w.off, w.version, w.ref[:min(w.n, len(w.ref))])
		if w.at != -1 {
			w.crew.note(nil, w.crew.proof.describe(bytes.Clone(mem), w.off, w.version, w.at))
		}
		w.last = word(mem)
	} else {
		w.last = sum(mem)
	}
	w.looked = len(mem)
	if w.write {
		stamp.Fill(mem, w.off, w.next())
	}
}

// word is the second word of a block: the first may be the same everywhere in
// files that are not ours.
func word(mem []byte) uint64 {
	if len(mem) < 16 {
		return uint64(mem[0])
	}
	return binary.LittleEndian.Uint64(mem[8:])
}

// sum reads every byte of a block and depends on all of them.
func sum(mem []byte) (s uint64) {
	for len(mem) >= 8 {
		s += binary.LittleEndian.Uint64(mem)
		mem = mem[8:]
	}
	for _, c := range mem {
		s += uint64(c)
	}
	return s
}
