package evict

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// One miss in steady state: a victim leaves (in batches of 64, as the pager
// asks for them), a page comes.
func BenchmarkMiss(b *testing.B) {
	gone := func(Page) Verdict { return Gone }
	for _, pol := range policies {
		for _, budget := range []int{1 << 10, 1 << 16, 1 << 20} {
			b.Run(fmt.Sprintf("%s/pages=%d", pol.name, budget), func(b *testing.B) {
				p := pol.new()
				p.SetCapacity(budget)
				r := rand.New(rand.NewPCG(1, 1))
				pages := make([]Page, 1<<16)
				fill := func() {
					for i := range pages {
						pages[i] = Page(r.IntN(8 * budget))
					}
				}
				step := func(pg Page) {
					if p.Len() >= budget {
						p.Evict(64, gone)
					}
					p.Install(pg, Demand)
				}
				for range max(1, 4*budget/len(pages)) {
					fill()
					for _, pg := range pages {
						step(pg)
					}
				}
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					step(pages[i&(len(pages)-1)] ^ Page(i>>16))
				}
			})
		}
	}
}

// The same for a scan that is read ahead, a page at a time of each of so many.
func BenchmarkScan(b *testing.B) {
	gone := func(Page) Verdict { return Gone }
	for _, pol := range policies {
		for _, streams := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/streams=%d", pol.name, streams), func(b *testing.B) {
				const budget = 1 << 16
				p := pol.new()
				p.SetCapacity(budget)
				next := func(i int) Page { return Page(i%streams*(1<<30) + i/streams) }
				step := func(i int) {
					if p.Len() >= budget {
						p.Evict(64, gone)
					}
					p.Install(next(i), Prefetch)
				}
				for i := range 4 * budget {
					step(i)
				}
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					step(i + 4*budget)
				}
			})
		}
	}
}

// The ordinary Go map the index stands in for, doing the lookups of one miss.
func BenchmarkGoMap(b *testing.B) {
	for _, budget := range []int{1 << 10, 1 << 16, 1 << 20} {
		b.Run(fmt.Sprintf("pages=%d", budget), func(b *testing.B) {
			m := make(map[Page]slot, budget)
			ring := make([]Page, budget)
			r := rand.New(rand.NewPCG(1, 1))
			for i := range ring {
				ring[i] = Page(r.Uint64())
				m[ring[i]] = slot(i)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				at := i % budget
				delete(m, ring[at])
				ring[at] = ring[at]*6364136223846793005 + 1442695040888963407
				if _, ok := m[ring[at]]; !ok {
					m[ring[at]] = slot(at)
				}
			}
		})
	}
}
