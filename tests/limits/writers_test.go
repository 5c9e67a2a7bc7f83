package limits

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestMemoryOfWriters has many goroutines overwrite random pages, far faster
// than they can be written back, while others sync: the budget holds, and what
// is beside it (copies on their way to the store, page tables, the Go heap)
// stays small, and nobody is turned away.
func TestMemoryOfWriters(t *testing.T) {
	fixture.NeedWrite(t)
	works := []struct {
		name    string
		writers int
		run     int // pages of one write, at most
		slow    bool
		pinned  bool
		short   bool // also without UFFDPAGER_TORTURE
	}{
		{"WriteAt/64", 64, 1, false, false, false},
		{"WriteAt/1000", 1000, 1, false, false, true},
		{"WriteAt/runs", 16, 24, false, false, true},
		{"WriteAt/slow", 1000, 1, true, false, true},
		{"AcquireWrite/64", 64, 1, false, true, false},
		{"AcquireWrite/1000", 1000, 1, false, true, true},
	}
	for _, work := range works {
		if !work.short && !fixture.Torture() {
			continue
		}
		t.Run(work.name, func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: 2, Deadline: 2 * time.Minute}) {
				return
			}
			budget := 32 * mib
			lasts := time.Second
			if fixture.Torture() {
				budget, lasts = 256*mib, 10*time.Second
			}
			// Written beforehand: the file system takes long to fill holes.
			size := 4 * budget
			path := filepath.Join(t.TempDir(), "data")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			for at := int64(0); at < size; at += mib {
				if _, err := f.Write(make([]byte, mib)); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			s := fixture.OpenFile(t, path, store.FileOptions{})
			if work.slow {
				s = store.NewFaulty(s, store.FaultyOptions{Latency: 20 * time.Millisecond})
			}
			p := fixture.Pager(t, pager.Options{Budget: budget})
			r := fixture.Map(t, p, s, pager.RegionOptions{})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var wrote atomic.Int64
			var failed atomic.Value
			var wg sync.WaitGroup
			for i := range work.writers {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(1, uint64(i)))
					buf := make([]byte, work.run*page)
					for ctx.Err() == nil && failed.Load() == nil {
						n := (1 + rng.IntN(work.run)) * page
						off := rng.Int64N((size-int64(n))/page+1) * page
						if err := overwrite(r, buf[:n], off, work.pinned); err != nil {
							failed.Store(fmt.Errorf("%d bytes at %d: %w", n, off, err))
						}
						wrote.Add(int64(n))
					}
				})
			}
			// And Syncs of parts, all at once.
			for i := range 100 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(2, uint64(i)))
					<-time.After(lasts / 2)
					if ctx.Err() == nil && failed.Load() == nil {
						if err := r.SyncRange(ctx, rng.Int64N(4)*budget, budget); err != nil && ctx.Err() == nil {
							failed.Store(fmt.Errorf("SyncRange: %w", err))
						}
					}
				})
			}
			// So long, and then until enough has moved: the machine may be slow.
			time.Sleep(lasts)
			for end := time.Now().Add(40 * time.Second); p.Stats().Writebacks < 1000 && time.Now().Before(end); {
				time.Sleep(5 * time.Millisecond)
			}
			peak := (fixture.Status(t, "VmHWM") + fixture.Status(t, "VmPTE")) * kib
			cancel()
			wg.Wait()
			if err := failed.Load(); err != nil {
				t.Fatal(err)
			}
			stats := p.Stats()
			bound := budget*105/100 + 64*mib
			t.Logf("%d MiB written, %d written back by %d I/Os; at most %d MiB of memory and page tables, bound %d; %d KiB of buffers",
				wrote.Load()/mib, stats.WrittenBytes/mib, stats.Writes, peak/mib, bound/mib, stats.ReadBuffers/kib)
			if peak > bound {
				t.Errorf("%d MiB of memory and page tables under a budget of %d MiB\n%v", peak/mib, budget/mib, stats)
			}
			if stats.PeakResident > budget {
				t.Errorf("%d bytes resident under a budget of %d", stats.PeakResident, budget)
			}
			if stats.Writebacks < 100 {
				t.Errorf("only %d pages written back", stats.Writebacks)
			}
		})
	}
}

func overwrite(r *pager.Region, b []byte, off int64, pinned bool) error {
	if !pinned {
		_, err := r.WriteAt(b, off)
		return err
	}
	pin, err := r.AcquireWrite(context.Background(), off, int64(len(b)))
	if err != nil {
		return err
	}
	copy(pin.Bytes(), b)
	pin.Release()
	return nil
}
