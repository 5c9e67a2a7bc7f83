package model

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

var soak = flag.Duration("soak", 0, "how long TestSoak goes on; the program tests/soak sets it")

// TestSoak makes one world after the other – several pagers, all kinds of
// stores, some of which fail, budgets that breathe – works in each for a while
// with every operation of the model, sweeps and closes it, and looks whether the
// process has grown: memory, page tables, descriptors, threads, mappings.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("for as long as you like: go run ./tests/soak")
	}
	seed := fixture.Seed(t)
	dir := t.TempDir()
	round := min(*soak/8, 20*time.Second)
	began := time.Now()
	var base footprint
	for n := uint64(0); time.Since(began) < *soak; n++ {
		g := newGenerator(seed, n)
		sp := soakSpec(g)
		w, err := newWorld(dir, sp, seed+n)
		if err != nil {
			t.Fatalf("seed %d round %d: %v: %v", seed, n, sp, err)
		}
		w.allowHold()
		w.endure(t, began, seed, n, time.Now().Add(round))
		if t.Failed() {
			return
		}
		now := takeFootprint(t)
		fmt.Fprintf(os.Stderr, "%8s  round %d ends with %v\n", time.Since(began).Round(time.Second), n, now)
		// The first two rounds bring the process to its size.
		if n < 2 {
			base = base.largest(now)
		} else if why := base.exceeded(now); why != "" {
			t.Fatalf("seed %d round %d: the process has grown: %s; %v, after the first two rounds %v", seed, n, why, now, base)
		}
	}
	if base == (footprint{}) {
		t.Error("not one round")
	}
}

// soakSpec draws a world in which there is always something of everything.
func soakSpec(g generator) spec {
	s := spec{writes: true, pagers: 1 + g.IntN(2), least: 64 * 4 * kib, budget: 512 * 4 * kib}
	all := append(append([]string{}, kinds...), failing...)
	for i := range 5 {
		r := regionSpec{kind: all[(i+g.IntN(2)*3)%len(all)], page: []int{4 * kib, 4 * kib, 16 * kib, 64 * kib}[g.IntN(4)],
			evict: []string{"", "fifo"}[g.IntN(2)], prefetch: []string{"", "next"}[g.IntN(2)]}
		r.size = int64(100+g.IntN(900)) * 4 * kib
		switch g.IntN(6) {
		case 0:
			r.private = true
		case 1:
			r.readOnly = true
		case 3:
			r.atomic = r.kind == "file" || r.kind == "cached"
		case 2:
			if r.kind != "reader" {
				r.maxSize = r.size + 64*4*kib
			}
		}
		s.regions = append(s.regions, r)
	}
	return s
}

// endure works in the world until end, with a line of statistics every second,
// then sweeps and closes it.
func (w *world) endure(t *testing.T, began time.Time, seed, round uint64, end time.Time) {
	t.Helper()
	var steps atomic.Int64
	var done atomic.Bool
	const workers = 12
	actors, errs := make([]*actor, workers), make([]error, workers)
	var wg sync.WaitGroup
	for i := range actors {
		a := newActor(newGenerator(seed, round<<32|uint64(i+1)), w, i)
		actors[i] = a
		wg.Go(func() {
			for n := 0; !done.Load() && errs[i] == nil; n++ {
				if errs[i] = a.do(); errs[i] == nil && n%32 == 31 {
					errs[i] = w.checkBudget()
				}
				steps.Add(1)
			}
			if err := a.finish(); err != nil && errs[i] == nil {
				errs[i] = fmt.Errorf("a held pin: %w", err)
			}
			if errs[i] != nil {
				done.Store(true)
			}
		})
	}
	for last := int64(0); time.Now().Before(end) && !done.Load(); {
		time.Sleep(min(time.Second, time.Until(end)))
		n := steps.Load()
		s := w.pagers[0].Stats()
		fmt.Fprintf(os.Stderr, "%8s  %7d ops/s  resident %6d of %6d KiB, dirty %5d, pinned %5d  %8d reads %8d writebacks %8d evictions %5d errors\n",
			time.Since(began).Round(time.Second), n-last, s.Resident/kib, s.Budget/kib, s.Dirty/kib, s.Pinned/kib,
			s.Reads, s.Writebacks, s.Evictions, s.ReadErrors+s.WriteErrors)
		last = n
	}
	done.Store(true)
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("seed %d round %d: %v\nits last operations: %q", seed, round, err, actors[i].history())
		}
	}
	if !t.Failed() {
		if err := w.sweep(); err != nil {
			t.Errorf("seed %d round %d: %v", seed, round, err)
		} else if err := w.close(); err != nil {
			t.Errorf("seed %d round %d: %v", seed, round, err)
		}
	}
	if t.Failed() {
		text, _ := w.stats()
		t.Logf("world: %v\n%s", w.spec, text)
	}
}

// footprint is what the process holds when no pager is open.
type footprint struct {
	fixture.Footprint
	rss, tables, heap int64 // bytes
}

func takeFootprint(t *testing.T) footprint {
	t.Helper()
	var f footprint
	var m runtime.MemStats
	for range 3 { // what is on its way out gets time to go
		runtime.GC()
		time.Sleep(20 * time.Millisecond)
	}
	runtime.ReadMemStats(&m)
	f.Footprint = fixture.Measure(t)
	f.rss, f.tables, f.heap = fixture.Status(t, "VmRSS")*kib, fixture.Status(t, "VmPTE")*kib, int64(m.HeapAlloc)
	return f
}

func (f footprint) String() string {
	return fmt.Sprintf("%v, %d MiB resident, %d KiB of page tables, %d KiB of Go heap", f.Footprint, f.rss/mib, f.tables/kib, f.heap/kib)
}

func (f footprint) largest(o footprint) footprint {
	return footprint{
		fixture.Footprint{Descriptors: max(f.Descriptors, o.Descriptors), Threads: max(f.Threads, o.Threads),
			Mappings: max(f.Mappings, o.Mappings), Goroutines: max(f.Goroutines, o.Goroutines)},
		max(f.rss, o.rss), max(f.tables, o.tables), max(f.heap, o.heap),
	}
}

// exceeded says what has grown beyond what the runtime's own habits explain: it
// keeps threads and, for a while, memory that it once needed.
func (f footprint) exceeded(now footprint) string {
	for _, x := range []struct {
		what             string
		was, now, allows int64
	}{
		{"descriptors", int64(f.Descriptors), int64(now.Descriptors), 0},
		{"goroutines", int64(f.Goroutines), int64(now.Goroutines), 0},
		{"threads", int64(f.Threads), int64(now.Threads), 12},
		{"mappings", int64(f.Mappings), int64(now.Mappings), 120},
		{"resident bytes", f.rss, now.rss, f.rss/2 + 48*mib},
		{"bytes of page tables", f.tables, now.tables, f.tables/2 + 512*kib},
		{"bytes of heap", f.heap, now.heap, f.heap/2 + 4*mib},
	} {
		if x.now > x.was+x.allows {
			return fmt.Sprintf("%d %s, were %d (%d more are allowed)", x.now, x.what, x.was, x.allows)
		}
	}
	return ""
}
