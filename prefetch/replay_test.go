package prefetch

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// recorded runs a program under a Recorder and returns its trace file and how
// long it took.
func recorded(t *testing.T, accesses []int64, pages int64, budget int) ([]byte, simStats, float64) {
	t.Helper()
	var buf bytes.Buffer
	rec := Record(&buf)
	s := newSimulator(rec, pages, budget)
	stats := s.run(accesses)
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), stats, s.now
}

func replayOf(t *testing.T, trace []byte, o ReplayOptions) Policy {
	t.Helper()
	return mustReplay(t, trace, o)
}

// distinct is n different pages in a random order.
func distinct(seed uint64, n int, pages int64) []int64 {
	order := make([]int64, 0, n)
	for _, p := range rand.New(rand.NewPCG(seed, 0)).Perm(int(pages))[:n] {
		order = append(order, int64(p))
	}
	return order
}

func mustReplay(t interface{ Fatal(...any) }, trace []byte, o ReplayOptions) Policy {
	p, err := Replay(bytes.NewReader(trace), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A program that starts again and does what it did finds its pages there.
func TestReplayWarmsUp(t *testing.T) {
	const pages, budget = 1 << 20, 1 << 16
	z := rand.New(rand.NewPCG(5, 5))
	hot := make([]int64, 200_000) // a tenth of the pages gets nine of ten accesses
	for i := range hot {
		if hot[i] = z.Int64N(40_000); z.IntN(10) > 0 {
			hot[i] /= 10
		}
		hot[i] *= 25
	}
	for _, c := range []struct {
		name     string
		accesses []int64
	}{
		{"random working set", random(5, 50_000, pages)},
		{"hot and cold", hot},
	} {
		trace, before, took := recorded(t, c.accesses, pages, budget)
		for _, mode := range []string{"raw", "held markers", "touches seen"} {
			s := newSimulator(replayOf(t, trace, ReplayOptions{}), pages, budget)
			s.sees, s.holds = mode == "touches seen", mode == "held markers"
			after := s.run(c.accesses)
			t.Logf("%-20s %-12s misses %d, were %d; %.1f times as fast; %d read ahead, %d wasted", c.name, mode, after.misses, before.misses, took/s.now, after.issued, after.unused)
			if after.misses*100 > before.misses*3 {
				t.Errorf("%s (%s): %d misses, were %d", c.name, mode, after.misses, before.misses)
			}
			if took < 5*s.now {
				t.Errorf("%s (%s): %.1f times as fast, want 5", c.name, mode, took/s.now)
			}
			if after.unused*20 > after.issued {
				t.Errorf("%s (%s): %d of %d pages read ahead were wasted", c.name, mode, after.unused, after.issued)
			}
		}
	}
}

// Batches are sorted and coalesced, in the order of the trace, with the page
// touched first left out of all but the first.
func TestReplayPlans(t *testing.T) {
	trace := encode(t, &Trace{PageSize: 4096, Pages: []int64{9, 3, 1, 2, 9, 70, 80, 60, 61, 5, 4, 100}})
	s := newScript(replayOf(t, trace, ReplayOptions{Batch: 4 * 4096, Ahead: 16 * 4096}), 90, 1<<16)
	s.expect(t, "first miss", s.misses(9), "#80 #4 1+3 70+1 5+1 60+2")
	s = newScript(replayOf(t, trace, ReplayOptions{Batch: 2 * 4096, Ahead: 4 * 4096}), 90, 1<<16)
	s.expect(t, "first miss", s.misses(9), "#2 1+1 3+1 70+1")
	s.expect(t, "no news", s.misses(3), "")
	s.expect(t, "marker", s.misses(2), "#80 60+1")
	s.expect(t, "unknown page", s.misses(7), "")
	s.expect(t, "touch", s.observe(Event{Kind: Touch, Page: 70}), "#61 5+1")
}

// With little room a batch is handed out piece by piece; with a small budget
// batches are small.
func TestReplayGivesWay(t *testing.T) {
	accesses := random(6, 20_000, 1<<20)
	trace, _, _ := recorded(t, accesses, 1<<20, 1<<16)
	for _, budget := range []int64{1, 3, 4, 16, 100, 1000} {
		s := newScript(replayOf(t, trace, ReplayOptions{}), 1<<20, budget)
		s.plan.Room = 7
		at, planned := map[int64]int{}, 0
		for i, p := range accesses {
			if _, ok := at[p]; !ok {
				at[p] = i
			}
		}
		for i, p := range accesses[:1000] {
			s.misses(p)
			n := int64(0)
			for _, r := range s.plan.Runs {
				n += r.N
				for q := r.First; q < r.First+r.N; q++ {
					if at[q] > i+int(budget/aheadShare) {
						t.Fatalf("budget %d: at access %d planned access %d", budget, i, at[q])
					}
				}
			}
			if planned += int(n); n > 7 {
				t.Fatalf("planned %d pages with room for 7", n)
			}
		}
		if budget >= 16 && planned < 500 {
			t.Errorf("budget %d: %d pages planned for 1000 accesses", budget, planned)
		}
	}
}

// A program that begins in the middle is found there; a few goroutines far
// ahead of the others do not pull the reading away from them.
func TestReplayFollows(t *testing.T) {
	accesses := random(8, 50_000, 1<<20)
	trace, _, _ := recorded(t, accesses, 1<<20, 1<<16)
	s := newSimulator(replayOf(t, trace, ReplayOptions{}), 1<<20, 1<<16)
	got := s.run(accesses[30_000:])
	if got.misses > 600 {
		t.Errorf("from the middle: %d misses of 20,000", got.misses)
	}
	// One access in 20 is made by somebody who is 25,000 accesses ahead.
	mixed := slices.Clone(accesses[:20_000])
	for i := 0; i < len(mixed); i += 20 {
		mixed[i] = accesses[25_000+i]
	}
	s = newSimulator(replayOf(t, trace, ReplayOptions{}), 1<<20, 1<<16)
	if got := s.run(mixed); got.misses > 1600 {
		t.Errorf("with one who is ahead: %d misses of 20,000", got.misses)
	}
}

// A program whose first accesses have nothing to do with the order of the trace, as
// those that fill its caches, is found when it comes to it, at the beginning or
// wherever it begins, as is one that goes through it again; and until then nothing
// is read for it.
func TestReplayFindsItsPlaceAgain(t *testing.T) {
	const pages, set, budget = 1 << 18, 60_000, 1 << 15
	order := distinct(11, set, pages)
	trace, _, _ := recorded(t, order, pages, budget)
	noise := random(12, 20_000, set)
	for i := range noise {
		noise[i] = order[noise[i]]
	}
	for _, c := range []struct {
		name   string
		before []int64
		most   int64 // read ahead meanwhile
	}{
		{"a scan over all pages", scan(0, budget, 1), budget + budget/20},
		{"a scan beside the trace and a bit of it", slices.Concat(scan(0, 1000, 1), order[40_000:50_000]), 12_000 + budget/aheadShare},
		{"other pages in another order", noise, set / 4},
		{"the same before", order, set},
	} {
		for _, mode := range []string{"raw", "held markers", "touches seen"} {
			s := newSimulator(replayOf(t, trace, ReplayOptions{}), pages, budget)
			s.sees, s.holds = mode == "touches seen", mode == "held markers"
			for _, p := range c.before {
				s.access(p)
			}
			before := s.stats
			got := s.run(order)
			n := got.misses - before.misses
			t.Logf("%-40s %-12s %d read ahead before, then %d misses of %d", c.name, mode, before.issued, n, set)
			if n > set*3/100 {
				t.Errorf("%s (%s): %d of %d pages missed", c.name, mode, n, set)
			}
			if before.issued > c.most {
				t.Errorf("%s (%s): %d pages read ahead", c.name, mode, before.issued)
			}
		}
	}
}

// A goroutine that touches the pages of the trace at random, beside the one that goes
// along it, takes nothing from it.
func TestReplayBesideOthers(t *testing.T) {
	const pages, set, budget = 1 << 18, 60_000, 1 << 15
	order := distinct(13, set, pages)
	trace, _, _ := recorded(t, order, pages, budget)
	other := random(14, set, set)
	for _, every := range []int{20, 4, 2} {
		for _, mode := range []string{"held markers", "touches seen"} {
			s := newSimulator(replayOf(t, trace, ReplayOptions{}), pages, budget)
			s.sees, s.holds = mode == "touches seen", mode == "held markers"
			var missed int64
			for i, p := range order {
				was := s.stats.misses
				s.access(p)
				missed += s.stats.misses - was
				if i%every == 0 {
					s.access(order[other[i]])
				}
			}
			t.Logf("one in %d %-12s: %d misses", every, mode, missed)
			if missed > set*3/100 {
				t.Errorf("beside one in %d at random (%s): %d of %d pages missed", every, mode, missed, set)
			}
		}
	}
}

// What the trace does not know is read as Readahead reads it.
func TestReplayLeavesTheRest(t *testing.T) {
	trace, _, _ := recorded(t, random(9, 1000, 1<<16), 1<<20, 1<<16)
	s := newSimulator(replayOf(t, trace, ReplayOptions{}), 1<<20, 1<<16)
	got := s.run(scan(1<<18, 10_000, 1))
	if got.misses > 200 {
		t.Errorf("scan beside the trace: %d misses of 10,000", got.misses)
	}
	sc := newScript(replayOf(t, trace, ReplayOptions{}), 1<<20, 1<<16)
	sc.plan.PageSize = 8192
	sc.expect(t, "another page size", sc.misses(random(9, 3, 1<<16)...), ",,")
}
