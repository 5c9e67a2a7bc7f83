package evict

import (
	"math"
	"math/rand/v2"
	"sort"
	"testing"
)

// The simulations count misses of page reference strings; nothing here is
// timed.

// zipf draws 0..n-1 with probability ∝ 1/(rank+1)^theta.
type zipf []float64

func newZipf(n int, theta float64) zipf {
	z := make(zipf, n)
	sum := 0.0
	for i := range z {
		sum += math.Pow(float64(i+1), -theta)
		z[i] = sum
	}
	return z
}

func (z zipf) draw(r *rand.Rand) Page {
	return Page(sort.SearchFloat64s(z, r.Float64()*z[len(z)-1]))
}

// hotAndScan returns accesses of which four of five go to a hot set of the
// given size and the fifth goes on with a scan of all other pages.
func hotAndScan(r *rand.Rand, hot, pages int) func() Page {
	at := 0
	return func() Page {
		if r.IntN(5) > 0 {
			return Page(r.IntN(hot))
		}
		at++
		return Page(hot + at%(pages-hot))
	}
}

// missRatio runs n accesses through a budget and counts the misses of the
// last three quarters. Unless sees is set, the policy is never told that a
// page was touched.
func missRatio(p Policy, sees bool, budget, n int, next func() Page) float64 {
	misses := 0
	for _, missed := range missesOf(p, sees, budget, n, next)[n/4:] {
		if missed {
			misses++
		}
	}
	return float64(misses) / float64(n-n/4)
}

// missesOf says which of n accesses missed.
func missesOf(p Policy, sees bool, budget, n int, next func() Page) []bool {
	p.SetCapacity(budget)
	resident := map[Page]bool{} // value: touched since last offered
	missed := make([]bool, n)
	for i := range n {
		pg := next()
		if _, hit := resident[pg]; hit {
			resident[pg] = sees
			continue
		}
		missed[i] = true
		if len(resident) == budget {
			p.Evict(1, func(v Page) Verdict {
				if resident[v] {
					resident[v] = false
					return Touched
				}
				delete(resident, v)
				return Gone
			})
		}
		resident[pg] = false
		p.Install(pg, Demand)
	}
	return missed
}

// From misses alone S3-FIFO does what a clock needs every touch for.
func TestMissesAloneAreEnough(t *testing.T) {
	const (
		pages    = 1 << 15
		budget   = pages / 16
		accesses = 300_000
	)
	z := newZipf(pages, 0.99)
	for _, w := range []struct {
		name string
		next func(r *rand.Rand) func() Page
	}{
		{"zipf 0.99", func(r *rand.Rand) func() Page { return func() Page { return z.draw(r) } }},
		{"zipf 0.99, drifting", func(r *rand.Rand) func() Page {
			i := 0
			return func() Page { i++; return (z.draw(r) + Page(i/200)) % pages }
		}},
		{"hot half and scan", func(r *rand.Rand) func() Page { return hotAndScan(r, budget/2, pages) }},
		{"hot set as large as the budget and scan", func(r *rand.Rand) func() Page { return hotAndScan(r, budget, pages) }},
		{"loop over 1.5 budgets", func(r *rand.Rand) func() Page {
			i := 0
			return func() Page { i++; return Page(i % (budget * 3 / 2)) }
		}},
		{"uniform", func(r *rand.Rand) func() Page { return func() Page { return Page(r.IntN(pages)) } }},
	} {
		run := func(p Policy, sees bool) float64 {
			return missRatio(p, sees, budget, accesses, w.next(rand.New(rand.NewPCG(1, 2))))
		}
		fifo, clock := run(NewFIFO(), false), run(NewClock(), true)
		s3, s3sees := run(NewS3FIFO(), false), run(NewS3FIFO(), true)
		t.Logf("%-40s FIFO %.4f, clock that sees %.4f, S3-FIFO blind %.4f, S3-FIFO that sees %.4f", w.name, fifo, clock, s3, s3sees)
		if s3 > 1.05*clock {
			t.Errorf("%s: S3-FIFO misses %.4f, a clock that sees every touch %.4f", w.name, s3, clock)
		}
		if s3sees > 1.05*clock {
			t.Errorf("%s: S3-FIFO with touches misses %.4f, the clock %.4f", w.name, s3sees, clock)
		}
	}
}

// What misses say comes late: a page has to leave and to be missed again before it is
// known to be in use, and until then S3-FIFO that sees no touches is a FIFO. In memory that was
// full of something else it takes some ten budgets of accesses, three of misses.
func TestMissesAloneTeachSlowly(t *testing.T) {
	const (
		pages   = 1 << 15
		budget  = pages / 16
		window  = 8 * budget // accesses
		windows = 16
	)
	z := newZipf(pages, 0.99)
	run := func(p Policy, sees bool) (ratio [windows]float64) {
		r := rand.New(rand.NewPCG(1, 2))
		at := 0
		access := func() Page {
			if at++; at <= budget {
				return Page(pages + at) // what memory is filled with before
			}
			return z.draw(r)
		}
		misses := missesOf(p, sees, budget, budget+window*windows, access)
		for i := range ratio {
			for _, missed := range misses[budget+i*window:][:window] {
				if missed {
					ratio[i] += 1. / window
				}
			}
		}
		return ratio
	}
	fifo, clock, s3, s3sees := run(NewFIFO(), false), run(NewClock(), true), run(NewS3FIFO(), false), run(NewS3FIFO(), true)
	for i := range fifo {
		t.Logf("after %3d budgets of accesses: FIFO %.3f, clock that sees %.3f, S3-FIFO blind %.3f, S3-FIFO that sees %.3f", 8*(i+1), fifo[i], clock[i], s3[i], s3sees[i])
		if s3[i] > 1.05*fifo[i] {
			t.Errorf("S3-FIFO learns to miss more than a FIFO: %.3f, %.3f", s3[i], fifo[i])
		}
	}
	mean := func(v []float64) (m float64) {
		for _, x := range v {
			m += x / float64(len(v))
		}
		return m
	}
	if late, seen := mean(s3[windows/2:]), mean(clock[windows/2:]); late > 1.02*seen {
		t.Errorf("when it has learnt S3-FIFO misses %.3f, a clock that sees every touch %.3f", late, seen)
	}
}

// With a budget of a few pages nothing breaks and a hot page is still found.
func TestTinyBudgets(t *testing.T) {
	for _, pol := range policies {
		for budget := 1; budget <= 8; budget++ {
			r := rand.New(rand.NewPCG(3, uint64(budget)))
			got := missRatio(pol.new(), false, budget, 20_000, func() Page { return Page(r.IntN(budget)) })
			if got != 0 {
				t.Errorf("%s: budget %d, as many pages: miss ratio %.4f, want 0", pol.name, budget, got)
			}
		}
	}
	for budget := 4; budget <= 8; budget++ {
		// One hot page and a scan: a FIFO loses the hot page again and again.
		mk := func() func() Page {
			r := rand.New(rand.NewPCG(3, uint64(budget)))
			return hotAndScan(r, 1, 1000)
		}
		fifo := missRatio(NewFIFO(), false, budget, 20_000, mk())
		s3 := missRatio(NewS3FIFO(), false, budget, 20_000, mk())
		if s3 > fifo {
			t.Errorf("budget %d: S3-FIFO %.4f, FIFO %.4f", budget, s3, fifo)
		}
	}
}
