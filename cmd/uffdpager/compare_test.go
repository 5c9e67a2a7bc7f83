package main

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func compareDefaults() compareOptions {
	return compareOptions{size: 4 << 30, budget: 256 << 20, procs: 2, goroutines: 64, rounds: 5, duration: time.Second}
}

// The names of rows are what --rows goes by.
func TestCompareRowNamesAreUnique(t *testing.T) {
	contests := []compareOptions{}
	for _, procs := range []int{1, 2, 8, 64, 300} {
		o := compareDefaults()
		o.procs = procs
		contests = append(contests, o)
	}
	for _, w := range compareWorkloads {
		o := compareDefaults()
		o.workload = compareWorkload(w)
		contests = append(contests, o)
	}
	for _, o := range contests {
		procs := o.procs
		seen := map[string]bool{}
		for _, r := range allRows(o) {
			if seen[r.Name] {
				t.Errorf("procs %d: two rows are named %s", procs, r.Name)
			}
			seen[r.Name] = true
			if r.Group == "" || r.Way == "" || r.Procs < 1 || r.Goroutines < 1 || strings.Contains(r.describe(), "[]") {
				t.Errorf("procs %d: %+v: %s", procs, r, r.describe())
			}
			if r.Way == wayMmap && r.Goroutines < r.Procs && r.Goroutines != 1 {
				t.Errorf("%s: %d Ps for %d goroutines", r.Name, r.Procs, r.Goroutines)
			}
		}
		if !seen[o.workload.reference()] {
			t.Errorf("%s, procs %d: nothing to refer to", o.workload, procs)
		}
	}
}

// Whatever is asked for, everybody who must be there is, and every mark of the
// issue's list: direct or not, limited or not.
func TestCompareHasAllContestants(t *testing.T) {
	ways, names := map[string]int{}, map[string]bool{}
	for _, r := range allRows(compareDefaults()) {
		ways[r.Way]++
		names[r.Name] = true
		if buffered := !r.Direct; buffered != (r.Way == wayMmap || r.Way == wayNowait || r.Way == wayHandler || r.Name == "pread-buffered") {
			t.Errorf("%s is marked wrongly: direct %v", r.Name, r.Direct)
		}
	}
	for _, way := range []string{wayBytes, wayView, wayAcquire, wayReadAt, wayMmap, wayPread, wayNowait, wayHandler, wayDevice, wayFio} {
		if ways[way] == 0 {
			t.Errorf("nobody takes the way %s", way)
		}
	}
	// Peers are given their best number of Ps.
	for _, peer := range []string{"mmap-random", "mmap-normal", "mmap-sequential", "nowait"} {
		for _, procs := range []string{"-p2", "-p8", "-p64", "-p256"} {
			if !names[peer+procs] {
				t.Errorf("there is no row %s", peer+procs)
			}
		}
	}
}

func TestCompareChoosesRows(t *testing.T) {
	names := func(patterns ...string) []string {
		o := compareDefaults()
		o.rows = patterns
		rows, err := chooseRows(o)
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, r := range rows {
			list = append(list, r.Name)
		}
		return list
	}
	for _, c := range []struct{ patterns, want []string }{
		{[]string{"bytes"}, []string{referenceRow, "bytes"}},
		{[]string{"mmap-random-p?", "view"}, []string{referenceRow, "view", "mmap-random-p2", "mmap-random-p8"}},
		{[]string{referenceRow}, []string{referenceRow}},
	} {
		if got := names(c.patterns...); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, not %v", c.patterns, got, c.want)
		}
	}
	o := compareDefaults()
	o.workload, o.rows = loadScan, []string{"readat-1g"}
	if rows, err := chooseRows(o); err != nil || len(rows) != 2 || rows[0].Name != referenceSeq {
		t.Errorf("a scan refers to %v, %v", rows, err)
	}
	o = compareDefaults()
	o.rows = []string{"bytes", "bites"}
	if _, err := chooseRows(o); err == nil || !strings.Contains(err.Error(), "bites") {
		t.Errorf("a row that does not exist: %v", err)
	}
}

func TestCompareUsage(t *testing.T) {
	for _, line := range []string{
		"compare --rows nothing", "compare --rows [", "compare --workload chase", "compare --budget 1", "compare --budget 0",
		"compare --memory 1MiB", "compare --rounds 0", "compare --duration 0s", "compare --warmup -1s", "compare --procs 0",
		"compare --goroutines 0", "compare --size 0", "compare FILE --size 1MiB", "compare FILE --keep", "compare a b", "compare --what",
	} {
		var out, errs bytes.Buffer
		if status := execute(t.Context(), strings.Fields(line), &out, &errs); status != exitUsage {
			t.Errorf("%s: status %d, %s", line, status, &errs)
		}
		if out.Len() != 0 || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%s: printed %q and %q", line, &out, &errs)
		}
	}
}

// The streams of a row stay within the file, repeat themselves with the seed, and
// are those of their workload.
func TestCompareReaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rowSpec{
			Row:      compareRow{Goroutines: rapid.IntRange(1, 300).Draw(t, "goroutines")},
			Workload: compareWorkload(rapid.SampledFrom(compareWorkloads[:]).Draw(t, "workload")),
			Size:     rapid.Int64Range(1, 1<<28).Draw(t, "blocks") * blockSize,
			Budget:   rapid.Int64Range(1, 1<<32).Draw(t, "budget"),
			Seed:     rapid.Uint64().Draw(t, "seed"),
		}
		i := rapid.IntRange(0, s.Row.Goroutines-1).Draw(t, "goroutine")
		a, b := newReaders(s).stream(i), newReaders(s).stream(i)
		for range 300 {
			x, y := a(), b()
			if x != y {
				t.Fatalf("the same seed reads %d and %d", x, y)
			}
			if x < 0 || x >= s.Size/blockSize {
				t.Fatalf("block %d of %d", x, s.Size/blockSize)
			}
		}
	})
}

func TestHotSetAndScan(t *testing.T) {
	s := rowSpec{Row: compareRow{Goroutines: 1}, Workload: loadHotScan, Size: 100_000 * blockSize, Budget: 2_000 * blockSize, Seed: 1}
	next := newReaders(s).stream(0)
	seen := map[int64]int{}
	const reads = 400_000
	for range reads {
		seen[next()]++
	}
	hot, once := 0, 0
	for _, n := range seen {
		if n > 100 {
			hot++
		} else {
			once++
		}
	}
	if hot != 1000 {
		t.Errorf("the hot set has %d blocks, half of the budget is 1000", hot)
	}
	if math.Abs(float64(once)-reads/5) > reads/50 {
		t.Errorf("the scan went over %d blocks, about %d were to be expected", once, reads/5)
	}
}

func TestFigures(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		want    figure
	}{
		{[]float64{3}, figure{3, 3, 3}},
		{[]float64{4, 1}, figure{2.5, 1, 4}},
		{[]float64{9, 1, 5}, figure{5, 1, 9}},
	} {
		if got := figureOf(c.samples); got != c.want {
			t.Errorf("%v: %v", c.samples, got)
		}
	}
}

// result is what the process of a row says.
func resultOf(misses float64) rowResult {
	return rowResult{Metrics: map[string]float64{mMisses: misses, mOps: 2 * misses, mP50: 100, mP99: 1000, mMax: 5000, mCPU: 10, mTicks: 4000, mReadAmp: 1}}
}

// sampleComparison is one with a row that did well, one that did not, and the
// device.
func sampleComparison() *comparison {
	rows := []compareRow{
		{Name: referenceRow, Group: groupDevice, Way: wayDevice, Procs: 2, Goroutines: 64, Direct: true},
		{Name: "bytes", Group: groupPager, Way: wayBytes, Procs: 2, Goroutines: 64, Direct: true},
		{Name: "mmap-warm-p2", Group: groupMmap, Way: wayMmap, Advice: "random", Procs: 2, Goroutines: 64, Warm: true, Unlimited: true},
		{Name: "handler-p2", Group: groupPeer, Way: wayHandler, Procs: 2, Goroutines: 64, Unlimited: true},
	}
	c := &comparison{Workload: loadRandom, File: "a<b", SizeBytes: 4 << 30, BudgetBytes: 256 << 20, MemoryBytes: 304 << 20, Limited: true, Rounds: 2, DurationS: 1}
	for _, r := range rows {
		c.Rows = append(c.Rows, newRowReport(r))
	}
	for round := range 2 {
		device := 50_000 * float64(round+1)
		for i, share := range []float64{1, .9, .02} {
			c.Rows[i].add(resultOf(device * share))
			c.Rows[i].relate(device)
		}
		c.Rows[3].add(rowResult{Error: "hung: not done after 22s"})
		c.Rows[3].relate(device)
	}
	counted := resultOf(1)
	counted.Metrics[mSyscalls] = 2.25
	c.Rows[1].count(counted)
	c.Rows[2].count(rowResult{Error: "hung: not done after 23s"})
	c.finish()
	return c
}

// Ratios are taken turn by turn: a device that is twice as fast in the second
// round changes misses/s, and no ratio. What fails has none.
func TestCompareRatios(t *testing.T) {
	c := sampleComparison()
	if got := c.Rows[1].Figures[mRatio]; math.Abs(got.Min-.9) > 1e-9 || math.Abs(got.Max-.9) > 1e-9 {
		t.Errorf("ratio %+v", got)
	}
	if got := c.Rows[1].Figures[mMisses]; got.Min != 45_000 || got.Max != 90_000 || got.Median != 67_500 {
		t.Errorf("misses/s %+v", got)
	}
	if f := c.Rows[3].Figures; len(f) != 0 || c.Rows[3].Turns != 0 {
		t.Errorf("a row that never ended has figures %v", f)
	}
	if got := c.Rows[1].Figures[mSyscalls]; got != (figure{2.25, 2.25, 2.25}) || c.Rows[1].Turns != 2 {
		t.Errorf("the counted turn went into %+v, %d turns", got, c.Rows[1].Turns)
	}
}

// A peer that fails is a result; one of us that does is a failure.
func TestCompareFailure(t *testing.T) {
	c := sampleComparison()
	if err := c.failure(); err != nil {
		t.Errorf("a peer's failure is ours: %v", err)
	}
	c.Rows[1].Turns, c.Rows[1].Errors = 0, []string{"no"}
	if err := c.failure(); err == nil || !strings.Contains(err.Error(), "bytes: no") {
		t.Errorf("our failure is %v", err)
	}
}

func TestCompareTable(t *testing.T) {
	var b bytes.Buffer
	if err := sampleComparison().writeText(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{
		"random reads of 4 KiB, a<b of 4.00 GiB", "memory limit 304 MiB for every row", "mmap-warm-p2*+", "0.90–0.90",
		"handler-p2: hung: not done after 22s", "failed: see below", "n/a", "mmap-warm-p2: in the turn that counts: hung: not done after 23s",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	for line := range strings.Lines(text) {
		if strings.TrimRight(line, " \n") != strings.TrimSuffix(line, "\n") {
			t.Errorf("blanks at the end of %q", line)
		}
	}
}

// A scale has room for everything, and some lines to go by.
func TestScale(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOf(rapid.Float64Range(1e-3, 1e12)).Draw(t, "values")
		s := newScale(values, rapid.Bool().Draw(t, "log"), showCount)
		if n := len(s.ticks); n < 2 || n > 20 {
			t.Fatalf("%d ticks: %v", n, s.ticks)
		}
		slices.Sort(values)
		last := 0.0
		for _, v := range values {
			x := s.at(v)
			if math.IsNaN(x) || x < last || v > s.to*1.001 {
				t.Fatalf("%v is at %v of %v–%v", v, x, s.from, s.to)
			}
			last = x
		}
	})
}

// The page stands alone, follows the reader's choice of light or dark, and
// escapes what others have named.
func TestComparePage(t *testing.T) {
	var b bytes.Buffer
	if err := sampleComparison().writeHTML(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, want := range []string{"<svg", "prefers-color-scheme:dark", "a&lt;b", "hung: not done after 22s", "mmap-warm-p2*+", "0.90"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is missing", want)
		}
	}
	for _, not := range []string{"http://", "https://", "<script", "NaN", "Inf", "a<b", "url(", "@import"} {
		if strings.Contains(page, not) {
			t.Errorf("%q is in the page", not)
		}
	}
	for _, tag := range []string{"svg", "g", "table", "tr", "td", "th", "ul", "li", "h2", "div", "p", "text", "title"} {
		opened, closed := strings.Count(page, "<"+tag+" ")+strings.Count(page, "<"+tag+">"), strings.Count(page, "</"+tag+">")
		if opened != closed {
			t.Errorf("<%s> is opened %d times and closed %d times", tag, opened, closed)
		}
	}
}
