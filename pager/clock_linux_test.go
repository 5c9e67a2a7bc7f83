package pager

import (
	"context"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/uffdpager/uffdpager/pager/store"
)

// What is committed while a checkpoint is under way is not in it, and becomes no
// older than the interval either.
func TestCommitsBesideACheckpointHaveTheirInterval(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, data, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Interval: 20 * time.Millisecond}})
	commit := func(page int) {
		t.Helper()
		fill(t, r, page, 1)
		if err := r.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	wait := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); !is(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("after 5 s %s", what)
			}
		}
	}
	data.Hold(store.OnWrite)
	defer data.Release()
	commit(1)
	wait("no checkpoint has begun", func() bool { return data.Counts().InFlight > 0 })
	commit(2)
	data.Release()
	wait("what was committed beside the checkpoint is in the journal still", func() bool { return p.Stats().Checkpoints == 2 })
}

// Nothing refers to a pager that is closed, nor to its regions and their stores: no
// timer that was stopped, and nothing that is kept for the next one.
func TestAClosedPagerIsForgotten(t *testing.T) {
	for what, o := range map[string]RegionOptions{
		"in place": {},
		"private":  {Private: true},
		"atomic":   {Durability: Atomic, Journal: JournalOptions{Interval: time.Hour}},
	} {
		t.Run(what, func(t *testing.T) {
			if o.Durability == Atomic || o.Private {
				needProtection(t)
			}
			left := workAndClose(t, o)
			for end := time.Now().Add(10 * time.Second); left.Value() != nil; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("after 10 s of collections somebody still has the pager")
				}
				runtime.GC()
			}
		})
	}
}

// workAndClose uses a pager and closes it.
//
//go:noinline
func workAndClose(t *testing.T, o RegionOptions) weak.Pointer[Pager] {
	p, err := New(Options{Budget: 16 * FrameSize})
	if err != nil {
		t.Fatal(err)
	}
	if o.Durability == Atomic {
		o.Journal.Store = store.NewMemory(8192)
	}
	r, err := p.Map(store.NewMemory(64*FrameSize), o)
	if err != nil {
		t.Fatal(err)
	}
	for page := range 64 {
		fill(t, r, page, 1)
		if _, err := r.ReadAt(make([]byte, 10), int64(page/2*FrameSize)); err != nil {
			t.Fatal(err)
		}
		if page%8 == 0 {
			if err := r.Sync(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return weak.Make(p)
}
