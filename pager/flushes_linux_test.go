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

// flushHolder hands the flushes of a store to the test, which ends them.
type flushHolder struct {
	store.Store
	hold    atomic.Bool
	flushes chan *aio.Op
}

func (s *flushHolder) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		if op.Code == aio.Flush && s.hold.Load() {
			s.flushes <- op
		} else {
			s.Store.Start(e, []*aio.Op{op})
		}
	}
}

// The kernel tells one of two flushes beside each other of a write that failed.
// The other one ends well, before who was told has said so, and its Sync must not.
func TestAFlushBesideOneThatFails(t *testing.T) {
	needProtection(t)
	for _, first := range []error{nil, unix.EIO} {
		p := newPager(t, Options{Budget: 64 * FrameSize})
		s := &flushHolder{Store: store.NewMemory(16 * FrameSize), flushes: make(chan *aio.Op, 4)}
		s.hold.Store(true)
		r, err := p.Map(s, RegionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		results := [2]chan error{make(chan error, 1), make(chan error, 1)}
		var ops [2]*aio.Op
		for i := range ops {
			fill(t, r, i, 1)
			go func() { results[i] <- r.Sync(context.Background()) }()
			ops[i] = <-s.flushes
		}
		ops[1].Done(ops[1])
		select {
		case err := <-results[1]:
			t.Errorf("a Sync ended (%v) while a flush that may have taken the blame was under way", err)
			results[1] <- err
		case <-time.After(20 * time.Millisecond):
		}
		// One that begins now is not waited for.
		fill(t, r, 2, 1)
		third := make(chan error, 1)
		go func() { third <- r.Sync(context.Background()) }()
		last := <-s.flushes
		ops[0].Err = first
		ops[0].Done(ops[0])
		if err := <-results[1]; !errors.Is(err, first) {
			t.Errorf("the Sync whose flush ended well: %v, want %v", err, first)
		}
		last.Done(last)
		for _, c := range []chan error{results[0], third} {
			if err := <-c; !errors.Is(err, first) {
				t.Errorf("the Sync that came first, or last: %v, want %v", err, first)
			}
		}
		s.hold.Store(false)
		if err := r.Close(); !errors.Is(err, first) {
			t.Errorf("Close: %v", err)
		}
	}
}

// So it is with a commit, and the keeper's flush of the journal.
func TestACommitBesideAFlushThatFails(t *testing.T) {
	needProtection(t)
	for _, leave := range []bool{false, true} {
		p := newPager(t, Options{Budget: 64 * FrameSize})
		s := &flushHolder{Store: store.NewMemory(1 << 20), flushes: make(chan *aio.Op, 4)}
		r, err := p.Map(store.NewMemory(16*FrameSize), RegionOptions{Durability: Atomic, Journal: JournalOptions{Store: s, Interval: -1, Limit: 1 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		fill(t, r, 0, 1)
		if err := r.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		for r.atomic.grow(ctx) == nil { // the keeper has nothing to do
		}
		s.hold.Store(true)
		checkpointed, committed := make(chan error, 1), make(chan error, 1)
		go func() { checkpointed <- r.atomic.checkpoint(ctx) }()
		keepers := <-s.flushes
		fill(t, r, 1, 1)
		go func() {
			ctx := ctx
			if leave {
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				defer cancel()
			}
			committed <- r.Commit(ctx)
		}()
		mine := <-s.flushes
		mine.Done(mine)
		select {
		case err := <-committed:
			t.Errorf("a commit ended (%v) while a flush that may have taken the blame was under way", err)
			committed <- err
		case <-time.After(20 * time.Millisecond):
		}
		keepers.Err = unix.EIO
		keepers.Done(keepers)
		if err := <-committed; !errors.Is(err, unix.EIO) {
			t.Errorf("the commit: %v", err)
		}
		if err := <-checkpointed; !errors.Is(err, unix.EIO) {
			t.Errorf("the checkpoint: %v", err)
		}
		s.hold.Store(false)
		if err := r.Close(); !errors.Is(err, unix.EIO) {
			t.Errorf("Close: %v", err)
		}
	}
}
