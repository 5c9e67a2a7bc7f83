package evict

import (
	"math/rand/v2"
	"testing"
)

// Pages meet in the index no more often than random ones do, whatever step
// they come in and whichever region they are of.
func TestIndexSpreadsPages(t *testing.T) {
	const pages = 1 << 14
	looks := func(page func(i int) Page) float64 {
		tab := new(table)
		for i := range pages {
			tab.insert(page(i), s3Small)
		}
		x := &tab.index
		n := 0
		for i := range pages {
			for s := *x.bucket(page(i)); tab.at(s).page != page(i); s = tab.at(s).chain {
				n++
			}
			n++
		}
		return float64(n) / pages
	}
	r := rand.New(rand.NewPCG(1, 1))
	random := make([]Page, pages)
	for i := range random {
		random[i] = Page(r.Uint64())
	}
	want := looks(func(i int) Page { return random[i] })
	for _, step := range []int{1, 2, 3, 8, 15, 16, 17, 32, 64, 100, 512, 1 << 20} {
		if got := looks(func(i int) Page { return Page(i * step) }); got > 1.2*want {
			t.Errorf("step %d: %.2f nodes are looked at to find one, %.2f for random pages", step, got, want)
		}
	}
	for _, streams := range []int{2, 64, 1000} {
		if got := looks(func(i int) Page { return Page(i%streams)<<36 | Page(i/streams) }); got > 1.2*want {
			t.Errorf("%d regions: %.2f nodes are looked at to find one, %.2f for random pages", streams, got, want)
		}
	}
}
