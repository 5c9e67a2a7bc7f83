package limits

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const (
	page = pager.FrameSize
	kib  = int64(1) << 10
	mib  = kib << 10
	tib  = mib << 20
)

// sparse makes a file of this size that is one hole.
func sparse(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Skipf("no sparse file of %d bytes here: %v", size, err)
	}
	return path
}

// TestTerabyte touches random pages of a sparse terabyte. Every touch is in
// another 2 MiB span, so page tables would grow to 4 KiB per touch if they
// were not given back.
func TestTerabyte(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2, Deadline: 15 * time.Minute}) {
		return
	}
	budget, touches := 16*mib, 120_000
	if fixture.Torture() {
		budget, touches = 256*mib, 5_000_000
	}
	path := sparse(t, tib)
	p := fixture.Pager(t, pager.Options{Budget: budget})
	s := fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true})
	start := time.Now()
	r, err := p.Map(s, pager.RegionOptions{Prefetch: prefetch.None()})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	defer r.Close()
	fixture.NeedRaw(t, r)
	// The machine may be busy: the best of a few mappings counts.
	for try := 0; try < 50 && took > 10*time.Millisecond; try++ {
		again := fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true})
		start := time.Now()
		r, err := p.Map(again, pager.RegionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		took = min(took, time.Since(start))
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if took > 10*time.Millisecond {
		t.Errorf("mapping a terabyte took %v", took)
	}

	bound := budget*23/10 + 64*mib
	used := func() int64 { return (fixture.Status(t, "VmRSS") + fixture.Status(t, "VmPTE")) * kib }
	var peak int64
	const workers = 16
	var wg sync.WaitGroup
	mem := r.Bytes()
	for i := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			sum := byte(0)
			for n := range touches / workers {
				sum += mem[rng.Int64N(tib)]
				if i == 0 && n%256 == 0 {
					peak = max(peak, used())
				}
			}
			if sum != 0 {
				t.Error("a hole does not read as zeros")
			}
		})
	}
	wg.Wait()
	stats := p.Stats()
	t.Logf("mapped in %v; at most %d MiB of memory and page tables, %.2f × the budget; bound %d MiB; Stats: %d KiB of metadata, %d KiB of read buffers, %d KiB of page tables",
		took, peak/mib, float64(peak)/float64(budget), bound/mib, stats.Metadata/kib, stats.ReadBuffers/kib, stats.PageTables/kib)
	if peak > bound {
		t.Errorf("%d bytes of memory and page tables, more than 2.3 × %d + 64 MiB", peak, budget)
	}
	if stats.ReadBytes <= 10*budget {
		t.Errorf("%d bytes read under a budget of %d", stats.ReadBytes, budget)
	}
	if stats.PeakResident > budget {
		t.Errorf("%d bytes resident under a budget of %d", stats.PeakResident, budget)
	}
}

// TestResidentMemoryIsTheBudget is the same where pages lie together: nothing
// but the budget is used.
func TestResidentMemoryIsTheBudget(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2, Deadline: 2 * time.Minute}) {
		return
	}
	budget := 32 * mib
	size := 16 * budget
	p := fixture.Pager(t, pager.Options{Budget: budget})
	s := fixture.OpenFile(t, sparse(t, size), store.FileOptions{ReadOnly: true})
	r := fixture.Map(t, p, s, pager.RegionOptions{})
	fixture.NeedRaw(t, r)
	mem := r.Bytes()
	var peak int64
	for off := int64(0); off < size; off += page {
		if mem[off] != 0 {
			t.Fatal("a hole does not read as zeros")
		}
		if off%(1<<20) == 0 {
			peak = max(peak, (fixture.Status(t, "VmRSS")+fixture.Status(t, "VmPTE"))*kib)
		}
	}
	if bound := budget*105/100 + 64*mib; peak > bound {
		t.Errorf("%d MiB of memory and page tables under a budget of %d MiB", peak/mib, budget/mib)
	}
	if s := p.Stats(); s.ReadBytes <= 10*budget {
		t.Errorf("%d bytes read under a budget of %d", s.ReadBytes, budget)
	}
}
