package main

import "testing"

// TestEveryPairMeets: whatever two values can be together in a cell are in one.
func TestEveryPairMeets(t *testing.T) {
	cells := pairwise(dimensions, allowed)
	met := map[pair]bool{}
	for _, c := range cells {
		if len(c) != len(dimensions) || !allowed(c) {
			t.Errorf("cell %v is not complete or not allowed", c)
		}
		c.pairs(dimensions, func(p pair) { met[p] = true })
	}
	all, excluded := 0, 0
	for i, a := range dimensions {
		for _, b := range dimensions[i+1:] {
			for _, x := range a.values {
				for _, y := range b.values {
					p := pair{a.name, x, b.name, y}
					all++
					switch {
					case met[p]:
					case possible(dimensions, allowed, p):
						t.Errorf("%v meet in no cell", p)
					default:
						excluded++
					}
				}
			}
		}
	}
	if excluded != 2 {
		t.Errorf("%d pairs are said to be impossible, want race without cgo and nobody without user_mode_only", excluded)
	}
	if len(cells) > 40 {
		t.Errorf("%d cells for %d pairs", len(cells), all)
	}
	t.Logf("%d pairs in %d cells", all, len(cells))
}

func TestSkipsHaveReasons(t *testing.T) {
	skips, err := parseSkips(skipList)
	if err != nil || len(skips) == 0 {
		t.Fatalf("%d reasons, %v", len(skips), err)
	}
	if _, err := parseSkips("pattern without a reason\n"); err == nil {
		t.Error("a line without a reason is taken")
	}
	m := &runner{skips: skips}
	if how, _ := m.verdict("--- FAIL: TestCell: lost an update", nil); how != "FAILED" {
		t.Errorf("a failure is %s", how)
	}
	if how, _ := m.verdict("aio: io_uring: operation not permitted", nil); how != "skipped" {
		t.Errorf("a kernel without io_uring is %s", how)
	}
}
