package prefetch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// script feeds a policy events and returns what it planned for each, in words:
// "8+3" reads 3 pages from 8, "#11" marks page 11, "-0+4" drops 4 pages from 0.
type script struct {
	policy Policy
	plan   Plan
}

func newScript(p Policy, pages, budget int64) *script {
	return &script{policy: p, plan: Plan{Pages: pages, Budget: budget, Room: 1 << 20}}
}

func (s *script) observe(e Event) string {
	s.plan.Reset()
	s.policy.Observe(e, &s.plan)
	var words []string
	for _, m := range s.plan.Marks {
		words = append(words, fmt.Sprintf("#%d", m))
	}
	for _, r := range s.plan.Runs {
		words = append(words, fmt.Sprintf("%d+%d", r.First, r.N))
	}
	for _, r := range s.plan.Drop {
		words = append(words, fmt.Sprintf("-%d+%d", r.First, r.N))
	}
	return strings.Join(words, " ")
}

// misses feeds misses and returns the plans, joined by commas.
func (s *script) misses(pages ...int64) string {
	var plans []string
	for _, p := range pages {
		plans = append(plans, s.observe(Event{Kind: Miss, Page: p}))
	}
	return strings.Join(plans, ",")
}

func (s *script) expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: planned %q, want %q", what, got, want)
	}
}

func TestReadaheadPlans(t *testing.T) {
	const pages, budget = 1 << 20, 1 << 16
	for _, c := range []struct {
		name   string
		misses []int64
		want   string
	}{
		{"one miss", []int64{7}, ""},
		{"two neighbours", []int64{7, 8}, ","},
		{"three in a row", []int64{7, 8, 9}, ",,#18 10+8 19+7"},
		{"three in a row, backward", []int64{107, 106, 105}, ",,#96 97+8 89+7"},
		{"the first pages", []int64{0, 1, 2}, ",,#11 3+8 12+7"},
		{"down to the first page", []int64{7, 6, 5}, ",,0+5"},
		{"up to the last page", []int64{pages - 7, pages - 6, pages - 5}, fmt.Sprintf(",,%d+4", pages-4)},
		{"a last part that needs no marker", []int64{pages - 15, pages - 14, pages - 13}, fmt.Sprintf(",,%d+8 %d+4", pages-12, pages-4)},
		{"with holes", []int64{7, 9, 11}, ",,#20 12+8 21+7"},
		{"too many holes", []int64{7, 10, 13, 16, 19}, ",,,,"},
		{"one copy of two pages", []int64{8, 7}, ","},
		{"copies of two pages", []int64{8, 7, 10, 9, 12}, ",,,,#21 13+8 22+7"},
		{"copies of two pages, backward", []int64{108, 107, 106}, ",,#97 98+8 90+7"},
		{"a copy of many pages", []int64{47, 32, 33, 34}, ",,,#43 35+8 44+7"},
		{"to and fro", []int64{50, 51, 50, 49, 50, 51, 50}, ",,,,,,"},
		{"outwards", []int64{50, 49, 51, 48, 52}, ",,,,"},
		{"the same page", []int64{50, 50, 50, 50}, ",,,"},
		{"distant pages", []int64{50, 5000, 700, 90, 12345}, ",,,,"},
	} {
		s := newScript(Readahead(ReadaheadOptions{}), pages, budget)
		s.expect(t, c.name, s.misses(c.misses...), c.want)
	}
}

// The window doubles with each part that was used up, in both ways of telling.
func TestReadaheadWindowGrows(t *testing.T) {
	s := newScript(Readahead(ReadaheadOptions{MaxWindow: 512 << 10}), 1<<20, 1<<16)
	s.expect(t, "start", s.misses(0, 1, 2), ",,#11 3+8 12+7")
	s.expect(t, "first marker", s.misses(11), "#19 20+15")
	s.expect(t, "second marker", s.misses(19), "#35 36+31")
	s.expect(t, "third marker", s.misses(35), "#67 68+63")
	s.expect(t, "fourth marker", s.misses(67), "#131 132+63")
	s.expect(t, "at its largest", s.misses(131), "#195 196+63")

	s = newScript(Readahead(ReadaheadOptions{}), 1<<20, 1<<16)
	s.misses(0, 1, 2)
	for p := int64(3); p < 11; p++ {
		s.expect(t, "inside a part", s.observe(Event{Kind: Touch, Page: p}), "")
	}
	s.misses(11)
	// Its touches are seen: it needs no more markers.
	for p := int64(12); p < 19; p++ {
		s.expect(t, "inside a part", s.observe(Event{Kind: Touch, Page: p}), "")
	}
	s.expect(t, "touched", s.observe(Event{Kind: Touch, Page: 19}), "35+32")
	for p := int64(20); p < 35; p++ {
		s.expect(t, "inside a part", s.observe(Event{Kind: Touch, Page: p}), "")
	}
	s.expect(t, "touched", s.observe(Event{Kind: Touch, Page: 35}), "67+64")
	// Now it is read without a trace, runs out of its window, and is told of
	// by markers again, as soon as it is clear that it is no random work.
	s.expect(t, "ran out", s.misses(131, 132, 133), ",,#142 134+8 143+7")
}

// What is missed although it was planned had no room: the window shrinks, and
// the rest is planned again.
func TestReadaheadWindowShrinks(t *testing.T) {
	s := newScript(Readahead(ReadaheadOptions{MinWindow: 16 << 10}), 1<<20, 1<<16)
	s.misses(0, 1, 2, 5, 7, 11, 19, 35, 67)
	at := s.policy.(*readahead).table.streams[0]
	lost := at.next - 2
	got := s.misses(lost)
	now := s.policy.(*readahead).table.streams[0]
	if now.window != at.window/2 {
		t.Errorf("window %d after a lost page, %d before", now.window, at.window)
	}
	if !strings.HasPrefix(got, fmt.Sprintf("#%d %d+", lost+1+partOf(now.window), lost+1)) {
		t.Errorf("after losing page %d: planned %q", lost, got)
	}
}

// All streams together stay within an eighth of the budget, and a budget of a
// few pages is left alone.
func TestReadaheadGivesWay(t *testing.T) {
	for _, budget := range []int64{4, 8, 15, 16, 64, 1024, 16384} {
		s := newScript(Readahead(ReadaheadOptions{}), 1<<20, budget)
		for step := range int64(2000) {
			for stream := range int64(4) {
				s.misses(stream*10_000 + step)
			}
		}
		ahead := int64(0)
		for _, st := range s.policy.(*readahead).table.streams {
			ahead += st.next - 1 - st.pos
		}
		if ahead > budget/8 {
			t.Errorf("budget %d: %d pages ahead", budget, ahead)
		}
		if budget >= 64 && ahead == 0 {
			t.Errorf("budget %d: nothing read ahead", budget)
		}
	}

	s := newScript(Readahead(ReadaheadOptions{}), 1<<20, 1<<16)
	s.plan.Room = 0
	s.expect(t, "no room", s.misses(0, 1, 2, 3, 4), ",,,,")
	s.plan.Room = 3
	s.expect(t, "room for three", s.misses(5), "6+3")
}

// Streams that have stopped leave their share to those that go on.
func TestReadaheadForgetsStreams(t *testing.T) {
	s := newSimulator(Readahead(ReadaheadOptions{}), 1<<20, 8192)
	s.sees = true
	var scans [][]int64
	for i := range int64(8) {
		scans = append(scans, scan(i*10_000, 2000, 1))
	}
	s.run(interleave(scans...))
	table := &s.policy.(*readahead).table
	if last := table.streams[7]; last.window != 128 {
		t.Errorf("one of eight streams has a window of %d pages, want an eighth of 1024", last.window)
	}
	s.run(scan(200_000, 10_000, 1))
	if table.active != 1 {
		t.Errorf("%d active streams, want 1", table.active)
	}
	if last := table.streams[8]; last.window != 1024 {
		t.Errorf("the only stream left has a window of %d pages, want 1024", last.window)
	}
}

// In a small region random pages are often neighbours: less is staked.
func TestReadaheadSmallRegion(t *testing.T) {
	s := newScript(Readahead(ReadaheadOptions{}), 1000, 1<<16)
	s.expect(t, "small region", s.misses(0, 1, 2), ",,#5 3+2 6+1")
}

// Misses that never become dense do not grow into a run that swallows the
// region.
func TestReadaheadSparseRuns(t *testing.T) {
	s := newScript(Readahead(ReadaheadOptions{}), 1<<20, 1<<16)
	s.misses(scan(0, 10_000, 3)...)
	for _, r := range s.policy.(*readahead).runs.spans {
		if r.hi-r.lo > maxSparse+gap {
			t.Errorf("a run of %d pages", r.hi-r.lo+1)
		}
	}
}

// Pages are bytes: a window is as long with large pages.
func TestReadaheadPageSize(t *testing.T) {
	s := newScript(Readahead(ReadaheadOptions{}), 1<<20, 1<<16)
	s.plan.PageSize = 16 << 10
	s.expect(t, "16 KiB pages", s.misses(0, 1, 2), ",,#5 3+2 6+1")
	if got := s.policy.(*readahead).largest; got != 256 {
		t.Errorf("largest window %d pages, want 256 (4 MiB)", got)
	}
}

// A long scan drops what it has passed, not what it has not.
func TestReadaheadDropsBehind(t *testing.T) {
	for _, dir := range []int64{1, -1} {
		for _, keep := range []bool{false, true} {
			s := newSimulator(Readahead(ReadaheadOptions{KeepBehind: keep}), 10_000, 2048)
			var dropped []Run
			s.policy = observer{s.policy, func(e Event, plan *Plan) {
				for _, r := range plan.Drop {
					for p := r.First; p < r.First+r.N; p++ {
						if (p-e.Page)*dir >= 0 {
							t.Fatalf("direction %d: at page %d dropped %v", dir, e.Page, r)
						}
					}
					dropped = append(dropped, r)
				}
			}}
			from := int64(0)
			if dir < 0 {
				from = 9999
			}
			s.run(scan(from, 10_000, dir))
			n := int64(0)
			slices.SortFunc(dropped, func(a, b Run) int { return int(a.First - b.First) })
			for i, r := range dropped {
				n += r.N
				if i > 0 && r.First < dropped[i-1].First+dropped[i-1].N {
					t.Errorf("dropped twice: %v, %v", dropped[i-1], r)
				}
			}
			if keep && n != 0 || !keep && n < 8000 {
				t.Errorf("direction %d, KeepBehind %v: dropped %d pages of 10,000", dir, keep, n)
			}
		}
	}
}

// observer shows what a policy planned.
type observer struct {
	Policy
	see func(e Event, plan *Plan)
}

func (o observer) Observe(e Event, plan *Plan) {
	o.Policy.Observe(e, plan)
	o.see(e, plan)
}

// Feedback moves the largest window; what markers prove beats what the pager
// could not see.
func TestReadaheadLearns(t *testing.T) {
	start := func() *readahead {
		s := newScript(Readahead(ReadaheadOptions{}), 1<<20, 1<<16)
		s.misses(0, 1, 2, 11)
		return s.policy.(*readahead)
	}
	expect := func(r *readahead, what string, f Feedback, want int64) {
		t.Helper()
		if r.Learn(f); r.ceiling != want {
			t.Errorf("%s: largest window %d, want %d", what, r.ceiling, want)
		}
	}
	r := start()
	expect(r, "too few to tell", Feedback{Issued: 1000, Used: 100, Unused: 100}, 1024)
	expect(r, "mostly wasted", Feedback{Issued: 1000, Used: 100, Unused: 900}, 512)
	expect(r, "mostly wasted again", Feedback{Issued: 2000, Used: 200, Unused: 1800}, 256)
	expect(r, "mostly used", Feedback{Issued: 3000, Used: 1200, Unused: 1800}, 512)
	expect(r, "half and half", Feedback{Issued: 4000, Used: 1700, Unused: 2300}, 512)
	expect(r, "mostly used", Feedback{Issued: 5000, Used: 2700, Unused: 2300}, 1024)
	expect(r, "mostly used", Feedback{Issued: 6000, Used: 3700, Unused: 2300}, 1024)

	// Markers were reached; the raw uses of the pages between left no trace,
	// and their eviction comes much later.
	r = start()
	r.passed = 1000
	expect(r, "passed", Feedback{Issued: 1000}, 1024)
	expect(r, "passed, then evicted", Feedback{Issued: 1000, Unused: 600}, 1024)
	expect(r, "passed, then evicted", Feedback{Issued: 1000, Unused: 1000}, 1024)
	expect(r, "not passed", Feedback{Issued: 2000, Unused: 2000}, 512)
}

// Streams that lead nowhere raise the evidence asked of the next ones; real
// ones lower it again.
func TestReadaheadDoubts(t *testing.T) {
	s := newScript(Readahead(ReadaheadOptions{}), 1<<30, 1<<20)
	r := s.policy.(*readahead)
	for i := range int64(500) {
		for p := i * 1000; s.misses(p) == ""; p++ {
			if p == i*1000+maxDoubt {
				t.Fatalf("no stream after %d misses in a row", maxDoubt)
			}
		}
	}
	if r.doubt != maxDoubt {
		t.Fatalf("doubt %d after 500 false starts, want %d", r.doubt, maxDoubt)
	}
	s.expect(t, "in doubt", s.misses(900_000, 900_001, 900_002, 900_003), ",,,")
	sim := newSimulator(r, 1<<30, 1<<20)
	for i := range int64(40) {
		sim.run(scan(1_000_000+i*10_000, 1000, 1))
	}
	if r.doubt != 0 {
		t.Errorf("doubt %d after 40 scans, want 0", r.doubt)
	}
}

// Events that are no evidence change nothing.
func TestReadaheadIgnores(t *testing.T) {
	s := newScript(Readahead(ReadaheadOptions{}), 1<<20, 1<<16)
	for p := range int64(20) {
		for _, k := range []Kind{Touch, Arrived, Hint} {
			s.expect(t, k.String(), s.observe(Event{Kind: k, Page: p}), "")
		}
	}
	s = newScript(None(), 1<<20, 1<<16)
	s.expect(t, "None", s.misses(0, 1, 2, 3, 4), ",,,,")
}
