package workload

import (
	"math"
	"math/bits"
	"math/rand/v2"
)

// below maps 64 random bits onto 0 … n-1 (Lemire's multiplication, without the
// correction: the bias is n/2^64).
func below(x uint64, n int64) int64 {
	hi, _ := bits.Mul64(x, uint64(n))
	return int64(hi)
}

// zipf draws ranks 0 … n-1 with a probability that falls with (rank+1)^-skew,
// for any skew but 1, by rejection-inversion (Hörmann and Derflinger, "Rejection-
// inversion to generate variates from monotone discrete distributions", 1996):
// no table, so that a file of any size costs nothing to prepare. (The standard
// library's Zipf wants a skew above 1.)
type zipf struct {
	n          int64
	skew       float64
	low, high  float64 // the integral's range
	sureWithin float64 // a rank this close to its variate needs no test
}

func newZipf(n int64, skew float64) zipf {
	z := zipf{n: n, skew: skew}
	z.low = z.integral(1.5) - 1
	z.high = z.integral(float64(n) + 0.5)
	z.sureWithin = 2 - z.inverse(z.integral(2.5)-z.density(2))
	return z
}

func (z *zipf) density(x float64) float64 { return math.Pow(x, -z.skew) }
func (z *zipf) integral(x float64) float64 {
	return (math.Pow(x, 1-z.skew) - 1) / (1 - z.skew)
}
func (z *zipf) inverse(y float64) float64 {
	return math.Pow(1+y*(1-z.skew), 1/(1-z.skew))
}

func (z *zipf) draw(rng *rand.PCG) int64 {
	for {
		u := z.high + float64(rng.Uint64()>>11)/(1<<53)*(z.low-z.high)
		x := z.inverse(u)
		k := math.Min(math.Max(math.Floor(x+0.5), 1), float64(z.n))
		if k-x <= z.sureWithin || u >= z.integral(k+0.5)-z.density(k) {
			return int64(k) - 1
		}
	}
}

// spread is a permutation of 0 … n-1 that sends neighbours far apart: multiples
// of a number near n divided by the golden ratio, without a divisor in common
// with n.
type spread struct{ n, step uint64 }

func newSpread(n int64) spread {
	s := spread{n: uint64(n), step: max(uint64(float64(n)*(math.Sqrt(5)-1)/2), 1)}
	for gcd(s.step, s.n) != 1 {
		s.step++
	}
	return s
}

func (s spread) at(i int64) int64 {
	hi, lo := bits.Mul64(uint64(i), s.step%s.n)
	return int64(bits.Rem64(hi, lo, s.n))
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
