package evict

import (
	"slices"
	"testing"
)

// evictAll returns the order in which the policy gives up n pages.
func evictOrder(p Policy, n int) []Page {
	var order []Page
	p.Evict(n, func(pg Page) Verdict {
		order = append(order, pg)
		return Gone
	})
	return order
}

func expect(t *testing.T, what string, got []Page, want ...Page) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestFIFOOrder(t *testing.T) {
	p := NewFIFO()
	p.SetCapacity(8)
	for i := range Page(6) {
		p.Install(i, Demand)
	}
	p.Install(0, Demand) // known: keeps its place
	p.Cold(4)
	p.Cold(4)
	p.Cold(2)
	p.Remove(1)
	p.Remove(99)
	p.Cold(99)
	expect(t, "order", evictOrder(p, 9), 4, 2, 0, 3, 5)
}

func TestFIFODoesNotCareForTouches(t *testing.T) {
	for _, c := range []struct {
		p    Policy
		want []Page
	}{
		{NewFIFO(), []Page{0, 1}},
		{NewClock(), []Page{1, 2}},
	} {
		for i := range Page(3) {
			c.p.Install(i, Demand)
		}
		touched := map[Page]bool{0: true}
		var order []Page
		c.p.Evict(2, func(pg Page) Verdict {
			if touched[pg] {
				delete(touched, pg)
				return Touched
			}
			order = append(order, pg)
			return Gone
		})
		expect(t, "order", order, c.want...)
	}
}

// A page that is missed again while it is remembered outlives any scan.
func TestS3FIFORemembersMisses(t *testing.T) {
	p := NewS3FIFO()
	p.SetCapacity(64)
	for i := range Page(64) {
		p.Install(i, Demand)
	}
	expect(t, "first", evictOrder(p, 2), 0, 1)
	p.Install(0, Demand)
	p.Install(1, Demand)
	for i := range Page(1000) {
		p.Install(100+i, Demand)
		for _, pg := range evictOrder(p, 1) {
			if pg < 2 {
				t.Fatalf("page %d left after %d pages of a scan", pg, i)
			}
		}
	}
}

// Remove leaves no ghost: the page that is missed next has proven nothing.
func TestRemoveForgets(t *testing.T) {
	p := NewS3FIFO()
	p.SetCapacity(16)
	for i := range Page(16) {
		p.Install(i, Demand)
	}
	expect(t, "first", evictOrder(p, 1), 0)
	p.Remove(0) // its region was closed, and the number is used again
	p.Install(0, Demand)
	p.Install(20, Demand)
	expect(t, "order", evictOrder(p, 17), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 20)
}

// Read-ahead that nobody is known to use costs demanded pages an eighth of
// the budget and no more.
func TestPrefetchStaysInItsShare(t *testing.T) {
	p := NewS3FIFO()
	const budget = 800
	p.SetCapacity(budget)
	for i := range Page(budget) {
		p.Install(i, Demand)
	}
	lost := 0
	for i := range Page(10_000) {
		for _, pg := range evictOrder(p, 1) {
			if pg < budget {
				lost++
			}
		}
		p.Install(budget+i, Prefetch)
	}
	if lost == 0 || lost > budget/8+1 {
		t.Errorf("10,000 pages read ahead displaced %d of %d demanded pages", lost, budget)
	}
}

// Once used, a prefetched page is as good as one that was missed; one that is
// not used does not become a ghost.
func TestPrefetchedPageUsed(t *testing.T) {
	p := NewS3FIFO()
	p.SetCapacity(4) // no share for read-ahead: it leaves first
	p.Install(1, Prefetch)
	p.Install(2, Prefetch)
	p.Install(3, Demand)
	p.Install(1, Demand)   // first use
	p.Install(3, Prefetch) // no news
	expect(t, "order", evictOrder(p, 1), 2)
	p.Install(2, Demand)
	expect(t, "order", evictOrder(p, 3), 3, 1, 2)

	// A use noticed as a touch counts as that first use as well.
	p.Install(8, Prefetch)
	p.Install(9, Demand)
	asked := 0
	p.Evict(1, func(pg Page) Verdict {
		if pg == 8 && asked == 0 {
			asked++
			return Touched
		}
		if pg != 9 {
			t.Errorf("page %d left", pg)
		}
		return Gone
	})
}

// A remembered page that comes back by prefetch and is used goes where its
// second miss would have put it.
func TestPrefetchKeepsTheMemory(t *testing.T) {
	p := NewS3FIFO()
	p.SetCapacity(64)
	for i := range Page(64) {
		p.Install(i, Demand)
	}
	expect(t, "first", evictOrder(p, 1), 0)
	p.Install(0, Prefetch)
	p.Install(0, Demand)
	order := evictOrder(p, 64)
	// Main gives way only when small has come down to its share, 4 pages.
	if i := slices.Index(order, 0); i != 60 {
		t.Errorf("page 0 left as number %d, want 60", i)
	}
}

// Advise(Cold) wins over touches that are older than the advice, not over
// those that come after it.
func TestColdAndTouches(t *testing.T) {
	p := NewS3FIFO()
	p.SetCapacity(16)
	for i := range Page(16) {
		p.Install(i, Demand)
	}
	p.Cold(9)
	p.Cold(5)
	touches := map[Page]int{9: 1, 5: 2}
	var order []Page
	p.Evict(2, func(pg Page) Verdict {
		if touches[pg] > 0 {
			touches[pg]--
			return Touched
		}
		order = append(order, pg)
		return Gone
	})
	expect(t, "order", order, 9, 0) // 5 was touched after the advice
	expect(t, "order", evictOrder(p, 3), 1, 2, 3)

	p.Cold(1) // gone already: now it is not remembered either
	p.Install(1, Demand)
	p.Install(50, Demand)
	if order := evictOrder(p, 13); order[12] != 50 {
		t.Errorf("order %v: a page called cold after it had left was taken for hot", order)
	}

	for i := range Page(16) {
		p.Install(100+i, Demand)
	}
	p.Install(9, Demand) // was cold: no ghost
	p.Cold(9)
	p.Install(9, Demand) // in use again
	if order := evictOrder(p, 16); slices.Index(order, 9) == 0 {
		t.Error("a page used after Cold left first")
	}
}

// A page that could not leave after all is resident, and in use.
func TestReprieve(t *testing.T) {
	p := NewS3FIFO()
	p.SetCapacity(16)
	for i := range Page(16) {
		p.Install(i, Demand)
	}
	expect(t, "first", evictOrder(p, 1), 0)
	p.Install(0, Reprieve)
	if p.Len() != 16 {
		t.Errorf("Len = %d, want 16", p.Len())
	}
	if order := evictOrder(p, 15); slices.Contains(order, 0) {
		t.Errorf("the reprieved page left before others: %v", order)
	}
}

// Pages that are busy wait for the others, whichever queue they fill.
func TestBusyPagesDoNotHideOthers(t *testing.T) {
	for _, pol := range policies {
		p := pol.new()
		p.SetCapacity(10)
		for i := range Page(10) {
			p.Install(i, Demand)
		}
		evictOrder(p, 3)
		for i := range Page(3) {
			p.Install(i, Demand) // S3-FIFO: to main, all of small is busy
		}
		got := p.Evict(3, func(pg Page) Verdict {
			if pg >= 3 {
				return Busy
			}
			return Gone
		})
		if got != 3 || p.Len() != 7 {
			t.Errorf("%s: Evict = %d, Len = %d, want 3 and 7", pol.name, got, p.Len())
		}
	}
}

// Drop-behind takes what the scan brought, and leaves what is hot or only
// remembered.
func TestDrop(t *testing.T) {
	p := NewS3FIFO()
	d := p.(Dropper)
	p.SetCapacity(16)
	for i := range Page(16) {
		p.Install(i, Demand)
	}
	expect(t, "first", evictOrder(p, 2), 0, 1)
	p.Install(0, Demand) // to main
	p.Install(20, Prefetch)
	for _, pg := range []Page{0, 1, 20, 7, 99, 7} {
		d.Drop(pg)
	}
	if order := evictOrder(p, 3); !slices.Equal(order, []Page{20, 7, 2}) {
		t.Errorf("order %v, want 20, 7, 2", order)
	}
	p.Install(1, Demand) // still remembered: to main
	if order := evictOrder(p, 12); slices.Contains(order, 1) || slices.Contains(order, 0) {
		t.Errorf("hot pages left with a scan: %v", order)
	}
}

// Stop keeps the order: the page that could not leave is the first candidate
// of the next call.
func TestStopKeepsTheOrder(t *testing.T) {
	for _, pol := range policies {
		p := pol.new()
		p.SetCapacity(8)
		for i := range Page(8) {
			p.Install(i, Demand)
		}
		got := p.Evict(5, func(pg Page) Verdict {
			if pg == 2 {
				return Stop
			}
			return Gone
		})
		if got != 2 || p.Len() != 6 {
			t.Errorf("%s: Evict = %d, Len = %d, want 2 and 6", pol.name, got, p.Len())
		}
		expect(t, pol.name, evictOrder(p, 2), 2, 3)
	}
}
