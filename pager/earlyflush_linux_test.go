package pager

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// flushSpy says what its store was doing when it was flushed.
type flushSpy struct {
	store.Store
	mu      sync.Mutex
	under   int // writes under way
	ended   int // writes
	flushes []flushSeen
	first   func(start func()) // has the first flush if it is not nil
}

// flushSeen is what a flush found when it was started.
type flushSeen struct{ under, ended int }

func (s *flushSpy) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		s.mu.Lock()
		switch op.Code {
		case aio.Write:
			s.under++
			done := op.Done
			op.Done = func(op *aio.Op) {
				s.mu.Lock()
				s.under--
				s.ended++
				s.mu.Unlock()
				op.Done = done
				done(op)
			}
		case aio.Flush:
			s.flushes = append(s.flushes, flushSeen{s.under, s.ended})
			if f := s.first; f != nil {
				s.first = nil
				s.mu.Unlock()
				f(func() { s.Store.Start(e, ops) })
				return
			}
		}
		s.mu.Unlock()
	}
	s.Store.Start(e, ops)
}

// earlyRegion has every other one of so many pages dirty.
func earlyRegion(t *testing.T, dirty int, over func(store.Store) store.Store) (*Pager, *Region, *flushSpy, map[int]byte, string) {
	t.Helper()
	var spy *flushSpy
	p, r, name := soloRegion(t, 2*dirty, func(s store.Store) store.Store {
		spy = &flushSpy{Store: over(s)}
		return spy
	})
	want := map[int]byte{}
	for page := 0; page < 2*dirty; page += 2 {
		want[page] = byte(page%250 + 1)
		fill(t, r, page, want[page])
	}
	return p, r, spy, want, name
}

// A Sync of many pages flushes while it still writes, as often as it is worth
// while, and once more when all is written; one of a few pages flushes once.
func TestSyncOfManyFlushesEarly(t *testing.T) {
	for _, how := range []struct {
		what string
		sync func(r *Region) error
	}{
		{"Sync", func(r *Region) error { return r.Sync(context.Background()) }},
		{"SyncEventfd", func(r *Region) error {
			s, err := r.SyncEventfd(0, r.Len(), -1)
			if err == nil {
				err = s.Wait(context.Background())
			}
			return err
		}},
	} {
		for _, dirty := range []int{earlyPages, 6 * earlyPages} {
			_, r, spy, want, name := earlyRegion(t, dirty, func(s store.Store) store.Store { return s })
			if err := soon(t, how.what, func() error { return how.sync(r) }); err != nil {
				t.Fatal(err)
			}
			spy.mu.Lock()
			seen := spy.flushes
			spy.mu.Unlock()
			if last := seen[len(seen)-1]; last.under != 0 || last.ended != dirty {
				t.Errorf("%s: the last flush came when %d of %d writes had ended and %d were under way", how.what, last.ended, dirty, last.under)
			}
			if early := len(seen) - 1; early > dirty/earlyPages || early == 0 != (dirty == earlyPages) {
				t.Errorf("%s: %d flushes before the last one, with %d pages", how.what, early, dirty)
			}
			for i, f := range seen[:len(seen)-1] {
				if f.ended < (i+1)*earlyPages || f.ended > dirty-earlyLeft {
					t.Errorf("%s: flush %d came after %d of %d writes", how.what, i, f.ended, dirty)
				}
			}
			checkFile(t, name, want)
		}
	}
}

// What an early flush has failed to make durable no later one does: its error is
// that of the Sync, and of every later one.
func TestAnEarlyFlushThatFails(t *testing.T) {
	var faulty *store.Faulty
	_, r, spy, _, _ := earlyRegion(t, 6*earlyPages, func(s store.Store) store.Store {
		faulty = store.NewFaulty(s, store.FaultyOptions{})
		return faulty
	})
	faulty.Inject(store.Fault{Ops: store.OnFlush, Err: unix.ENOSPC, Count: 1})
	for i := range 2 {
		if err := soon(t, "Sync", func() error { return r.Sync(context.Background()) }); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("Sync %d: %v", i, err)
		}
	}
	if f := spy.flushes[0]; f.ended == 6*earlyPages {
		t.Error("the flush that failed was not an early one")
	}
	if err := r.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Close: %v", err)
	}
}

// A Sync does not end before its early flush, even if that takes longer than
// everything else: it may still fail.
func TestASyncWaitsForItsEarlyFlush(t *testing.T) {
	var faulty *store.Faulty
	_, r, spy, _, _ := earlyRegion(t, 6*earlyPages, func(s store.Store) store.Store {
		faulty = store.NewFaulty(s, store.FaultyOptions{})
		return faulty
	})
	started := make(chan func(), 1)
	spy.first = func(start func()) { started <- start }
	s, err := r.SyncEventfd(0, r.Len(), -1)
	if err != nil {
		t.Fatal(err)
	}
	start := <-started
	if err := soon(t, "the writes", func() error {
		for turn := 0; ; turn++ {
			spy.mu.Lock()
			ended := spy.ended
			spy.mu.Unlock()
			if ended == 6*earlyPages {
				return nil
			}
			pause(turn)
		}
	}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
		t.Error("the Sync has ended before a flush that it has started")
	case <-time.After(200 * time.Millisecond):
	}
	faulty.Inject(store.Fault{Ops: store.OnFlush, Err: unix.ENOSPC, Count: 1})
	start()
	if err := soon(t, "Sync", func() error { return s.Wait(context.Background()) }); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Sync: %v", err)
	}
	if err := r.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Close: %v", err)
	}
}
