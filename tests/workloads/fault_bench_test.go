package workloads

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const page = pager.FrameSize

// touches are the classic ones of a page-fault benchmark.
var touches = []struct {
	name  string
	touch func(b *byte)
}{
	{"read", func(b *byte) { sink += *b }},
	{"write", func(b *byte) { *b = 1 }},
	{"read-modify-write", func(b *byte) { *b++ }},
}

var sink byte

// BenchmarkFault touches pages that are absent, one after the other or shuffled,
// with all of them fitting the budget (what is paid is the fault) or a quarter
// (a page leaves for every page that comes). The store is memory, so that no
// device is measured. One operation is one page.
func BenchmarkFault(b *testing.B) {
	const pages = 4096
	for _, t := range touches {
		for _, order := range []string{"in order", "shuffled"} {
			for _, fits := range []string{"fits", "quarter"} {
				b.Run(t.name+"/"+order+"/"+fits, func(b *testing.B) {
					budget := int64(pages)
					if fits == "quarter" {
						budget /= 4
					}
					p := fixture.Pager(b, pager.Options{Budget: (budget + 64) * page})
					r := fixture.Map(b, p, store.NewMemory(pages*page), pager.RegionOptions{Prefetch: prefetch.None()})
					if r.Raw() != nil {
						b.Skip(r.Raw())
					}
					at := rand.New(rand.NewPCG(1, 2)).Perm(pages)
					if order == "in order" {
						for i := range at {
							at[i] = i
						}
					}
					mem := r.Bytes()
					b.SetBytes(page)
					n := 0
					for b.Loop() {
						if n == pages {
							n = 0
							if fits == "fits" { // start anew
								b.StopTimer()
								if err := r.Sync(context.Background()); err != nil {
									b.Fatal(err)
								}
								if err := r.Advise(0, pages*page, pager.DontNeed); err != nil {
									b.Fatal(err)
								}
								b.StartTimer()
							}
						}
						t.touch(&mem[at[n]*page])
						n++
					}
					s := p.Stats()
					b.ReportMetric(float64(s.Misses)/float64(b.N), "misses/op")
				})
			}
		}
	}
}
