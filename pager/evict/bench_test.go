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
