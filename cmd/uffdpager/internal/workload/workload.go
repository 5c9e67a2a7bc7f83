// Package workload decides which block each goroutine of a run touches next.
// The same configuration gives the same work, whoever does it.
package workload

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
)

// Kind names a pattern of accesses.
type Kind uint8

const (
	Random Kind = iota
	Zipf
	Scan
	Chase
	Mixed
	Interleaved
	Stride
)

var table = [...]struct{ name, what string }{
	Random:      {"random", "uniform over all blocks"},
	Zipf:        {"zipf", "Zipf 0.99, the popular blocks scattered over the file"},
	Scan:        {"scan", "front to back, again and again, 1 MiB at a time by whoever is free"},
	Chase:       {"chase", "the bytes just read decide what is read next"},
	Mixed:       {"mixed", "four fifths zipf, one fifth short scans of 64 blocks"},
	Interleaved: {"interleaved", "every goroutine scans a share of its own"},
	Stride:      {"stride", "every goroutine takes each 17th page, then starts one page further"},
}

func (k Kind) String() string { return table[k].name }

// Describe is a line for each workload.
func Describe() string {
	var b strings.Builder
	for _, k := range table {
		fmt.Fprintf(&b, "  %-12s %s\n", k.name, k.what)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// Parse is the inverse of String.
func Parse(s string) (Kind, error) {
	for i, k := range table {
		if k.name == s {
			return Kind(i), nil
		}
	}
	return 0, fmt.Errorf("unknown workload %q (%s)", s, Names())
}

// Names lists the workloads.
func Names() string {
	all := make([]string, len(table))
	for i, k := range table {
		all[i] = k.name
	}
	return strings.Join(all, ", ")
}

// Goroutines is how many goroutines show the pattern best.
func (k Kind) Goroutines() int {
	switch k {
	case Scan, Stride:
		return 1
	case Interleaved:
		return 64
	}
	return 1000
}

// Config is what is to be done.
type Config struct {
	Kind       Kind
	Blocks     int64   // blocks in the file, > 0
	PerPage    int64   // blocks in a page, ≥ 1: the unit of Stride
	Goroutines int     // > 0
	WriteRatio float64 // share of the ops that write, 0 … 1
	Seed       uint64
}

// Op is one access to one block.
type Op struct {
	Block int64
	Write bool
}

const (
	zipfSkew  = 0.99
	scanChunk = 256 // blocks that one goroutine of a Scan takes at a time
	shortScan = 64  // blocks of a short scan of Mixed
	shortOdds = 256 // one point access in so many starts one: 64 of 256+64 ops
	strideLen = 17  // pages
)

// Workload is shared by the goroutines of a run.
type Workload struct {
	cfg    Config
	zipf   zipf
	spread spread
	cursor atomic.Int64 // Scan: blocks handed out
}

// New prepares a workload.
func New(cfg Config) *Workload {
	return &Workload{cfg: cfg, zipf: newZipf(cfg.Blocks, zipfSkew), spread: newSpread(cfg.Blocks)}
}

// Stream is the sequence of ops of one goroutine. It is not safe for
// concurrent use.
type Stream struct {
	w   *Workload
	rng *rand.PCG

	next  int64 // sequential kinds: the block that comes next
	left  int64 // … and how many until something else comes
	from  int64 // Interleaved, Stride: where the goroutine's share begins
	share int64 // … and its length
	phase int64 // Stride: pages into the stride
}

// Stream returns the ops of goroutine i.
func (w *Workload) Stream(i int) *Stream {
	s := &Stream{w: w, rng: rand.NewPCG(w.cfg.Seed, uint64(i))}
	n, g := w.cfg.Blocks, int64(w.cfg.Goroutines)
	s.share = max(n/g, 1)
	s.from = int64(i) % max(n/s.share, 1) * s.share
	if int64(i) == g-1 && g <= n {
		s.share = n - s.from // the last one takes what the division left over
	}
	s.next = s.from
	return s
}

// Next returns the next op. last is a word of the block that the op before
// read; only Chase looks at it.
func (s *Stream) Next(last uint64) Op {
	return Op{Block: s.block(last), Write: s.write()}
}

func (s *Stream) write() bool {
	r := s.w.cfg.WriteRatio
	return r > 0 && float64(s.rng.Uint64()>>11)/(1<<53) < r
}

func (s *Stream) block(last uint64) int64 {
	n := s.w.cfg.Blocks
	switch s.w.cfg.Kind {
	case Zipf:
		return s.popular()
	case Scan:
		if s.left == 0 {
			s.next = (s.w.cursor.Add(scanChunk) - scanChunk) % n
			s.left = scanChunk
		}
		s.left--
		b := s.next
		if s.next++; s.next == n {
			s.next = 0
		}
		return b
	case Chase:
		// The generator is mixed in because a pure function of the block
		// would soon run in a short circle.
		return below((last^s.rng.Uint64())*0x9e3779b97f4a7c15, n)
	case Mixed:
		if s.left == 0 && s.rng.Uint64()%shortOdds == 0 {
			s.left = shortScan
			s.next = below(s.rng.Uint64(), n)
		}
		if s.left > 0 {
			s.left--
			b := s.next
			s.next = (s.next + 1) % n
			return b
		}
		return s.popular()
	case Interleaved:
		b := s.next
		if s.next++; s.next == s.from+s.share {
			s.next = s.from
		}
		return b
	case Stride:
		b := s.next
		s.next += strideLen * s.w.cfg.PerPage
		if s.next >= s.from+s.share {
			s.phase = (s.phase + 1) % strideLen
			s.next = s.from + s.phase*s.w.cfg.PerPage%s.share
		}
		return b
	}
	return below(s.rng.Uint64(), n)
}

// popular draws a block by popularity. Which blocks are popular has nothing to
// do with where they are.
func (s *Stream) popular() int64 { return s.w.spread.at(s.w.zipf.draw(s.rng)) }
