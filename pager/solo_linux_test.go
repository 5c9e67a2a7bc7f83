package pager

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// engineSpy says to whom the ops of a store are given.
type engineSpy struct {
	store.Store
	alone, others atomic.Int64 // writes
	flush         atomic.Value // aio.Engine of the last flush
	onWrite       atomic.Pointer[func()]
}

func (s *engineSpy) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		switch op.Code {
		case aio.Flush:
			s.flush.Store(&e)
		case aio.Write:
			if _, ok := e.(*soloEngine); ok {
				s.alone.Add(1)
			} else {
				s.others.Add(1)
			}
			if f := s.onWrite.Load(); f != nil {
				(*f)()
			}
		}
	}
	s.Store.Start(e, ops)
}

// soloRegion is a region over a file of so many pages, with a store in between.
func soloRegion(t *testing.T, pages int, over func(store.Store) store.Store) (*Pager, *Region, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, make([]byte, pages*FrameSize), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenFile(name, store.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPager(t, Options{Budget: int64(2*pages+64) * FrameSize})
	r, err := p.Map(over(s), RegionOptions{Writeback: Writeback{NoSteal: true}})
	if err != nil {
		t.Fatal(err)
	}
	e := p.solo.take(p)
	if e == nil {
		t.Skip("no engine of one's own here")
	}
	e.a.drain()
	return p, r, name
}

// soon is f's error, or the test's end if f does not come back.
func soon(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		t.Fatalf("%s does not end", what)
		return nil
	}
}

// checkFile compares pages of the file with what they were filled with.
func checkFile(t *testing.T, name string, want map[int]byte) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for page, b := range want {
		if !bytes.Equal(got[page*FrameSize:(page+1)*FrameSize], bytes.Repeat([]byte{b}, FrameSize)) {
			t.Errorf("page %d of the file begins with %d, want %d", page, got[page*FrameSize], b)
		}
	}
}

// Who waits for a Sync writes through an engine of his own, and flushes in place
// if his wait cannot end earlier; one that does not wait has the pager's.
func TestSyncIsDoneByWhoWaits(t *testing.T) {
	var spy *engineSpy
	const pages = 1024
	p, r, name := soloRegion(t, pages, func(s store.Store) store.Store {
		spy = &engineSpy{Store: s}
		return spy
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i, c := range []struct {
		what  string
		sync  func() error
		alone bool
		flush func(aio.Engine) bool
	}{
		{"Sync", func() error { return r.Sync(context.Background()) }, true, func(e aio.Engine) bool { return e == p.onSpot.e }},
		{"Sync that may end early", func() error { return r.Sync(ctx) }, true, func(e aio.Engine) bool { _, ok := e.(*soloEngine); return ok }},
		{"SyncEventfd", func() error {
			s, err := r.SyncEventfd(0, r.Len(), -1)
			if err == nil {
				err = s.Wait(ctx)
			}
			return err
		}, false, func(e aio.Engine) bool { return e == p.engine }},
	} {
		want := map[int]byte{}
		for page := i; page < pages; page += 3 {
			want[page] = byte(i + 1)
			fill(t, r, page, want[page])
		}
		spy.alone.Store(0)
		spy.others.Store(0)
		if err := soon(t, c.what, c.sync); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		alone, others := spy.alone.Load(), spy.others.Load()
		if n := alone + others; n != int64(len(want)) || c.alone && others != 0 || !c.alone && alone != 0 {
			t.Errorf("%s: %d writes by who waits and %d by others, of %d pages", c.what, alone, others, len(want))
		}
		if e := *spy.flush.Load().(*aio.Engine); !c.flush(e) {
			t.Errorf("%s: its flush went to a %T", c.what, e)
		}
		checkFile(t, name, want)
	}
}

// A store that passes writes on later, when their Sync has given the engine back
// because nothing was in flight there, is not left waiting for who reaps it.
func TestWritesThatAreLateForTheEngine(t *testing.T) {
	var spy *engineSpy
	p, r, name := soloRegion(t, 256, func(s store.Store) store.Store {
		spy = &engineSpy{Store: store.NewFaulty(s, store.FaultyOptions{Latency: 5 * time.Millisecond, Jitter: 5 * time.Millisecond})}
		return spy
	})
	for i := range 3 {
		want := map[int]byte{}
		for page := i; page < 256; page += 2 {
			want[page] = byte(i + 1)
			fill(t, r, page, want[page])
		}
		if err := soon(t, "Sync", func() error { return r.Sync(context.Background()) }); err != nil {
			t.Error(err)
		}
		checkFile(t, name, want)
		if spy.alone.Load() == 0 {
			t.Error("no write went to the engine of who waits")
		}
	}
	e := p.solo.take(p)
	if e == nil {
		t.Fatal("somebody still has the engine")
	}
	if n := e.InFlight(); n != 0 {
		t.Errorf("%d writes are in flight where nobody looks", n)
	}
	e.a.drain()
}

// A context ends the wait and not the writing, also of what was not started.
func TestSyncThatIsLeft(t *testing.T) {
	var spy *engineSpy
	_, r, name := soloRegion(t, 1024, func(s store.Store) store.Store {
		spy = &engineSpy{Store: s}
		return spy
	})
	for i := range 8 {
		want := map[int]byte{}
		for page := range 1024 {
			if page%2 == i%2 {
				want[page] = byte(i + 1)
				fill(t, r, page, want[page])
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		var n atomic.Int64
		leave := func() {
			if n.Add(1) == int64(1+i*40) {
				cancel()
			}
		}
		spy.onWrite.Store(&leave)
		if err := soon(t, "Sync", func() error { return r.Sync(ctx) }); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		} else if i == 0 && err == nil {
			t.Error("the context has ended at the first write, and all are waited for")
		}
		cancel()
		spy.onWrite.Store(nil)
		if err := soon(t, "the next Sync", func() error { return r.Sync(context.Background()) }); err != nil {
			t.Error(err)
		}
		checkFile(t, name, want)
	}
}

// A write that fails is the error of its Sync, and the page is in the next one.
func TestSyncByWhoWaitsFails(t *testing.T) {
	var faulty *store.Faulty
	_, r, name := soloRegion(t, 256, func(s store.Store) store.Store {
		faulty = store.NewFaulty(s, store.FaultyOptions{})
		return faulty
	})
	want := map[int]byte{}
	for page := 0; page < 256; page += 2 {
		want[page] = 7
		fill(t, r, page, 7)
	}
	faulty.Inject(store.Fault{Ops: store.OnWrite, Err: unix.EFBIG, Count: 1})
	if err := soon(t, "Sync", func() error { return r.Sync(context.Background()) }); !errors.Is(err, unix.EFBIG) {
		t.Errorf("Sync: %v", err)
	}
	if err := soon(t, "the next Sync", func() error { return r.Sync(context.Background()) }); err != nil {
		t.Error(err)
	}
	checkFile(t, name, want)
}

// Many who wait, of whom one at a time has the engine, some of whom leave, beside
// some who do not wait: nothing is lost, and every Sync ends.
func TestSyncsOfMany(t *testing.T) {
	const writers, each = 6, 64
	_, r, name := soloRegion(t, writers*each, func(s store.Store) store.Store { return s })
	var wg sync.WaitGroup
	var last [writers * each]byte
	for g := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 11))
			for i := range longer(60) {
				for range 1 + rnd.IntN(8) {
					page := g + writers*rnd.IntN(each)
					last[page] = byte(i + 1)
					if _, err := r.WriteAt(bytes.Repeat([]byte{last[page]}, FrameSize), int64(page)*FrameSize); err != nil {
						t.Error(err)
						return
					}
				}
				var err error
				switch rnd.IntN(4) {
				case 0:
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(300))*time.Microsecond)
					if err = r.Sync(ctx); errors.Is(err, context.DeadlineExceeded) {
						err = nil
					}
					cancel()
				case 1:
					var s *SyncOp
					if s, err = r.SyncEventfd(0, r.Len(), -1); err == nil {
						err = s.Wait(context.Background())
					}
				default:
					err = r.Sync(context.Background())
				}
				if err != nil {
					t.Errorf("Sync: %v", err)
				}
			}
		})
	}
	if err := soon(t, "a writer", func() error { wg.Wait(); return r.Sync(context.Background()) }); err != nil {
		t.Error(err)
	}
	want := map[int]byte{}
	for page, b := range last {
		want[page] = b
	}
	checkFile(t, name, want)
}
