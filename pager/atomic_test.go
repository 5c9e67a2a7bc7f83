//go:build linux

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

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
)

// faultyAtomic is an Atomic region over stores that fail on command.
func faultyAtomic(t testing.TB, p *Pager, pages int, o RegionOptions) (r *Region, data, journal *store.Faulty) {
	t.Helper()
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

// A Commit that would wait for its own goroutine says so.
func TestCommitWithinAPassage(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{})
	ctx := context.Background()
	if coro.CurrentG() == 0 {
		t.Skip("goroutines cannot be told apart here")
	}
	pin, err := r.AcquireWrite(ctx, 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx); !errors.Is(err, ErrBusy) {
		t.Errorf("Commit by the holder of a write pin: %v", err)
	}
	if err := p.Commit(ctx, r); !errors.Is(err, ErrBusy) {
		t.Errorf("Pager.Commit by the holder of a write pin: %v", err)
	}
	// Another goroutine's Commit waits, for as long as its context says, and
	// the holder's other writes go on meanwhile.
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	done := make(chan error)
	go func() { done <- r.Commit(short) }()
	for i := range 5 {
		fill(t, r, 1+i, 7)
		time.Sleep(10 * time.Millisecond)
	}
	// A goroutine that is not inside is let in between two attempts.
	wrote := make(chan error)
	go func() { _, err := r.WriteAt([]byte{1}, 9*FrameSize); wrote <- err }()
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Commit beside a write pin: %v", err)
	}
	pin.Release()
	if err := r.Commit(ctx); err != nil {
		t.Errorf("Commit after Release: %v", err)
	}
	if raw := r.Raw(); raw == nil {
		err := r.Update(ctx, func([]byte) error { return r.Sync(ctx) })
		if !errors.Is(err, ErrBusy) {
			t.Errorf("Sync within an Update: %v", err)
		}
	}
}

// An Update that waits for another goroutine's WriteAt does not keep a Commit
// from coming to an end, nor the other way round.
func TestPassageThatWaitsForAnother(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{})
	ctx := context.Background()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			pin, err := r.AcquireWrite(ctx, 0, 8)
			if err != nil {
				t.Error(err)
				return
			}
			inner := make(chan error)
			go func() { _, err := r.WriteAt([]byte{1}, 2*FrameSize); inner <- err }()
			if err := <-inner; err != nil {
				t.Error(err)
			}
			pin.Release()
		}
	})
	for range 30 {
		if err := r.Commit(ctx); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	wg.Wait()
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

// More than the journal can hold, uncommitted: writers get ErrBudget instead of
// waiting for ever, what was written can be committed, and then there is room.
func TestUncommittedFillsTheJournal(t *testing.T) {
	const pages = 600
	p := newPager(t, Options{Budget: 32 * FrameSize, StallLimit: 100 * time.Millisecond})
	r, _, _ := faultyAtomic(t, p, pages, RegionOptions{Journal: JournalOptions{Limit: 100 * FrameSize}})
	ctx := context.Background()
	for round := range 3 {
		n := 0
		var err error
		for ; n < pages && err == nil; n++ {
			_, err = r.WriteAt(bytes.Repeat([]byte{byte(round + 1)}, FrameSize), int64(n*FrameSize))
		}
		if !errors.Is(err, ErrBudget) || n < 30 {
			t.Fatalf("round %d: after %d pages: %v", round, n, err)
		}
		// What is there can still be read, …
		b := make([]byte, FrameSize)
		for i := range n - 1 {
			if _, err := r.ReadAt(b, int64(i*FrameSize)); err != nil || b[0] != byte(round+1) {
				t.Fatalf("round %d: page %d: %d, %v", round, i, b[0], err)
			}
		}
		// … and committed.
		if err := r.Commit(ctx); err != nil {
			t.Fatalf("round %d: Commit: %v", round, err)
		}
	}
}

// Commits go on for ever in a journal of few slots: checkpoints make room.
func TestJournalIsUsedAgain(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, data, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Limit: 200 * FrameSize}})
	for i := range 500 {
		fill(t, r, i%16, byte(i))
		if err := r.Commit(context.Background()); err != nil {
			t.Fatalf("Commit %d: %v", i, err)
		}
	}
	if s := p.Stats(); s.Commits != 500 || s.Checkpoints == 0 {
		t.Errorf("%d commits, %d checkpoints", s.Commits, s.Checkpoints)
	}
	k, _ := data.Kernel()
	mem := k.Mem
	got := make([]byte, 16*FrameSize)
	if err := r.atomic.checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	copy(got, mem)
	for i := range 16 {
		want := byte(496 + i) // the last that went to page i
		if i >= 4 {
			want -= 16
		}
		if got[i*FrameSize] != want {
			t.Errorf("page %d of the store is %d, want %d", i, got[i*FrameSize], want)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// With a larger budget more can be dirty, so more slots are kept for that.
func TestSlotsForWhatCanBeDirty(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Limit: 2000 * FrameSize}})
	for _, frames := range []int64{256, 64, 512} {
		if err := p.SetBudget(frames * FrameSize); err != nil {
			t.Fatal(err)
		}
		if kept := int64(r.d.slotMost) - load64(&r.d.slotsMayLoose); kept != p.pinnable.Load() {
			t.Errorf("%d slots are kept for %d frames that can be dirty", kept, p.pinnable.Load())
		}
	}
}

// A checkpoint of what was committed before a Resize, after it: the page that
// the new end goes through can be read when the store has been cut as well.
func TestCheckpointAfterTheCut(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Interval: -1}})
	ctx := context.Background()
	const size = 5*FrameSize + 100
	fill(t, r, 5, 7)
	for i, step := range []func() error{
		func() error { return r.Commit(ctx) },
		func() error { return r.Resize(ctx, size) },
		func() error { return r.atomic.checkpoint(ctx) },
		func() error { return r.Commit(ctx) },
		func() error { return r.atomic.checkpoint(ctx) },
		func() error { return r.Advise(5*FrameSize, 100, DontNeed) },
	} {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	b := make([]byte, 100)
	if _, err := r.ReadAt(b, 5*FrameSize); err != nil || b[99] != 7 {
		t.Errorf("the last page: %d, %v", b[99], err)
	}
	if stored := atomic.LoadUint64(&r.d.stored); stored > size {
		t.Errorf("the store is read up to %d, and has %d", stored, size)
	}
}

// J4: as long as the header is not durable that covers a commit, its slots keep
// what they had, also those whose pages have newer commits.
func TestSlotsOutliveTheirRecord(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, data, journal := faultyAtomic(t, p, 16, RegionOptions{Retry: Retry{Times: -1}, Journal: JournalOptions{Limit: 100 * FrameSize, Interval: -1}})
	ctx := context.Background()
	for i := range 4 {
		fill(t, r, 3, byte(i+1))
		if err := r.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// The images get to the store, the header does not get to the journal.
	journal.Inject(store.Fault{Ops: store.OnWrite, Len: 8192, Err: unix.EIO})
	if err := r.atomic.checkpoint(ctx); !errors.Is(err, unix.EIO) {
		t.Fatalf("checkpoint without a header: %v", err)
	}
	// Now everything that is dirty looks for slots, from the first one on.
	atomic.StoreUint32(&r.d.slotHint, 0)
	for i := range 16 {
		fill(t, r, i, 99)
	}
	r.p.writeBack(r.p.collectDirty(nil, r.d, 0), writeSync)
	for turn := 0; r.write.inflight.Load() != 0; turn++ {
		p.reapSome(64)
		pause(turn)
	}
	k, _ := journal.Kernel()
	d, _ := data.Kernel()
	c, err := tryMapAtomic(newPager(t, Options{Budget: 64 * FrameSize}), bytes.Clone(d.Mem), bytes.Clone(k.Mem), RegionOptions{})
	if err != nil {
		t.Fatalf("recovery: %v", err)
	}
	b := make([]byte, 1)
	if _, err := c.ReadAt(b, 3*FrameSize); err != nil || b[0] != 4 {
		t.Errorf("page 3 is %d after recovery, want 4: %v", b[0], err)
	}
	c.Close()
	journal.Clear()
}

// A file with commits beside it: refused where it would be passed over, read
// through the journal where it is only read, recovered where it is Atomic; a
// journal of another file is refused (J6).
func TestForeignJournal(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "data")
	old := bytes.Repeat([]byte{1}, 8*FrameSize+100)
	if err := os.WriteFile(name, old, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPager(t, Options{Budget: 64 * FrameSize})
	open := func(name string, o RegionOptions, readOnly bool) (*Region, error) {
		s, err := store.OpenFile(name, store.FileOptions{ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		return p.Map(s, o)
	}
	ctx := context.Background()
	r, err := open(name, RegionOptions{Durability: Atomic, MaxSize: 20 * FrameSize, Journal: JournalOptions{Interval: -1}}, false)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, r, 2, 2)
	if err := r.Resize(ctx, 12*FrameSize); err != nil {
		t.Fatal(err)
	}
	fill(t, r, 11, 3)
	if err := r.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	fill(t, r, 4, 9) // not committed
	want := append(bytes.Clone(old), make([]byte, 4*FrameSize-100)...)
	copy(want[2*FrameSize:], bytes.Repeat([]byte{2}, FrameSize))
	copy(want[11*FrameSize:], bytes.Repeat([]byte{3}, FrameSize))
	// While it is mapped nobody else may have it.
	if _, err := open(name, RegionOptions{}, true); !errors.Is(err, ErrBusy) {
		t.Errorf("read-only Map beside the writer: %v", err)
	}
	// A crash: the files as they are, under other names with the same inodes'
	// contents. (The journal knows the inode: Adopt.)
	crashed := filepath.Join(dir, "crashed")
	copyFile(t, name, crashed)
	copyFile(t, name+".journal", crashed+".journal")
	if b, err := os.ReadFile(crashed); err != nil || !bytes.Equal(b, old) {
		t.Errorf("the file has changed before a checkpoint: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, want) {
		t.Errorf("the file after Close is not what was committed: %v", err)
	}
	if _, err := os.Stat(name + ".journal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is still there after Close: %v", err)
	}

	before, _ := os.ReadFile(crashed + ".journal")
	for what, o := range map[string]RegionOptions{
		"InPlace": {}, "Private": {Private: true},
		"Atomic, another inode":      {Durability: Atomic},
		"read-only, another inode":   {ReadOnly: true},
		"Atomic, another page size":  {Durability: Atomic, PageSize: 2 * FrameSize, Journal: JournalOptions{Adopt: true}},
		"Atomic, by another name":    {Durability: Atomic, Journal: JournalOptions{ID: "x"}},
		"read-only, another page":    {ReadOnly: true, PageSize: 2 * FrameSize, Journal: JournalOptions{Adopt: true}},
		"read-only, by another name": {ReadOnly: true, Journal: JournalOptions{ID: "x"}},
	} {
		if r, err := open(crashed, o, o.ReadOnly || o.Private); !errors.Is(err, ErrJournal) {
			t.Errorf("%s: %v", what, err)
			if err == nil {
				r.Close()
			}
		}
	}
	if after, _ := os.ReadFile(crashed + ".journal"); !bytes.Equal(before, after) {
		t.Error("a journal that was refused has changed")
	}
	// Read through the journal, raw and otherwise; nothing is written.
	r, err = open(crashed, RegionOptions{ReadOnly: true, Journal: JournalOptions{Adopt: true}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkBytes(r, want); err != nil {
		t.Errorf("overlay: %v", err)
	}
	if r.Raw() == nil && !bytes.Equal(r.Bytes(), want) {
		t.Error("overlay: Bytes differ")
	}
	if err := r.Commit(ctx); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Commit of a read-only region: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(crashed); !bytes.Equal(b, old) {
		t.Error("a read-only Map has changed the file")
	}
	// And recovered.
	r, err = open(crashed, RegionOptions{Durability: Atomic, Journal: JournalOptions{Adopt: true}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkBytes(r, want); err != nil {
		t.Errorf("recovered: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	// Now it is an ordinary file again.
	if r, err = open(crashed, RegionOptions{}, false); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
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

// A read of a slot that is under way while a checkpoint moves the page, and
// another page gets the slot, is read again from the store.
func TestReadOfASlotThatMoves(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, journal := faultyAtomic(t, p, 32, RegionOptions{Journal: JournalOptions{Limit: 100 * FrameSize, Interval: -1}})
	ctx := context.Background()
	for i := range 4 {
		fill(t, r, i, byte(40+i))
	}
	if err := r.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.Advise(0, 4*FrameSize, DontNeed); err != nil {
		t.Fatal(err)
	}
	if r.d.place(2) == 0 {
		t.Fatal("page 2 is not in a slot")
	}
	slot := r.d.place(2) - 1
	journal.Inject(store.Fault{Ops: store.OnRead, Count: 1, Delay: 200 * time.Millisecond})
	got := make(chan byte)
	go func() {
		pin, err := r.Acquire(ctx, 2*FrameSize, 8)
		if err != nil {
			t.Error(err)
			got <- 0
			return
		}
		got <- pin.Bytes()[0]
		pin.Release()
	}()
	for journal.Counts().InFlight == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := r.atomic.checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	atomic.StoreUint32(&r.d.slotHint, slot)
	fill(t, r, 8, 99)
	p.writeBack([]dirtyPage{{r.d, 8}}, writeSync)
	for turn := 0; r.write.inflight.Load() != 0; turn++ {
		p.reapSome(64)
		pause(turn)
	}
	if r.d.place(8) != slot+1 {
		t.Fatalf("page 8 is in slot %d, not in %d", r.d.place(8)-1, slot)
	}
	if b := <-got; b != 42 {
		t.Errorf("page 2 reads as %d, want 42", b)
	}
}

// Stores outside of passages: as far as a goroutine can be parked, the cut has
// no later store of it without its earlier ones.
func TestCutKeepsTheOrderOfStores(t *testing.T) {
	if active, why := coro.ParkStatus(); !active {
		t.Skipf("goroutines are not parked in place here: %s", why)
	}
	// Every other page, in no order: no two are copied with one call, and an
	// earlier store may be to a page that is copied late.
	const pages = 160
	order := rand.New(rand.NewPCG(3, 3)).Perm(pages)
	p := newPager(t, Options{Budget: 1024 * FrameSize})
	if p.Stats().ParkMode != coro.InPlace {
		t.Skip("park mode " + p.Stats().Park)
	}
	o := RegionOptions{Journal: JournalOptions{Limit: 4 << 20, Interval: 3 * time.Millisecond}}
	a := mapAtomic(t, p, make([]byte, 2*pages*FrameSize), nil, o)
	mem := a.Bytes()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { // no page has less than the next in the order, nor two more
		for v := byte(1); !stop.Load(); v++ {
			for _, i := range order {
				mem[2*i*FrameSize] = v
			}
		}
	})
	for round := range longer(8) {
		waited := p.Stats().Faults.Blocked
		if err := a.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		waited = p.Stats().Faults.Blocked - waited
		data, journal := a.frozen()
		c, err := tryMapAtomic(p, data, journal, o)
		if err != nil {
			t.Fatal(err)
		}
		var first, last [1]byte
		drops := 0
		for k, i := range order {
			if _, err := c.ReadAt(last[:], int64(2*i*FrameSize)); err != nil {
				t.Fatal(err)
			}
			switch {
			case k == 0:
				first = last
			case last[0] == first[0]-1:
				drops++
				first = last
			case last != first:
				drops += 2
			}
		}
		c.Close()
		if drops > 1 && waited == 0 {
			t.Errorf("round %d: the cut has later stores without earlier ones", round)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
}

// A write that finds the first of its pages taken by somebody else, after it
// has a slot for it, goes on with the others; one that finds all of them taken
// is no write.
func TestWriteOfPagesTakenMeanwhile(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 32, RegionOptions{Journal: JournalOptions{Limit: 100 * FrameSize, Interval: -1}})
	ctx := context.Background()
	fill(t, r, 1, 1)
	if err := r.Commit(ctx); err != nil { // makes the slots
		t.Fatal(err)
	}
	write := func(pages ...uint64) (started int) {
		list := make([]dirtyPage, len(pages))
		for i, page := range pages {
			list[i] = dirtyPage{r.d, page}
		}
		started = p.writeBack(list, writeSync)
		for turn := 0; r.write.inflight.Load() != 0; turn++ {
			p.reapSome(64)
			pause(turn)
		}
		return started
	}
	// Pages 5 and 9 have slots that do not follow each other.
	for _, page := range []int{5, 20, 9} {
		fill(t, r, page, byte(page))
		if n := write(uint64(page)); n != 1 {
			t.Fatalf("%d pages written, want page %d", n, page)
		}
	}
	free := load64(&r.d.slotsFree)
	fill(t, r, 5, 50)
	fill(t, r, 9, 90)
	atomic.StoreUint64(&r.d.holdFirst, 5)
	atomic.StoreUint64(&r.d.holdEnd, 6)
	if n := write(5); n != 0 {
		t.Errorf("%d pages written, the only one is held", n)
	}
	if n := write(5, 9); n != 1 {
		t.Errorf("%d pages written, want page 9", n)
	}
	atomic.StoreUint64(&r.d.holdEnd, 0)
	if n := write(5, 9); n != 1 {
		t.Errorf("%d pages written, want page 5", n)
	}
	if now := load64(&r.d.slotsFree); now != free {
		t.Errorf("%d slots are free, %d were", now, free)
	}
	if err := r.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	for page, want := range map[int64]byte{5: 50, 9: 90, 20: 20} {
		var b [1]byte
		if _, err := r.ReadAt(b[:], page*FrameSize); err != nil || b[0] != want {
			t.Errorf("page %d is %d, %v; want %d", page, b[0], err, want)
		}
	}
}
