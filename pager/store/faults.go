package store

import (
	"math"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Ops is a set of kinds of operation.
type Ops uint8

const (
	OnRead Ops = 1 << iota
	OnWrite
	OnFlush
	OnTruncate
	OnDiscard

	// OnTransfer is what the zero value stands for.
	OnTransfer = OnRead | OnWrite | OnFlush
)

func opsOf(c aio.Code) Ops { return OnRead << c }

func (o Ops) has(x Ops) bool {
	if o == 0 {
		o = OnTransfer
	}
	return o&x != 0
}

// Fault is one line of a script. The first line that applies to an operation
// decides all of its fate.
type Fault struct {
	Ops Ops // kinds it applies to; 0: reads, writes and flushes

	// Off and Len are the bytes it applies to: operations that overlap them.
	// Len 0: all from Off on. Flush and Truncate have no place and meet only
	// faults with Off 0 and Len 0.
	Off, Len int64

	// Of the operations it applies to, those from the Nth on (1 is the first;
	// 0: the first), Count of them (0: all that follow), each with
	// probability Prob (0: always). What Prob decides depends on FaultyOptions.Seed and on
	// how often this very operation was asked for before, not on the order
	// in which concurrent ones come.
	Nth, Count int64
	Prob       float64

	// Err is what the operation ends with; nil: no error, so only Short and
	// Delay.
	Err error

	// Short is how many bytes move (a write: rounded down to the store's
	// block). 0: all of them, or none with Err. Negative: none. With a nil
	// Err a read then looks as if the file had ended there; with one that
	// exceeds the length the data moves and the error comes nevertheless.
	Short int

	Delay time.Duration // in addition to FaultyOptions.Latency

	met int64 // operations it has applied to so far
}

// visit identifies a transfer for Fault.Prob.
type visit struct {
	ops Ops
	off int64
}

// Inject adds faults to the script, after those that are there.
func (f *Faulty) Inject(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range faults {
		x.met = 0
		f.faults = append(f.faults, &x)
	}
}

// Clear removes all faults: the store is well again. SetEnd, latency and holds
// stay.
func (f *Faulty) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// SetEnd makes reads end at off as in a file that has shrunk, while Size goes
// on to say what it said. Negative: no more.
func (f *Faulty) SetEnd(off int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end = off
}

// judge finds the fault an operation meets. f.mu is held.
func (f *Faulty) judge(ops Ops, off, n int64) *Fault {
	if len(f.faults) == 0 {
		return nil
	}
	v := visit{ops, off}
	f.visits[v]++
	for i, x := range f.faults {
		if !x.Ops.has(ops) || !x.covers(ops, off, n) {
			continue
		}
		x.met++
		first := max(x.Nth, 1)
		if x.met < first || x.Count > 0 && x.met >= first+x.Count {
			continue
		}
		if x.Prob > 0 && draw(f.o.Seed, uint64(i), uint64(ops), uint64(off), f.visits[v]) >= x.Prob {
			continue
		}
		return x
	}
	return nil
}

// judgeCall is judge for what is not a transfer.
func (f *Faulty) judgeCall(ops Ops, off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ops == OnTruncate {
		f.counts.Truncates++
	} else {
		f.counts.Discards++
	}
	x := f.judge(ops, off, n)
	if x == nil || x.Err == nil {
		return nil
	}
	f.counts.Failed++
	return x.Err
}

func (x *Fault) covers(ops Ops, off, n int64) bool {
	if x.Off == 0 && x.Len == 0 {
		return true
	}
	if ops == OnFlush || ops == OnTruncate {
		return false
	}
	end := int64(math.MaxInt64)
	if x.Len > 0 && x.Off <= end-x.Len {
		end = x.Off + x.Len
	}
	return off < end && x.Off < off+n
}

// draw is a number in [0, 1) that depends on all of its arguments.
func draw(parts ...uint64) float64 {
	h := uint64(0xcbf29ce484222325)
	for _, p := range parts {
		h ^= p
		// Rounds of a 64-bit finaliser: near numbers give far results.
		h ^= h >> 32
		h *= 0xd6e8feb86659fd93
		h ^= h >> 32
		h *= 0xd6e8feb86659fd93
		h ^= h >> 32
	}
	return float64(h>>11) / (1 << 53)
}
