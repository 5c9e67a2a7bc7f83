//go:build linux

package pager

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// flushedByCall is a store that can be flushed by a call, which fails with what
// err has.
type flushedByCall struct {
	store.Store
	writes  atomic.Int64 // under way, but for headers, which are the keeper's
	flushes atomic.Int64 // by a call
	early   atomic.Int64 // of these, with writes under way
	err     atomic.Pointer[unix.Errno]
}

func (s *flushedByCall) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		if op.Code == aio.Write && op.Off >= 2*FrameSize {
			s.writes.Add(1)
			done := op.Done
			op.Done = func(op *aio.Op) {
				s.writes.Add(-1)
				op.Done = done
				done(op)
			}
		}
	}
	s.Store.Start(e, ops)
}

func (s *flushedByCall) Flush() error {
	s.flushes.Add(1)
	if s.writes.Load() > 0 {
		s.early.Add(1)
	}
	if e := s.err.Load(); e != nil {
		return *e
	}
	return nil
}

// A journal that can be flushed by a call is: once per commit, after all of its
// writes; a failure is kept, like that of an op.
func TestCommitFlushesByACall(t *testing.T) {
	p := newPager(t, Options{Budget: 256 * FrameSize})
	slow := store.NewFaulty(store.NewMemory(8192), store.FaultyOptions{Kernel: true})
	slow.SetLatency(time.Millisecond, time.Millisecond)
	journal := &flushedByCall{Store: slow}
	r, err := p.Map(store.NewMemory(64*FrameSize), RegionOptions{
		Durability: Atomic,
		Journal:    JournalOptions{Store: journal, Limit: 400 * FrameSize, Interval: -1},
		Writeback:  Writeback{NoSteal: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	// All writes are to be the commits': the journal has its length, nothing is
	// written in the background.
	for r.atomic.grow(ctx) == nil {
	}
	for i := range 20 {
		for k := range 1 + i%3 {
			fill(t, r, 7*k+i, byte(i))
		}
		before := journal.flushes.Load()
		if err := r.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if n := journal.flushes.Load() - before; n != 1 {
			t.Fatalf("commit %d: %d flushes", i, n)
		}
		if n := journal.early.Swap(0); n != 0 {
			t.Errorf("commit %d: %d flushes before its writes had ended", i, n)
		}
	}
	fill(t, r, 1, 1)
	eio := unix.EIO
	journal.err.Store(&eio)
	if err := r.Commit(ctx); !errors.Is(err, unix.EIO) {
		t.Errorf("Commit whose flush failed: %v", err)
	}
	journal.err.Store(nil)
	if err := r.Commit(ctx); !errors.Is(err, unix.EIO) {
		t.Errorf("Commit after a failed flush: %v", err)
	}
	if err := r.Close(); !errors.Is(err, unix.EIO) {
		t.Errorf("Close after a failed flush: %v", err)
	}
}

// Who will wait to the end commits by himself. Those who come meanwhile are not
// his: one whose context ends goes at once, one who stays gets the next commit,
// from the committer; Close waits for all.
func TestCommitOnTheCallersGoroutine(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, journal := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Interval: -1}})
	ctx := context.Background()
	fill(t, r, 0, 1)
	if err := r.Commit(ctx); err != nil { // makes the slots
		t.Fatal(err)
	}
	commits := p.Stats().Commits

	journal.Hold(store.OnWrite)
	fill(t, r, 1, 1)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- r.Commit(ctx) }()
	for journal.Counts().InFlight < 2 { // the image and the record
		time.Sleep(time.Millisecond)
	}
	if len(r.atomic.turn) != 1 {
		t.Error("nobody has the turn")
	}
	short, cancel := context.WithCancel(ctx)
	cancel()
	if err := r.Commit(short); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit whose context has ended: %v", err)
	}
	fill(t, r, 2, 2)
	go func() { second <- r.Commit(ctx) }()
	for waiting := 0; waiting < 2; time.Sleep(time.Millisecond) { // the one who has gone, and the second
		r.atomic.mu.Lock()
		waiting = len(r.atomic.waiting)
		r.atomic.mu.Unlock()
	}
	select {
	case err := <-first:
		t.Errorf("Commit came back before its writes: %v", err)
	case err := <-second:
		t.Errorf("Commit came back before its writes: %v", err)
	default:
	}
	journal.Release()
	for i, done := range []chan error{first, second} {
		if err := <-done; err != nil {
			t.Errorf("Commit %d: %v", i, err)
		}
	}
	if n := p.Stats().Commits - commits; n != 2 {
		t.Errorf("%d commits, want 2", n)
	}

	// Close beside a caller who commits by himself.
	journal.Hold(store.OnWrite)
	fill(t, r, 3, 3)
	go func() { first <- r.Commit(ctx) }()
	for journal.Counts().InFlight < 2 {
		time.Sleep(time.Millisecond)
	}
	closed := make(chan error, 1)
	go func() { closed <- r.Close() }()
	for !r.closing.Load() {
		time.Sleep(time.Millisecond)
	}
	journal.Release()
	if err := <-first; err != nil {
		t.Errorf("Commit during Close, with its cut taken before: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
}
