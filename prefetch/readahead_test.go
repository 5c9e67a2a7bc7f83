package prefetch

import (
	"cmp"
	"math/rand/v2"
	"testing"
)

// Work patterns, as the pages a program touches in order.

func scan(from, n, step int64) []int64 {
	a := make([]int64, n)
	for i := range a {
		a[i] = from + int64(i)*step
	}
	return a
}

// interleave lets the given patterns take turns.
func interleave(patterns ...[]int64) []int64 {
	var a []int64
	for i := 0; ; i++ {
		any := false
		for _, p := range patterns {
			if i < len(p) {
				a = append(a, p[i])
				any = true
			}
		}
		if !any {
			return a
		}
	}
}

func random(seed uint64, n int, pages int64) []int64 {
	r := rand.New(rand.NewPCG(seed, 1))
	a := make([]int64, n)
	for i := range a {
		a[i] = r.Int64N(pages)
	}
	return a
}

// copies is a scan by runtime.memmove of n pages at a time, which touches the
// last page of each copy first.
func copies(from, total, n int64) []int64 {
	var a []int64
	for p := from; p+n <= from+total; p += n {
		a = append(a, p+n-1)
		for i := range n - 1 {
			a = append(a, p+i)
		}
	}
	return a
}

func TestReadaheadOfStreams(t *testing.T) {
	const pages int64 = 1 << 20
	var many [][]int64
	for i := range int64(64) {
		many = append(many, scan(i*16384, 2048, 1))
	}
	for _, c := range []struct {
		name     string
		accesses []int64
		pages    int64 // in the region; 0: pages
		budget   int
		misses   float64 // at most, of the accesses
		wasted   float64 // at most, of the pages read ahead
	}{
		{"scan", scan(1000, 100_000, 1), 0, 16384, 0.01, 0.02},
		{"backward scan", scan(900_000, 100_000, -1), 0, 16384, 0.01, 0.02},
		{"64 interleaved scans", interleave(many...), 0, 65536, 0.03, 0.1},
		{"scan by copies of 2 pages", copies(4096, 50_000, 2), 0, 16384, 0.01, 0.03},
		{"scan by copies of 3 pages", copies(4096, 50_001, 3), 0, 16384, 0.01, 0.03},
		{"scan by copies of 16 pages", copies(4096, 65_536, 16), 0, 16384, 0.01, 0.03},
		{"scan with noise", interleave(scan(0, 50_000, 1), random(1, 50_000, pages)), 0, 16384, 0.52, 0.03},
		{"whole region", scan(0, 4096, 1), 4096, 1024, 0.05, 0.01},
		{"whole region backward", scan(4095, 4096, -1), 4096, 1024, 0.05, 0.01},
	} {
		for _, mode := range []string{"raw", "held markers", "touches seen"} {
			s := newSimulator(Readahead(ReadaheadOptions{}), cmp.Or(c.pages, pages), c.budget)
			s.sees, s.holds = mode == "touches seen", mode == "held markers"
			got := s.run(c.accesses)
			miss := float64(got.misses) / float64(got.accesses)
			waste := float64(got.unused) / float64(max(1, got.issued))
			t.Logf("%-28s %-12s misses %.4f, late %.4f, wasted %.4f of %d read ahead, %d dropped behind, %.0f µs of %.0f waited", c.name, mode, miss, float64(got.late)/float64(got.accesses), waste, got.issued, got.dropped, got.waited, s.now)
			if miss > c.misses {
				t.Errorf("%s (%s): miss ratio %.4f, want at most %.4f", c.name, mode, miss, c.misses)
			}
			if waste > c.wasted {
				t.Errorf("%s (%s): %.4f of %d pages read ahead were wasted, want at most %.4f", c.name, mode, waste, got.issued, c.wasted)
			}
		}
	}
}

func TestReadaheadLeavesRandomWorkAlone(t *testing.T) {
	for _, pages := range []int64{1 << 10, 1 << 14, 1 << 16, 1 << 20} {
		for _, sees := range []bool{false, true} {
			s := newSimulator(Readahead(ReadaheadOptions{}), pages, int(pages/16))
			s.sees = sees
			got := s.run(random(7, 200_000, pages))
			t.Logf("%d pages, touches seen %v: %d read ahead for %d misses", pages, sees, got.issued, got.misses)
			if ratio := float64(got.issued) / float64(got.misses); ratio > 0.03 {
				t.Errorf("region of %d pages, touches seen %v: %d pages read ahead for %d random misses", pages, sees, got.issued, got.misses)
			}
		}
	}
}

// Where pages are so large that MaxWindow is two of them, the device has more to read
// than that nevertheless, unless MaxWindow was chosen.
func TestReadaheadOfLargePages(t *testing.T) {
	for _, c := range []struct {
		o    ReadaheadOptions
		most int64
	}{{ReadaheadOptions{}, 7}, {ReadaheadOptions{MaxWindow: 4 << 20}, 2}, {ReadaheadOptions{MaxWindow: 64 << 20}, 31}} { // (a part less a page)
		s := newScript(Readahead(c.o), 1<<12, 1<<10)
		s.plan.PageSize = 2 << 20
		var planned, most int64 // pages up to planned have been
		for page := range int64(400) {
			e := Event{Kind: Miss, Page: page}
			for _, m := range s.plan.Marks {
				planned = max(planned, m+1)
			}
			for _, r := range s.plan.Runs {
				planned = max(planned, r.First+r.N)
			}
			if page < planned {
				e.Kind = Touch
			}
			most = max(most, planned-page)
			s.observe(e)
		}
		if most != c.most {
			t.Errorf("%+v: as many as %d pages are read ahead, want %d", c.o, most, c.most)
		}
	}
}
