//go:build linux

package pager

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// watchedJournal is a journal that sees when its writes and flushes end, and
// makes flushes fail with what err has.
type watchedJournal struct {
	store.Store
	writes  atomic.Int64 // under way, but for headers, which are the keeper's
	flushes atomic.Int64
	early   atomic.Int64 // of these, with writes under way
	others  atomic.Int64 // ops that did not end on the goroutine that started them
	err     atomic.Pointer[unix.Errno]
	by      atomic.Pointer[string] // who has started the last flush
}

func (s *watchedJournal) Start(e aio.Engine, ops []*aio.Op) {
	by := goroutine()
	for _, op := range ops {
		done, write := op.Done, op.Code == aio.Write && op.Off >= 2*FrameSize
		if write {
			s.writes.Add(1)
		}
		if op.Code == aio.Flush {
			s.flushes.Add(1)
			s.by.Store(&by)
			if s.writes.Load() > 0 {
				s.early.Add(1)
			}
		}
		op.Done = func(op *aio.Op) {
			if write {
				s.writes.Add(-1)
			}
			if e := s.err.Load(); e != nil && op.Code == aio.Flush {
				op.Err = *e
			}
			if goroutine() != by {
				s.others.Add(1)
			}
			op.Done = done
			done(op)
		}
	}
	s.Store.Start(e, ops)
}

// mapWatched maps an Atomic region over this journal, all writes to which are
// the commits': it has its length, and nothing is written in the background.
func mapWatched(t *testing.T, p *Pager, journal store.Store) *Region {
	t.Helper()
	needProtection(t)
	r, err := p.Map(store.NewMemory(64*FrameSize), RegionOptions{
		Durability: Atomic,
		Journal:    JournalOptions{Store: journal, Limit: 400 * FrameSize, Interval: -1},
		Writeback:  Writeback{NoSteal: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	for r.atomic.grow(context.Background()) == nil {
	}
	return r
}

// commitsOf commits a few pages seven times, with one flush after all of a
// commit's writes. The eighth record would make the keeper checkpoint: it fills
// half of the ring.
func commitsOf(t *testing.T, ctx context.Context, r *Region, journal *watchedJournal) {
	t.Helper()
	for i := range 7 {
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
}

// The journal is flushed once per commit, after all of its writes; a failure is
// kept.
func TestCommitFlushesOnceAfterItsWrites(t *testing.T) {
	for what, ctx := range contexts(t) {
		t.Run(what, func(t *testing.T) { commitFlushesOnce(t, ctx) })
	}
}

// contexts are one that cannot end, and one that can: its caller may have to go.
func contexts(t *testing.T) map[string]context.Context {
	may, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return map[string]context.Context{"to the end": context.Background(), "unless cancelled": may}
}

func commitFlushesOnce(t *testing.T, ctx context.Context) {
	p := newPager(t, Options{Budget: 256 * FrameSize})
	slow := store.NewFaulty(store.NewMemory(8192), store.FaultyOptions{Kernel: true})
	slow.SetLatency(time.Millisecond, time.Millisecond)
	journal := &watchedJournal{Store: slow}
	r := mapWatched(t, p, journal)
	commitsOf(t, ctx, r, journal)
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

// A commit to a file is carried out by the goroutine that commits: it is told itself
// when its writes and its flush have ended, and nobody is woken.
func TestCommitInPlace(t *testing.T) {
	for what, ctx := range contexts(t) {
		t.Run(what, func(t *testing.T) { commitInPlace(t, ctx) })
	}
}

func commitInPlace(t *testing.T, ctx context.Context) {
	p := newPager(t, Options{Budget: 256 * FrameSize})
	if p.Engine() != aio.LinuxAIO.String() {
		t.Skip("only Linux AIO does several writes together in place; the engine is ", p.Engine())
	}
	f, err := store.OpenFile(filepath.Join(t.TempDir(), "journal"), store.FileOptions{Create: true, Size: 8192})
	if err != nil {
		t.Fatal(err)
	}
	journal := &watchedJournal{Store: f}
	r := mapWatched(t, p, journal)
	journal.others.Store(0) // what made the journal longer
	commitsOf(t, ctx, r, journal)
	if by := *journal.by.Load(); by != goroutine() {
		t.Errorf("committed by %s, and the caller is %s", by, goroutine())
	}
	if n := journal.others.Load(); n != 0 {
		t.Errorf("%d writes and flushes of commits ended on other goroutines", n)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
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
	defer journal.Release()
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
	defer journal.Release()
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

// Who may go goes when his context ends, whatever his commit is waiting for; the
// commit ends without him, and what comes next has all of it.
func TestWhoGoesLeavesHisCommit(t *testing.T) {
	for what, c := range map[string]struct {
		hold  store.Ops
		under int64 // transfers that are under way then
	}{"writes": {store.OnWrite, 2}, "the flush": {store.OnFlush, 1}} {
		t.Run(what, func(t *testing.T) {
			p := newPager(t, Options{Budget: 256 * FrameSize})
			r, _, journal := faultyAtomic(t, p, 64, RegionOptions{Journal: JournalOptions{Interval: -1}, Writeback: Writeback{NoSteal: true}})
			fill(t, r, 0, 1)
			if err := r.Commit(context.Background()); err != nil { // makes the slots
				t.Fatal(err)
			}
			for r.atomic.grow(context.Background()) == nil {
			}
			before := p.Stats().Commits
			journal.Hold(c.hold)
			t.Cleanup(journal.Release) // before Close
			fill(t, r, 1, 7)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			gone := make(chan error, 1)
			go func() { gone <- r.Commit(ctx) }()
			eventually(t, "his "+what, func() bool { return int64(journal.Counts().InFlight) >= c.under })
			select {
			case err := <-gone:
				t.Fatalf("Commit came back before %s had ended: %v", what, err)
			default:
			}
			cancel()
			if err := within10s(t, "Commit whose context has ended", gone); !errors.Is(err, context.Canceled) {
				t.Errorf("Commit whose context has ended: %v", err)
			}
			if len(r.atomic.turn) != 1 {
				t.Error("the turn was given back with the commit under way")
			}
			fill(t, r, 2, 8)
			next := make(chan error, 1)
			go func() { next <- r.Commit(context.Background()) }()
			journal.Release()
			if err := within10s(t, "the next Commit", next); err != nil {
				t.Error(err)
			}
			if n := p.Stats().Commits - before; n != 2 {
				t.Errorf("%d commits, want the one that was left, and the next", n)
			}
			if n := load64(&r.d.dirty); n != 0 {
				t.Errorf("%d frames are dirty after all commits", n)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Close waits for a commit that somebody has left, and ErrClosed is not its answer
// to who stays.
func TestCloseWaitsForACommitThatWasLeft(t *testing.T) {
	p := newPager(t, Options{Budget: 256 * FrameSize})
	r, _, journal := faultyAtomic(t, p, 64, RegionOptions{Journal: JournalOptions{Interval: -1}, Writeback: Writeback{NoSteal: true}})
	fill(t, r, 0, 1)
	if err := r.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	for r.atomic.grow(context.Background()) == nil {
	}
	journal.Hold(store.OnWrite)
	t.Cleanup(journal.Release) // before Close
	fill(t, r, 1, 7)
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error, 1)
	go func() { gone <- r.Commit(ctx) }()
	eventually(t, "his writes", func() bool { return journal.Counts().InFlight >= 2 })
	cancel()
	<-gone
	closed := make(chan error, 1)
	go func() { closed <- r.Close() }()
	eventually(t, "Close", r.closing.Load)
	select {
	case err := <-closed:
		t.Fatalf("Close did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	journal.Release()
	if err := within10s(t, "Close", closed); err != nil {
		t.Error(err)
	}
}

// A cut that was not taken, because somebody who may go would have had to wait for
// it, changes nothing when it is taken back: least of all how short the region has been.
func TestACutThatWasNotTakenLeavesNothing(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Interval: -1}, Writeback: Writeback{NoSteal: true}})
	a := r.atomic
	fill(t, r, 3, 9)
	if err := r.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	fill(t, r, 4, 9)
	a.mu.Lock()
	before := a.minLength
	a.mu.Unlock()
	a.turn <- struct{}{}
	a.writers.Add(1) // an image is on its way
	c := r.newCut()
	c.hasty = true
	if err := c.take(); err != errHasty {
		t.Errorf("the cut: %v", err)
	}
	c.undo()
	a.writers.Add(-1)
	<-a.turn
	a.mu.Lock()
	after := a.minLength
	a.mu.Unlock()
	if after != before {
		t.Errorf("the region counts as having been %d bytes long, and was %d", after, before)
	}
	if n := load64(&r.d.dirty); n != 1 {
		t.Errorf("%d pages are dirty", n)
	}
}

// Who asks for a commit while the region is being closed is told, at the latest by Close.
func TestCommitsBesideCloseEnd(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		p := newPager(t, Options{Budget: 64 * FrameSize})
		r, _, _ := faultyAtomic(t, p, 16, RegionOptions{})
		fill(t, r, 3, 1)
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				ctx, cancel := context.Background(), func() {}
				if i%2 == 0 {
					ctx, cancel = context.WithCancel(ctx)
				}
				defer cancel()
				for {
					switch err := r.Commit(ctx); {
					case errors.Is(err, ErrClosed):
						return
					case err != nil:
						t.Errorf("Commit beside Close: %v", err)
						return
					}
				}
			})
		}
		runtime.Gosched()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
