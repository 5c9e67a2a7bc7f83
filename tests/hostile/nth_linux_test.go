package hostile

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// manual is a region that writes nothing by itself.
var manual = pager.RegionOptions{Prefetch: prefetch.None(), Writeback: pager.Writeback{Age: -1, DirtyShare: 1}}

// TestNthWriteFails fails the n-th write, once, of slow ones: each of the Syncs
// that wait for that page is told, those that do not wait for it are not; then
// it is written, and nothing is lost.
func TestNthWriteFails(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	ctx := context.Background()
	const pages = 6 // every second one, so that each is a write of its own
	for _, f := range []store.Fault{{Err: unix.EIO}, {Err: unix.ENOSPC}, {Err: unix.ENOSPC, Short: 512}} {
		for nth := int64(1); nth <= pages; nth++ {
			what := fmt.Sprintf("write %d fails with %v (short %d)", nth, f.Err, f.Short)
			p := fixture.Pager(t, pager.Options{Budget: 64 * page})
			mem := fixture.Memory(t, 100*page, 1)
			s := store.NewFaulty(mem, store.FaultyOptions{Latency: 2 * time.Millisecond, Check: true})
			r := fixture.Map(t, p, s, manual)
			b := make([]byte, page)
			fixture.Fill(b, 0, 77)
			for i := range int64(pages) {
				if _, err := r.WriteAt(b, 2*i*page); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			f.Ops, f.Nth, f.Count = store.OnWrite, nth, 1
			s.Inject(f)
			// Several wait for all pages, one for each page by itself, all from
			// before the first write ends.
			s.HoldDone(store.OnWrite)
			var all [3]*pager.SyncOp
			var one [pages]*pager.SyncOp
			var err error
			for i := range all {
				if all[i], err = r.SyncEventfd(0, r.Len(), -1); err != nil {
					t.Fatal(err)
				}
			}
			for i := range one {
				if one[i], err = r.SyncEventfd(int64(2*i)*page, page, -1); err != nil {
					t.Fatal(err)
				}
			}
			s.Release()
			for i, op := range all {
				if err := op.Wait(ctx); !errors.Is(err, f.Err) {
					t.Errorf("%s: Sync %d of all: %v", what, i, err)
				}
			}
			failed := 0
			for i, op := range one {
				switch err := op.Wait(ctx); {
				case errors.Is(err, f.Err):
					isFault(t, what, err, int64(2*i), f.Err.(unix.Errno))
					failed++
				case err != nil:
					t.Errorf("%s: Sync of page %d: %v", what, 2*i, err)
				}
			}
			if failed != 1 {
				t.Errorf("%s: %d Syncs of single pages failed, want 1", what, failed)
			}
			if st := p.Stats(); st.WriteErrors != 1 || st.Dirty != page {
				t.Errorf("%s: %d write errors, %d bytes dirty, want 1 and one page", what, st.WriteErrors, st.Dirty)
			}
			// Everybody has been told. It is tried again, and is there.
			if err := r.Sync(ctx); err != nil {
				t.Errorf("%s: the next Sync: %v", what, err)
			}
			if st := p.Stats(); st.Dirty != 0 || st.Writebacks != pages {
				t.Errorf("%s: %d bytes dirty, %d writebacks, want 0 and %d", what, st.Dirty, st.Writebacks, pages)
			}
			if c := s.Counts(); c.Overlaps != 0 || c.Changed != 0 {
				t.Errorf("%s: %d writes overlapped, %d changed under way", what, c.Overlaps, c.Changed)
			}
			k, _ := mem.Kernel()
			for i := range pages {
				if err := fixture.Compare(k.Mem[2*i*page:(2*i+1)*page], b, 0); err != nil {
					t.Errorf("%s: page %d in the store: %v", what, 2*i, err)
				}
			}
			if err := p.Close(); err != nil {
				t.Errorf("%s: Close: %v", what, err)
			}
		}
	}
}

// TestNthFlushFails: the Syncs before it have kept their promise, it and all
// that follow fail, whatever is evicted in between, and reads and writes go on.
func TestNthFlushFails(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	ctx := context.Background()
	for nth := int64(1); nth <= 4; nth++ {
		p := fixture.Pager(t, pager.Options{Budget: 32 * page})
		s := store.NewFaulty(fixture.Memory(t, 200*page, 1), store.FaultyOptions{})
		r, err := p.Map(s, manual)
		if err != nil {
			t.Fatal(err)
		}
		s.Inject(store.Fault{Ops: store.OnFlush, Nth: nth, Count: 1, Err: unix.EIO})
		b := make([]byte, page)
		for i := int64(1); i <= 6; i++ {
			if _, err := r.WriteAt(b, i*page); err != nil {
				t.Fatalf("writing: %v", err)
			}
			// Two at a time: they may share the flush that fails or not, but
			// neither may call durable what the failed one was to make so.
			var errs [2]error
			var wg sync.WaitGroup
			if i != nth {
				errs[0] = r.Sync(ctx)
				errs[1] = errs[0]
			} else {
				for k := range errs {
					wg.Go(func() { errs[k] = r.Sync(ctx) })
				}
				wg.Wait()
			}
			switch what := fmt.Sprintf("flush %d fails: Sync %d", nth, i); {
			case i < nth && errors.Join(errs[:]...) != nil:
				t.Errorf("%s: %v", what, errs)
			case i == nth:
				oops(t, what, errors.Join(errs[:]...), unix.EIO)
			case i > nth:
				oops(t, what, errs[0], unix.EIO)
			}
			for k := range int64(200) { // evict everything
				if _, err := r.ReadAt(b[:1], k*page); err != nil {
					t.Fatalf("reads go on: %v", err)
				}
			}
			clear(b)
		}
		oops(t, "Close", r.Close(), unix.EIO)
	}
}
