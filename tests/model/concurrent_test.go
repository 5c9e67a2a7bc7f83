package model

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// generator is a chooser with a seed.
type generator struct{ *rand.Rand }

func (g generator) intn(n int, _ string) int { return g.IntN(n) }

func newGenerator(seed, stream uint64) generator {
	return generator{rand.New(rand.NewPCG(seed, stream))}
}

// A setting is an environment for concurrent histories.
type setting struct {
	name    string
	procs   int
	env     []string
	workers int
	spec    func(c chooser, writes bool) spec
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// pages makes a setting's spec: one region of n pages on every kind of store
// named, under a budget of least to most pages.
func pages(page int, n, least, most int64, kinds ...string) func(chooser, bool) spec {
	return func(_ chooser, writes bool) spec {
		s := spec{least: least * int64(page), budget: most * int64(page), writes: writes}
		for _, k := range kinds {
			r := regionSpec{kind: k, page: page, size: n*int64(page) - 77}
			if writes && (k == "file" || k == "cached") {
				r.maxSize = (n + 9) * int64(page)
			}
			s.regions = append(s.regions, r)
		}
		return s
	}
}

func pagers(n int, f func(chooser, bool) spec) func(chooser, bool) spec {
	return func(c chooser, writes bool) spec {
		s := f(c, writes)
		s.pagers = n
		return s
	}
}

func atomically(f func(chooser, bool) spec) func(chooser, bool) spec {
	return func(c chooser, writes bool) spec {
		s := f(c, writes)
		for i := range s.regions {
			s.regions[i].atomic = writes
		}
		return s
	}
}

func private(f func(chooser, bool) spec) func(chooser, bool) spec {
	return func(c chooser, writes bool) spec {
		s := f(c, writes)
		for i := range s.regions {
			s.regions[i].private = writes
			s.regions[i].maxSize = 0
		}
		return s
	}
}

// anything draws several regions of several page sizes.
func anything(c chooser, writes bool) spec {
	s := drawSpec(c, writes)
	for i := range s.regions {
		r := &s.regions[i]
		grow := 1 + int64(c.intn(8, "larger"))
		if r.page >= mib {
			grow = 1
		}
		r.maxSize += min(r.maxSize, 1) * r.size * (grow - 1)
		r.size *= grow
	}
	s.engine = aio.Kind(c.intn(2, "engine")) // auto, aio
	return s
}

var settings = []setting{
	{"4 pages", 1, nil, 24, pages(4*kib, 100, 4, 4, "file")},
	{"4 pages memory", 2, nil, 24, pages(4*kib, 100, 4, 4, "memory")},
	{"8 to 32 pages", 2, nil, 16, pages(4*kib, 600, 8, 32, "file", "memory")},
	{"64 pages", 8, nil, 24, pages(4*kib, 1000, 48, 64, "file", "slow", "reader")},
	{"eighth", 1, nil, 8, pages(4*kib, 2048, 128, 256, "cached", "memory")},
	{"everything", 8, nil, 16, pages(4*kib, 500, 3000, 3000, "file", "memory", "reader")},
	{"64 KiB pages", 2, nil, 8, pages(64*kib, 100, 5, 20, "file", "memory")},
	{"2 MiB pages", 8, nil, 4, pages(2*mib, 12, 4, 5, "file", "memory")},
	{"block threads", 1, []string{"UFFDPAGER_PARK=block"}, 8, pages(4*kib, 300, 8, 32, "file", "memory", "reader")},
	{"block threads 8", 8, []string{"UFFDPAGER_PARK=block"}, 32, pages(4*kib, 300, 8, 32, "file", "memory")},
	// A closure that is run again needs all its pages at once.
	{"restart", 2, []string{"UFFDPAGER_PARK=restart"}, 8, pages(4*kib, 900, 96, 128, "file", "memory")},
	{"no userfaultfd", 2, []string{"UFFDPAGER_FEATURES=-userfaultfd"}, 16, pages(4*kib, 300, 8, 32, "file", "memory", "reader")},
	{"no batches", 2, []string{"UFFDPAGER_FEATURES=-process_madvise,-move"}, 16, pages(4*kib, 300, 8, 64, "file", "memory")},
	{"no preemption", 2, []string{"GODEBUG=asyncpreemptoff=1"}, 8, pages(4*kib, 300, 8, 64, "file", "memory")},
	{"failing", 2, nil, 16, pages(4*kib, 300, 16, 64, "faulty", "faulty raw", "file")},
	{"failing 8", 8, []string{"UFFDPAGER_PARK=block"}, 16, pages(4*kib, 300, 16, 64, "faulty raw", "faulty")},
	{"two pagers", 2, nil, 16, pagers(2, pages(4*kib, 300, 16, 64, "file", "memory", "file", "reader"))},
	{"atomic", 2, nil, 12, atomically(pages(4*kib, 300, 32, 96, "file", "cached"))},
	{"atomic 8", 8, []string{"UFFDPAGER_PARK=block"}, 16, atomically(pages(4*kib, 300, 48, 96, "file"))},
	{"private", 2, nil, 16, private(pages(4*kib, 300, 16, 64, "file", "memory"))},
	{"anything 1", 1, nil, 8, anything},
	{"anything 2", 2, nil, 16, anything},
	{"anything 8", 8, nil, 32, anything},
}

// TestConcurrent runs histories of many goroutines in every setting, with the
// collector running, until the stores were read more than ten times the budget
// (unless everything fits).
func TestConcurrent(t *testing.T) {
	seed := fixture.Seed(t)
	for i, s := range settings {
		t.Run(strings.ReplaceAll(s.name, " ", "_"), func(t *testing.T) {
			// (24 goroutines under a budget of four pages chase each other for up to a
			// minute now and then, on an idle machine most of all. That is slow, and no hang.)
			if child.Isolate(t, child.Options{Procs: s.procs, Env: s.env, Deadline: duration(3*time.Minute, 10*time.Minute)}) {
				return
			}
			concurrent(t, s, seed+uint64(i)<<32)
		})
	}
}

func concurrent(t *testing.T, s setting, seed uint64) {
	writes := writesSupported(t)
	fixture.CollectGarbage(t)
	end := time.Now().Add(duration(1500*time.Millisecond, 3*time.Minute))
	for round := uint64(0); round == 0 || fixture.Torture() && time.Now().Before(end); round++ {
		g := newGenerator(seed, round<<32)
		sp := s.spec(g, writes)
		w, err := newWorld(t.TempDir(), sp, seed)
		if err != nil {
			t.Fatalf("%v: %v", sp, err)
		}
		w.allowHold()
		last := end
		if fixture.Torture() {
			last = time.Now().Add(20 * time.Second)
		}
		w.run(t, s.workers, seed, round, last)
	}
}

// run lets workers loose until the time is over and the stores have been read
// enough.
func (w *world) run(t *testing.T, workers int, seed, round uint64, end time.Time) {
	t.Helper()
	fits := true
	var data int64
	for _, r := range w.regions {
		data += r.regionSpec.size
	}
	fits = data <= w.spec.budget
	var steps atomic.Int64
	var failed atomic.Bool
	limit := end.Add(40 * time.Second)
	enough := func() bool {
		now := time.Now()
		if now.Before(end) {
			return false
		}
		_, read := w.stats()
		return fits || read > 10*w.spec.budget || now.After(limit)
	}
	var done atomic.Bool
	actors := make([]*actor, workers)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range actors {
		a := newActor(newGenerator(seed, round<<32|uint64(i+1)), w, i)
		actors[i] = a
		wg.Go(func() {
			for n := 0; !failed.Load() && !done.Load(); n++ {
				if errs[i] = a.do(); errs[i] != nil {
					failed.Store(true)
					break
				}
				steps.Add(1)
				if n%16 == 15 {
					if errs[i] = w.checkBudget(); errs[i] != nil {
						failed.Store(true)
						break
					}
					if i == 0 && enough() {
						done.Store(true)
					}
				}
			}
			if err := a.finish(); err != nil && errs[i] == nil {
				errs[i] = fmt.Errorf("a held pin: %w", err)
				failed.Store(true)
			}
		})
	}
	wg.Wait()
	text, read := w.stats()
	if failed.Load() {
		if w.spoiled.Load() {
			t.Error("a change has failed and may be half done: what others saw then differ from the model may be that and nothing else")
		}
		for i, err := range errs {
			if err != nil {
				t.Errorf("%v\nits last operations:\n\t%s", err, strings.Join(actors[i].history(), "\n\t"))
			}
		}
		t.Fatalf("seed %d round %d; world: %v\n%v", seed&(1<<32-1), round, w.spec, text)
	}
	if err := w.sweep(); err != nil {
		t.Fatalf("seed %d round %d; world: %v: %v", seed&(1<<32-1), round, w.spec, err)
	}
	if !fits && read <= 10*w.spec.budget {
		t.Errorf("the stores were read %.1f times the budget only; world: %v\n%v", float64(read)/float64(w.spec.budget), w.spec, text)
	}
	stats := w.pagers[0].Stats()
	if err := w.close(); err != nil {
		t.Fatalf("seed %d round %d; world: %v: %v", seed&(1<<32-1), round, w.spec, err)
	}
	t.Logf("%d operations, %d reads (%.1f × the budget), %d evictions, %d pages written; %d faults, parked as %v",
		steps.Load(), stats.Reads, float64(stats.ReadBytes)/float64(w.spec.budget), stats.Evictions, stats.Writebacks, stats.Misses, stats.ParkMode)
}
