package store

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Recorder is the log, and the clock, of stores that lose power together: a
// data file and its journal, say.
//
// Every begin and every end of a write, flush, truncation or discard is one
// tick. A crash is a tick; Recording.Image says what a store may hold after it.
type Recorder struct {
	mu   sync.Mutex
	tick int
	log  []*Record
}

// Record is one change of one store, or one flush.
type Record struct {
	Seq   int // place in the Recorder's log
	Store *Recording
	Op    Ops    // OnWrite, OnFlush, OnTruncate or OnDiscard
	Off   int64  // OnWrite, OnDiscard
	Len   int64  // OnWrite, OnDiscard: bytes; OnTruncate: the new size
	Data  []byte // OnWrite: a copy, cut at Size

	Begun int   // tick at which it was started
	Ended int   // tick at which it was reported done; 0: not yet
	Err   error // how it ended
}

// Recording is a Store over another one that logs every change and every
// flush, so that a test can make the images a power loss would leave.
type Recording struct {
	below Store
	rec   *Recorder
	base  []byte // what below held at first
}

// NewRecording wraps s, which it owns, also on error, and reads all of it into
// the Go heap. With a Recorder of nil the store has one of its own.
func NewRecording(s Store, with *Recorder) (*Recording, error) {
	if s == nil {
		return nil, invalid("NewRecording of a store that is nil")
	}
	base, err := readAll(s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if with == nil {
		with = new(Recorder)
	}
	return &Recording{below: s, rec: with, base: base}, nil
}

// readAll reads the store through an engine of its own.
func readAll(s Store) ([]byte, error) {
	e, err := aio.Open(aio.Options{Kind: aio.Threads, Depth: 1})
	if err != nil {
		return nil, err
	}
	defer e.Close()
	const chunk = 1 << 20
	buf, err := reserve(chunk)
	if err != nil {
		return nil, err
	}
	defer unreserve(buf)
	all := make([]byte, 0, s.Size())
	for size := s.Size(); int64(len(all)) < size; {
		op := &aio.Op{Code: aio.Read, Off: int64(len(all)), Buf: buf[:chunk]}
		if err := await(s, e, op); err != nil {
			return nil, err
		}
		if op.N == 0 {
			return nil, fmt.Errorf("store: %v ends at %d of %d bytes: %w", s, len(all), size, io.ErrUnexpectedEOF)
		}
		all = append(all, buf[:op.N]...)
	}
	return all, nil
}

var _ Store = (*Recording)(nil)

// Size implements Store.
func (r *Recording) Size() int64 { return r.below.Size() }

// BlockSize implements Store.
func (r *Recording) BlockSize() int { return r.below.BlockSize() }

// Writable implements Store.
func (r *Recording) Writable() bool { return r.below.Writable() }

// Kernel implements Store. The kernel form is there to be read; what is
// written through it is not recorded.
func (r *Recording) Kernel() (Kernel, bool) { return r.below.Kernel() }

// Close implements Store. The record stays readable.
func (r *Recording) Close() error { return r.below.Close() }

// String implements Store.
func (r *Recording) String() string { return "recording " + r.below.String() }

// Recorder returns the log, to share it with other stores.
func (r *Recording) Recorder() *Recorder { return r.rec }

// Now is the last tick.
func (rec *Recorder) Now() int {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.tick
}

// Records returns the log so far, in the order of Begun. Data is shared.
func (rec *Recorder) Records() []Record {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	out := make([]Record, len(rec.log))
	for i, x := range rec.log {
		out[i] = *x
	}
	return out
}

func (rec *Recorder) begin(x *Record) *Record {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.tick++
	x.Seq, x.Begun = len(rec.log), rec.tick
	rec.log = append(rec.log, x)
	return x
}

// end is called before whoever waits is told: what was acknowledged has ended.
func (rec *Recorder) end(x *Record, err error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.tick++
	x.Ended, x.Err = rec.tick, err
}

// recorded is a write or flush on its way to the store below.
type recorded struct {
	aio.Op
	caller *aio.Op
	record *Record
}

// Start implements Store.
func (r *Recording) Start(e aio.Engine, ops []*aio.Op) {
	below := make([]*aio.Op, 0, len(ops))
	for _, op := range ops {
		if op.Code == aio.Read {
			below = append(below, op)
			continue
		}
		x := &Record{Store: r, Op: opsOf(op.Code)}
		if op.Code == aio.Write {
			n := max(0, min(int64(len(op.Buf)), r.below.Size()-op.Off))
			x.Off, x.Len, x.Data = op.Off, n, slices.Clone(op.Buf[:n])
		}
		o := &recorded{caller: op, record: r.rec.begin(x)}
		o.Op = aio.Op{Code: op.Code, Off: op.Off, Buf: op.Buf, Done: recordedDone, Arg: o}
		below = append(below, &o.Op)
	}
	r.below.Start(e, below)
}

func recordedDone(op *aio.Op) {
	o := op.Arg.(*recorded)
	err := op.Err
	if err == nil && op.N < len(op.Buf) {
		err = io.ErrShortWrite
	}
	o.record.Store.rec.end(o.record, err)
	finish(o.caller, op.N, op.Err)
}

// Truncate implements Store.
func (r *Recording) Truncate(size int64) error {
	x := r.rec.begin(&Record{Store: r, Op: OnTruncate, Len: size})
	err := r.below.Truncate(size)
	r.rec.end(x, err)
	return err
}

// Discard implements Store.
func (r *Recording) Discard(off, n int64) error {
	x := r.rec.begin(&Record{Store: r, Op: OnDiscard, Off: off, Len: n})
	err := r.below.Discard(off, n)
	r.rec.end(x, err)
	return err
}
