package journal

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// medium is a store together with the engine that its transfers go through.
type medium struct {
	s      store.Store
	e      aio.Engine
	reaped bool // see Options.Reaped
}

// inFlight is the most long transfers that waiting forms have under way, and chunk
// the longest of them in bytes: enough to keep a device busy.
const (
	inFlight = 8
	chunk    = 1 << 20
)

// scattered is the most transfers of single pages under way. Reads that somebody
// waits for go through the same engine to the same device and stand behind
// them.
const scattered = 32

// run carries ops out, so many at a time, and waits until they have ended. After
// an error, of which the first wins, no more are started. It does not matter
// whether somebody else reaps the engine as well.
func (m medium) run(ops []*aio.Op) error {
	for some := range slices.Chunk(ops, scattered) {
		if err := m.together(some); err != nil {
			return err
		}
	}
	return nil
}

// together is run for ops that are all started at once.
func (m medium) together(ops []*aio.Op) error {
	over := make(chan struct{})
	var left atomic.Int64
	left.Store(int64(len(ops)))
	for _, op := range ops {
		op.Done = func(*aio.Op) {
			if left.Add(-1) == 0 {
				close(over)
			}
		}
	}
	m.s.Start(m.e, ops)
	if m.reaped {
		<-over
	} else {
		m.look(over)
	}
	for _, op := range ops {
		if err := m.judge(op); err != nil {
			return err
		}
	}
	return nil
}

// look reaps now and then until it is over. Not Engine.Wait: only one can be in
// there, who may be somebody that sleeps until a transfer of his own ends.
func (m medium) look(over <-chan struct{}) {
	for wait := 20 * time.Microsecond; ; {
		pause := time.Duration(0)
		if m.e == nil || m.e.Reap(inFlight) == 0 {
			pause, wait = wait, min(2*wait, time.Millisecond)
		}
		select {
		case <-over:
			return
		case <-time.After(pause):
		}
	}
}

// judge is the error of an op that has ended. A read past the end of the store
// reads zeros.
func (m medium) judge(op *aio.Op) error {
	err := op.Err
	if err == nil && op.Code == aio.Write && op.N < len(op.Buf) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("journal: %v %v at %d: %w", op.Code, m.s, op.Off, err)
	}
	if op.Code == aio.Read {
		clear(op.Buf[op.N:])
	}
	return nil
}

func (m medium) read(ctx context.Context, b []byte, off int64) error {
	return m.transfer(ctx, aio.Read, b, off)
}

func (m medium) write(ctx context.Context, b []byte, off int64) error {
	return m.transfer(ctx, aio.Write, b, off)
}

func (m medium) flush() error { return m.run([]*aio.Op{{Code: aio.Flush}}) }

// transfer moves b in chunks.
func (m medium) transfer(ctx context.Context, code aio.Code, b []byte, off int64) error {
	var ops []*aio.Op
	for len(b) > 0 {
		n := min(len(b), chunk)
		ops = append(ops, &aio.Op{Code: code, Off: off, Buf: b[:n]})
		b, off = b[n:], off+int64(n)
		if len(ops) == inFlight || len(b) == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := m.run(ops); err != nil {
				return err
			}
			ops = ops[:0]
		}
	}
	return nil
}

// zero writes zeros from off to end. What a file system has allocated and
// written once can be written again and flushed without a change of its own
// metadata.
func (m medium) zero(ctx context.Context, off, end int64) error {
	if off >= end {
		return nil
	}
	zeros, err := newBuffer(min(chunk, end-off))
	if err != nil {
		return err
	}
	defer freeBuffer(zeros)
	for off < end {
		var ops []*aio.Op
		for len(ops) < inFlight && off < end {
			n := min(int64(len(zeros)), end-off)
			ops = append(ops, &aio.Op{Code: aio.Write, Off: off, Buf: zeros[:n]})
			off += n
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.run(ops); err != nil {
			return err
		}
	}
	return nil
}
