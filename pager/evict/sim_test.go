package evict

import (
	"math"
	"math/rand/v2"
	"testing"
	"fmt"
	"sort"
)

type zipf struct{ cdf []float64 }

func newZipf(n int, theta float64) *zipf {
	z := &zipf{cdf: make([]float64, n)}
	sum := 0.0
	for i := range z.cdf {
		sum += 1 / math.Pow(float64(i+1), theta)
		z.cdf[i] = sum
	}
	for i := range z.cdf { z.cdf[i] /= sum }
	return z
}
func (z *zipf) next(r *rand.Rand) int { return sort.SearchFloat64s(z.cdf, r.Float64()) }

func sim(p Policy, see bool, capacity, n int, next func() Page) float64 {
	p.SetCapacity(capacity)
	touched := map[Page]bool{}
	misses := 0
	res := map[Page]bool{}
	for i := 0; i < n; i++ {
		pg := next()
		if res[pg] {
			if see { touched[pg] = true }
			continue
		}
		if i > n/4 {misses++}
		if len(res) >= capacity {
			p.Evict(1, func(v Page) Verdict {
				if touched[v] { delete(touched, v); return Touched }
				delete(res, v)
				return Gone
			})
		}
		res[pg] = true
		p.Install(pg, Demand)
	}
	return float64(misses) / float64(n-n/4) * 100
}

func TestExplore(t *testing.T) {
	for _, N := range []int{1<<14, 1<<16, 1<<18} {
		cap := N / 16
		n := N*32
		if n > 4000000 { n = 4000000 }
		zf := newZipf(N, 0.99)
		z := func() func() Page { r := rand.New(rand.NewPCG(1, 2)); return func() Page { return Page(zf.next(r)) } }
		hs := func() func() Page {
			r := rand.New(rand.NewPCG(1, 2)); pos := 0
			return func() Page {
				if r.IntN(5) > 0 { return Page(r.IntN(cap*3/4)) }
				pos++
				return Page(cap + pos%(N-cap))
			}
		}
		for name, w := range map[string]func() func() Page{"zipf": z, "hs": hs} {
			fmt.Printf("N=%d %s fifo %.2f clock %.2f s3touch %.2f", N, name, sim(NewFIFO(), false, cap, n, w()), sim(NewClock(), true, cap, n, w()), sim(NewS3FIFO(), true, cap, n, w()))
			for _, mainGhost = range []bool{false, true} {
				for _, g := range [][2]int{{9,10}, {1,1},{3, 2}, {2, 1}} {
					ghostNum, ghostDen = g[0], g[1]
					fmt.Printf(" | mg=%v g=%v: %.2f", mainGhost, g, sim(NewS3FIFO(), false, cap, n, w()))
				}
			}
			fmt.Println()
		}
	}
}
