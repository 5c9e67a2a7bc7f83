package liveness

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestListenersMayLook: every function of an EventListener may call what the
// documentation allows, while others read, write and evict.
func TestListenersMayLook(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{Procs: 2, Deadline: 30 * time.Second}) {
		return
	}
	var pp atomic.Pointer[pager.Pager]
	var rr atomic.Pointer[pager.Region]
	var told struct{ readError, writeError, evicted, wedged atomic.Int64 }
	look := func(n *atomic.Int64) {
		p, r := pp.Load(), rr.Load()
		if p == nil || r == nil {
			return
		}
		n.Add(1)
		if s := p.Stats(); s.Budget == 0 {
			t.Error("no budget")
		}
		_ = r.Stats()
		_, _ = r.Residency(0, r.Len())
		if err := r.Advise(0, page, pager.Cold); err != nil && !errors.Is(err, pager.ErrClosed) {
			t.Errorf("Advise: %v", err)
		}
	}
	p := fixture.Pager(t, pager.Options{Budget: 16 * page, WedgeLimit: 20 * time.Millisecond, Events: &pager.EventListener{
		ReadError:  func(*pager.Region, int64, int64, error) { look(&told.readError) },
		WriteError: func(*pager.Region, int64, int64, error) { look(&told.writeError) },
		Evicted:    func(int) { look(&told.evicted) },
		Wedged:     func(pager.Wedge) { look(&told.wedged) },
	}})
	pp.Store(p)
	s := store.NewFaulty(fixture.Memory(t, 100*page, 1), store.FaultyOptions{})
	t.Cleanup(func() { s.Clear(); s.Release() })
	r := fixture.Map(t, p, s, quiet)
	rr.Store(r)
	ctx := context.Background()

	var wg sync.WaitGroup
	for w := range int64(4) {
		wg.Go(func() {
			b := make([]byte, page)
			for i := range int64(300) {
				off := (w*31 + i*7) % 100 * page
				if _, err := r.ReadAt(b, off); err != nil {
					t.Errorf("ReadAt: %v", err)
				}
				if i%4 == 0 {
					if _, err := r.WriteAt(b, off); err != nil {
						t.Errorf("WriteAt: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	s.Inject(store.Fault{Ops: store.OnRead | store.OnWrite, Err: syscall.EIO})
	for i := range int64(100) {
		_, _ = r.ReadAt(make([]byte, 1), i*page)
	}
	if _, err := r.WriteAt(make([]byte, page), 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(ctx); !errors.Is(err, syscall.EIO) {
		t.Errorf("Sync: %v", err)
	}
	s.Clear()
	s.Hold(store.OnRead)
	for i := range int64(8) {
		wg.Go(func() {
			for k := range int64(100) {
				if _, err := r.ReadAt(make([]byte, 1), (i+k)%100*page); err != nil {
					t.Errorf("ReadAt: %v", err)
				}
			}
		})
	}
	fixture.Eventually(t, "a wedge is told of", func() bool { return told.wedged.Load() > 0 })
	s.Release()
	wg.Wait()
	if told.readError.Load() == 0 || told.writeError.Load() == 0 || told.evicted.Load() == 0 {
		t.Errorf("told %d times of read errors, %d of write errors, %d of evictions", told.readError.Load(), told.writeError.Load(), told.evicted.Load())
	}
	if err := r.Sync(ctx); err != nil {
		_ = r.Sync(ctx) // an error that nobody has been told of may come once
	}
}
