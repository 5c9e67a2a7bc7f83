package prefetch

import (
	"slices"
	"testing"
)

func TestStrideOfStreams(t *testing.T) {
	const pages int64 = 1 << 20
	var columns [][]int64
	for i := range int64(16) {
		columns = append(columns, scan(i*40_000, 1500, 17))
	}
	// Records of two pages, 50 apart, each read by one copy.
	var records []int64
	for i := range int64(5000) {
		records = append(records, i*50+1, i*50)
	}
	for _, c := range []struct {
		name     string
		accesses []int64
		faster   float64 // than without prefetch, at least
		asScan   bool    // all pages are read, for raw access does not show the step
	}{
		{"stride 3", scan(100, 20_000, 3), 5, false},
		{"stride 17", scan(100, 20_000, 17), 5, false},
		{"stride 1000", scan(100, 1000, 1000), 3, false},
		{"stride 17 backward", scan(900_000, 20_000, -17), 5, false},
		{"stride 3 backward", scan(900_000, 20_000, -3), 5, false},
		{"16 columns", interleave(columns...), 5, false},
		{"records by copies", records, 5, false},
		// Every third page is in the zone of the scan's stream, too.
		{"a scan that goes on by threes", slices.Concat(scan(1000, 3000, 1), scan(4000, 30_000, 3)), 5, true},
		{"backward, that goes on by threes", slices.Concat(scan(900_000, 3000, -1), scan(897_000, 30_000, -3)), 5, true},
		{"scan", scan(1000, 20_000, 1), 10, false},
		{"backward scan", scan(900_000, 20_000, -1), 10, false},
	} {
		none := newSimulator(None(), pages, 16384)
		none.run(c.accesses)
		for _, mode := range []string{"raw", "held markers", "touches seen"} {
			s := newSimulator(Stride(StrideOptions{}), pages, 16384)
			s.sees, s.holds = mode == "touches seen", mode == "held markers"
			got := s.run(c.accesses)
			t.Logf("%-20s %-12s %.1f times as fast, misses %.4f, wasted %.4f of %d read ahead", c.name, mode, none.now/s.now,
				float64(got.misses)/float64(got.accesses), float64(got.unused)/float64(max(1, got.issued)), got.issued)
			if none.now < c.faster*s.now {
				t.Errorf("%s (%s): %.1f times as fast, want %.1f", c.name, mode, none.now/s.now, c.faster)
			}
			if got.unused > got.issued/10 && (s.sees || !c.asScan) {
				t.Errorf("%s (%s): %d of %d pages read ahead were wasted", c.name, mode, got.unused, got.issued)
			}
		}
	}
}

func TestStrideLeavesRandomWorkAlone(t *testing.T) {
	for _, pages := range []int64{1 << 10, 1 << 14, 1 << 20} {
		s := newSimulator(Stride(StrideOptions{}), pages, int(pages/16))
		got := s.run(random(7, 100_000, pages))
		t.Logf("%d pages: %.4f read ahead per miss", pages, float64(got.issued)/float64(got.misses))
		if ratio := float64(got.issued) / float64(got.misses); ratio > 0.03 {
			t.Errorf("region of %d pages: %d pages read ahead for %d random misses", pages, got.issued, got.misses)
		}
	}
}

func TestStridePlans(t *testing.T) {
	const pages, budget = 1 << 20, 1 << 16
	for _, c := range []struct {
		name   string
		misses []int64
		want   string
	}{
		{"three terms", []int64{10, 27, 44}, ",,"},
		{"four terms, near the end", []int64{pages - 60, pages - 50, pages - 40, pages - 30}, ",,,1048556+1 1048566+1"},
		{"four terms, near the start", []int64{60, 50, 40, 30}, ",,,20+1 10+1 0+1"},
		{"too far apart", []int64{10_000, 20_000, 30_000, 40_000}, ",,,"},
		{"one miss again and again", []int64{5, 5, 5, 5, 5}, ",,,,"},
	} {
		s := newScript(Stride(StrideOptions{}), pages, budget)
		s.expect(t, c.name, s.misses(c.misses...), c.want)
	}
}
