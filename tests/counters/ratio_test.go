package counters

import (
	"math"
	"math/rand/v2"
	"sort"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// zipf draws pages with Zipf's law: rank k with a weight of 1/k^theta. Ranks
// are scattered over the region.
func zipf(pages int, theta float64, rng *rand.Rand) func() int {
	cdf := make([]float64, pages)
	sum := 0.0
	for i := range cdf {
		sum += 1 / math.Pow(float64(i+1), theta)
		cdf[i] = sum
	}
	where := rng.Perm(pages)
	return func() int { return where[min(sort.SearchFloat64s(cdf, rng.Float64()*sum), pages-1)] }
}

// hotSetAndScan draws four of five pages from three quarters of what fits, and
// every fifth from a scan of the rest, round and round.
func hotSetAndScan(pages, capacity int, rng *rand.Rand) func() int {
	hot, pos := capacity*3/4, 0
	return func() int {
		if rng.IntN(5) > 0 {
			return rng.IntN(hot)
		}
		pos++
		return capacity + pos%(pages-capacity)
	}
}

// clockMisses counts the misses of a clock that sees every touch.
func clockMisses(touches []int, capacity int) int64 {
	clock := evict.NewClock()
	clock.SetCapacity(capacity)
	touched := map[evict.Page]bool{} // of the resident pages
	misses := int64(0)
	for _, n := range touches {
		p := evict.Page(n)
		if _, resident := touched[p]; resident {
			touched[p] = true
			continue
		}
		misses++
		for len(touched) >= capacity {
			clock.Evict(1, func(v evict.Page) evict.Verdict {
				if touched[v] {
					touched[v] = false
					return evict.Touched
				}
				delete(touched, v)
				return evict.Gone
			})
		}
		touched[p] = false
		clock.Install(p, evict.Demand)
	}
	return misses
}

// TestMissRatio compares the default policy, which sees only the misses, with
// a clock that sees every touch, at a budget of a sixteenth.
func TestMissRatio(t *testing.T) {
	const (
		pages    = 1 << 15
		capacity = pages / 16
		touches  = 12 * pages
	)
	for _, work := range []struct {
		name string
		next func(rng *rand.Rand) func() int
	}{
		{"zipf", func(rng *rand.Rand) func() int { return zipf(pages, 0.99, rng) }},
		{"hot_set_and_scan", func(rng *rand.Rand) func() int { return hotSetAndScan(pages, capacity, rng) }},
	} {
		t.Run(work.name, func(t *testing.T) {
			if child.Isolate(t, child.Options{Deadline: 5 * time.Minute}) {
				return
			}
			next := work.next(rand.New(rand.NewPCG(1, 2)))
			list := make([]int, touches)
			for i := range list {
				list[i] = next()
			}
			p := fixture.Pager(t, pager.Options{Budget: capacity * page})
			r := fixture.Map(t, p, fixture.Memory(t, pages*page, 1), pager.RegionOptions{Prefetch: prefetch.None()})
			fixture.NeedRaw(t, r)
			mem := r.Bytes()
			for _, n := range list {
				at := int64(n)*page + 77
				if mem[at] != fixture.Byte(at, 1) {
					t.Fatalf("page %d is wrong", n)
				}
			}
			s := p.Stats()
			clock := clockMisses(list, capacity)
			share := func(n int64) float64 { return 100 * float64(n) / touches }
			t.Logf("misses: %.2f %%; a clock that sees every touch: %.2f %%", share(s.Misses), share(clock))
			if s.Misses != s.Reads || s.ReadBytes <= 10*capacity*page {
				t.Errorf("%d misses, %d reads of %d bytes", s.Misses, s.Reads, s.ReadBytes)
			}
			if float64(s.Misses) > 1.05*float64(clock) {
				t.Errorf("%d misses, more than 1.05 × the %d of the clock\n%v", s.Misses, clock, s)
			}
		})
	}
}
