//go:build linux

package pager

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
)

// faultyAtomic is an Atomic region over stores that fail on command.
func faultyAtomic(t testing.TB, p *Pager, pages int, o RegionOptions) (r *Region, data, journal *store.Faulty) {
	t.Helper()
	needProtection(t)
	data = store.NewFaulty(store.NewMemory(int64(pages*FrameSize)), store.FaultyOptions{Kernel: true})
	journal = store.NewFaulty(store.NewMemory(8192), store.FaultyOptions{Kernel: true})
	o.Durability, o.Journal.Store = Atomic, journal
	r, err := p.Map(data, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, data, journal
}

func fill(t testing.TB, r *Region, page int, b byte) {
	t.Helper()
	if _, err := r.WriteAt(bytes.Repeat([]byte{b}, FrameSize), int64(page*FrameSize)); err != nil {
		t.Fatalf("WriteAt page %d: %v", page, err)
	}
}

// Commits that are asked for while one is under way share the next: 32
// callers take far fewer records than that, and none returns before what it
// wrote is durable.
func TestCommitsAreShared(t *testing.T) {
	p := newPager(t, Options{Budget: 256 * FrameSize})
	r, _, journal := faultyAtomic(t, p, 64, RegionOptions{})
	journal.SetLatency(2*time.Millisecond, 0)
	const callers, rounds = 32, 5
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for range rounds {
				if _, err := r.WriteAt([]byte{byte(i)}, int64(i*FrameSize)); err != nil {
					t.Error(err)
				}
				if err := r.Commit(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := p.Stats().Commits; n == 0 || n > callers*rounds/4 {
		t.Errorf("%d commits for %d calls", n, callers*rounds)
	}
}

// A failed write of an image or of the record fails this commit only; the next
// one has everything. A failed flush is kept.
func TestCommitErrors(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, data, journal := faultyAtomic(t, p, 16, RegionOptions{Retry: Retry{Times: -1}, Journal: JournalOptions{Interval: -1}})
	ctx := context.Background()
	fill(t, r, 3, 1)
	if err := r.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	for _, nth := range []int64{1, 2} {
		// With nothing to bring to the store, no checkpoint of the keeper's writes
		// to the journal beside the commit that is to fail.
		if err := r.atomic.checkpoint(ctx); err != nil {
			t.Fatal(err)
		}
		fill(t, r, 3, byte(10+nth))
		fill(t, r, 9, byte(20+nth))
		journal.Inject(store.Fault{Ops: store.OnWrite, Nth: nth, Count: 1, Err: unix.EIO})
		if err := r.Commit(ctx); !errors.Is(err, unix.EIO) {
			t.Fatalf("write %d failed, and Commit says %v", nth, err)
		}
		journal.Clear()
		if err := r.Commit(ctx); err != nil {
			t.Fatalf("the next Commit: %v", err)
		}
		if err := r.Commit(ctx); err != nil {
			t.Fatalf("and the one after it, with nothing to do: %v", err)
		}
	}
	// A checkpoint that fails loses nothing, and the next one does its work.
	data.Inject(store.Fault{Ops: store.OnWrite, Count: 1, Err: unix.EIO})
	if err := r.atomic.checkpoint(ctx); !errors.Is(err, unix.EIO) {
		t.Errorf("checkpoint over a store that fails: %v", err)
	}
	data.Inject(store.Fault{Ops: store.OnFlush, Count: 1, Err: unix.EIO})
	if err := r.atomic.checkpoint(ctx); !errors.Is(err, unix.EIO) {
		t.Errorf("checkpoint over a store that does not flush: %v", err)
	}
	data.Clear()
	if err := r.atomic.checkpoint(ctx); err != nil {
		t.Errorf("checkpoint: %v", err)
	}
	got := make([]byte, 16*FrameSize)
	k, _ := data.Kernel()
	copy(got, k.Mem)
	if got[3*FrameSize] != 12 || got[9*FrameSize+1] != 22 {
		t.Errorf("the store holds %d and %d", got[3*FrameSize], got[9*FrameSize+1])
	}

	fill(t, r, 5, 1)
	journal.Inject(store.Fault{Ops: store.OnFlush, Count: 1, Err: unix.EIO})
	for i := range 3 {
		if err := r.Commit(ctx); !errors.Is(err, unix.EIO) {
			t.Errorf("Commit %d after a failed flush: %v", i, err)
		}
	}
	if err := r.Close(); !errors.Is(err, unix.EIO) {
		t.Errorf("Close after a failed flush: %v", err)
	}
}

// A flush of the journal that fails outside of a commit, and succeeds the next time, is no
// less forgotten: what was written before it may be what the next commit rests on.
func TestAFailedFlushOfTheKeeperIsKept(t *testing.T) {
	ctx := context.Background()
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, journal := faultyAtomic(t, p, 16, RegionOptions{Retry: Retry{Times: -1}, Journal: JournalOptions{Interval: -1}})
	for try := byte(1); ; try++ {
		fill(t, r, 3, try)
		if err := r.Commit(ctx); try > 1 && errors.Is(err, unix.EIO) {
			break // it was a flush of the keeper's that failed, who made the journal longer
		} else if err != nil {
			t.Fatal(err)
		}
		journal.Inject(store.Fault{Ops: store.OnFlush, Count: 1, Err: unix.EIO})
		if err := r.atomic.checkpoint(ctx); errors.Is(err, unix.EIO) {
			break
		} else if err != nil || try == 100 {
			t.Fatalf("checkpoint whose journal does not flush: %v", err)
		}
		journal.Clear() // the keeper was faster, and there was nothing left to do
	}
	fill(t, r, 4, 2)
	for i := range 2 {
		if err := r.Commit(ctx); !errors.Is(err, unix.EIO) {
			t.Errorf("Commit %d after it: %v", i, err)
		}
	}
	if err := r.Close(); !errors.Is(err, unix.EIO) {
		t.Errorf("Close: %v", err)
	}
}

// One cut over two regions: a pair of which each has a half is the same in both.
func TestCommitOfSeveralRegions(t *testing.T) {
	p := newPager(t, Options{Budget: 128 * FrameSize})
	o := RegionOptions{Journal: JournalOptions{Limit: 1 << 20, Interval: 2 * time.Millisecond}}
	x := mapAtomic(t, p, make([]byte, 8*FrameSize), nil, o)
	y := mapAtomic(t, p, make([]byte, 8*FrameSize), nil, o)
	ctx := context.Background()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for v := byte(1); !stop.Load(); v++ {
			pin, err := x.AcquireWrite(ctx, 0, 1)
			if err != nil {
				t.Error(err)
				return
			}
			pin.Bytes()[0] = v
			if _, err := y.WriteAt([]byte{v}, 5*FrameSize); err != nil {
				t.Error(err)
			}
			pin.Release()
		}
	})
	for round := range 20 {
		if err := p.Commit(ctx, y.Region, x.Region); err != nil {
			t.Fatal(err)
		}
		var got [2]byte
		for i, a := range []*atomicRegion{x, y} {
			data, journal := a.frozen()
			c, err := tryMapAtomic(p, data, journal, o)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ReadAt(got[i:i+1], int64(i*5*FrameSize)); err != nil {
				t.Error(err)
			}
			c.Close()
		}
		if got[0] != got[1] {
			t.Errorf("round %d: the cut has %d in one region and %d in the other", round, got[0], got[1])
		}
	}
	stop.Store(true)
	wg.Wait()
	r := mapPlain(t, p)
	if err := p.Commit(ctx, x.Region, r); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Commit with a region that is not Atomic: %v", err)
	}
	if err := r.Commit(ctx); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Commit of a region that is not Atomic: %v", err)
	}
}

func mapPlain(t testing.TB, p *Pager) *Region {
	t.Helper()
	r, err := p.Map(store.NewMemory(4*FrameSize), RegionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Close ends what waits: a Commit for a pin that is not released, a WriteAt at
// the gate.
func TestCloseEndsCommits(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{})
	ctx := context.Background()
	pin, err := r.AcquireWrite(ctx, 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- r.Commit(ctx) }()
	ops := make(chan *SyncOp)
	go func() { // this goroutine has the pin
		op, err := r.SyncEventfd(0, r.Len(), -1)
		if err != nil {
			t.Error(err)
		}
		ops <- op
	}()
	op := <-ops
	if op == nil {
		t.Fatal("no op")
	}
	time.Sleep(5 * time.Millisecond)
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("Commit during Close: %v", err)
	}
	if err := op.Wait(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("SyncEventfd during Close: %v", err)
	}
	pin.Release()
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := r.Commit(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit after Close: %v", err)
	}
}

// SyncEventfd is a commit of the whole region or nothing.
func TestSyncOfAnAtomicRegion(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{})
	ctx := context.Background()
	if err := r.SyncRange(ctx, 0, FrameSize); !errors.Is(err, ErrNotSupported) {
		t.Errorf("SyncRange: %v", err)
	}
	fill(t, r, 1, 1)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	op, err := r.SyncEventfd(0, r.Len(), fd)
	if err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil || b[0] != 1 {
		t.Errorf("eventfd: %v %v", b, err)
	}
	if err := op.Wait(ctx); err != nil {
		t.Error(err)
	}
	if n := p.Stats().Commits; n != 1 {
		t.Errorf("%d commits", n)
	}
	if err := r.Sync(ctx); err != nil {
		t.Error(err)
	}
	if n := p.Stats().Commits; n != 1 {
		t.Errorf("a Sync with nothing to do made commit %d", n)
	}
}
