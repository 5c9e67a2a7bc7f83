package pager

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histBuckets: four buckets per power of two of nanoseconds, up to about 17
// minutes, so that a quantile is at most 19 % off.
const histBuckets = 4 * 40

// histogram counts durations without locks. Only slow paths (a miss, an I/O)
// write to it.
type histogram struct {
	count, sum, max atomic.Int64
	bucket          [histBuckets]atomic.Int64
}

func histIndex(ns int64) int {
	if ns < 4 {
		return int(max(ns, 0))
	}
	e := bits.Len64(uint64(ns)) - 1 // ≥ 2
	i := (e-1)*4 + int(uint64(ns)>>(e-2)&3)
	return min(i, histBuckets-1)
}

// histUpper is the largest duration that falls into bucket i.
func histUpper(i int) int64 {
	if i < 4 {
		return int64(i)
	}
	e, q := i/4+1, int64(i%4)
	return (4+q+1)<<(e-2) - 1
}

func (h *histogram) add(d time.Duration) {
	ns := int64(d)
	h.count.Add(1)
	h.sum.Add(ns)
	h.bucket[histIndex(ns)].Add(1)
	for m := h.max.Load(); ns > m && !h.max.CompareAndSwap(m, ns); m = h.max.Load() {
	}
}

func (h *histogram) snapshot() Histogram {
	s := Histogram{Count: h.count.Load(), Sum: time.Duration(h.sum.Load()), Max: time.Duration(h.max.Load())}
	for i := range h.bucket {
		s.buckets[i] = h.bucket[i].Load()
	}
	return s
}

// Histogram is a distribution of latencies.
type Histogram struct {
	Count   int64
	Sum     time.Duration
	Max     time.Duration
	buckets [histBuckets]int64
}

// Quantile returns the duration that a share q (0 … 1) of the observations do
// not exceed, at most 19 % too long; 0 when there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	var n int64
	for _, b := range h.buckets {
		n += b
	}
	if n == 0 {
		return 0
	}
	want := int64(q*float64(n) + 0.5)
	want = min(max(want, 1), n)
	for i, b := range h.buckets {
		if want -= b; want <= 0 {
			return min(time.Duration(histUpper(i)), h.Max)
		}
	}
	return h.Max
}

// Mean is the average, 0 when there are no observations.
func (h *Histogram) Mean() time.Duration {
	if h.Count == 0 {
		return 0
	}
	return h.Sum / time.Duration(h.Count)
}
