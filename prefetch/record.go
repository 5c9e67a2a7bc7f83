package prefetch

import (
	"io"
	"sync"
	"time"
)

// Recorder is a policy that prefetches nothing and writes down, in a trace
// file, which pages are touched first: see Record.
type Recorder struct {
	mu     sync.Mutex
	block  *traceBlock
	seen   map[int64]*seenPages
	last   *seenPages // of lastAt: misses come in clusters
	lastAt int64
	size   int64 // page size, once known
	region int64 // pages in the region, known then too
	name   string
	pages  int64
	lost   int64
	closed bool

	full  chan *traceBlock // to the writer; closed by Close
	empty chan *traceBlock // back
	done  chan struct{}
	err   error // of the writer; read after done
}

// seenPages has one bit for each of 4096 pages.
type seenPages [64]uint64

// recordAhead is how many blocks may wait for a slow writer: 4 MiB. A block that
// is not full is written after recordEvery.
const (
	recordAhead = 64
	recordEvery = time.Second
)

// Record returns a policy that writes the pages of its region to w in the order
// of their first touch, for [Replay] at the next start. Raw hits leave no
// trace, and without prefetching every first touch is a miss; so the trace is
// complete for a region whose policy this is. (Where faults make threads wait, some may
// be missing: docs/limits.md.)
//
// Observe does not write: a goroutine does, a block of up to 64 KiB (some
// 30,000 pages) at a time, and once a second what there is. Close writes the
// rest and ends it; without Close the goroutine stays and the file has no end,
// but is good up to there: of a program that is killed all but the last second
// or two is known. If w is so slow that 64 blocks wait, further ones are
// dropped and counted (Lost).
func Record(w io.Writer) *Recorder { return RecordOf(w, "") }

// RecordOf is Record of a region that shows what is called name, a file's path
// perhaps: it is written down in the trace, for [ReplayOptions]. Up to 65,535 bytes.
func RecordOf(w io.Writer, name string) *Recorder { return newRecorder(w, name, recordEvery) }

func newRecorder(w io.Writer, name string, every time.Duration) *Recorder {
	r := &Recorder{
		name:  name,
		seen:  map[int64]*seenPages{},
		full:  make(chan *traceBlock, recordAhead),
		empty: make(chan *traceBlock, recordAhead),
		done:  make(chan struct{}),
	}
	r.block = r.fresh()
	go r.write(w, every)
	return r
}

// Observe implements Policy.
func (r *Recorder) Observe(e Event, plan *Plan) {
	if e.Kind != Miss && e.Kind != Touch || e.Page < 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || !r.first(e.Page) {
		return
	}
	if r.size == 0 {
		r.size, r.region = plan.pageSize(), plan.Pages
	}
	r.pages++
	r.block.add(e.Page)
	if r.block.full() {
		r.hand(r.block)
		r.block = r.fresh()
	}
}

// first reports whether the page has not been seen before.
func (r *Recorder) first(page int64) bool {
	at := page >> 12
	if r.last == nil || r.lastAt != at {
		s := r.seen[at]
		if s == nil {
			s = new(seenPages)
			r.seen[at] = s
		}
		r.last, r.lastAt = s, at
	}
	word, bit := &r.last[page>>6&63], uint64(1)<<(page&63)
	old := *word
	*word |= bit
	return old&bit == 0
}

func (r *Recorder) fresh() *traceBlock {
	var b *traceBlock
	select {
	case b = <-r.empty:
	default:
		b = &traceBlock{}
	}
	b.reset()
	return b
}

// hand gives a block to the writer unless that is too far behind. The channel
// also carries what the writer needs to know before it: r.size is set before
// the first block.
func (r *Recorder) hand(b *traceBlock) {
	select {
	case r.full <- b:
	default:
		r.lost += int64(b.count)
		r.pages -= int64(b.count)
	}
}

func (r *Recorder) write(w io.Writer, every time.Duration) {
	defer close(r.done)
	begun := false
	put := func(b *traceBlock) {
		if !begun && r.err == nil {
			begun = true
			_, r.err = w.Write(appendTraceHeader(nil, r.size, r.region, r.name))
		}
		if r.err == nil {
			_, r.err = w.Write(b.seal())
		}
		select {
		case r.empty <- b:
		default:
		}
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case b, open := <-r.full:
			if !open {
				return
			}
			put(b)
		case <-tick.C:
			if b := r.begun(); b != nil {
				put(b)
			}
		}
	}
}

// begun takes the block that is being filled, if it is the next to be written. It
// does not wait for the lock: Close waits for the writer with it.
func (r *Recorder) begun() *traceBlock {
	if !r.mu.TryLock() {
		return nil
	}
	defer r.mu.Unlock()
	if r.closed || len(r.full) > 0 || r.block.count == 0 {
		return nil
	}
	b := r.block
	r.block = r.fresh()
	return b
}

// Pages is the number of pages recorded so far.
func (r *Recorder) Pages() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pages
}

// Lost is the number of pages dropped because the writer was too slow.
func (r *Recorder) Lost() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// Close writes what is left and the end mark, waits for both and returns the
// first error of writing. It does not close w. What is observed later is
// ignored; a second Close waits and returns the same.
func (r *Recorder) Close() error {
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		if r.size == 0 {
			r.size = defaultPageSize
		}
		// Here it may wait for the writer: nobody observes any more.
		if r.block.count > 0 {
			r.full <- r.block
			r.block = r.fresh()
		}
		r.full <- r.block
		close(r.full)
	}
	r.mu.Unlock()
	<-r.done
	return r.err
}
