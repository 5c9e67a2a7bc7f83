package prefetch

import "testing"

// A miss of what is planned and has not had its turn does not shrink the window,
// and nothing is planned twice; one of what was planned and is gone does both.
func TestLateMissKeepsTheWindow(t *testing.T) {
	for _, late := range []bool{true, false} {
		p := newReadahead(ReadaheadOptions{})
		plan := Plan{Pages: 1 << 20, Room: 1 << 20}
		for page := range int64(1000) { // a raw reader: what was planned is there, but for markers
			if i := p.table.find(page); i < 0 || page >= p.table.streams[i].next || p.table.streams[i].isBoundary(page) {
				p.Observe(Event{Kind: Miss, Page: page}, &plan)
			}
		}
		i := p.table.find(1000)
		if i < 0 {
			t.Fatal("no stream")
		}
		s := &p.table.streams[i]
		window, next := s.window, s.next
		miss := s.pos + 1
		for s.isBoundary(miss) {
			miss++
		}
		if miss >= next {
			t.Fatalf("nothing is planned beyond %d", s.pos)
		}
		plan.Reset()
		p.Observe(Event{Kind: Miss, Page: miss, Late: late}, &plan)
		again := false
		for _, r := range plan.Runs {
			again = again || r.First < next
		}
		if shrunk := s.window < window; shrunk == late || again == late {
			t.Errorf("late %v: the window was %d and is %d; planned again: %v", late, window, s.window, again)
		}
	}
}
