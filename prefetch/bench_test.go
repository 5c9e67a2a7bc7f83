package prefetch

import (
	"testing"
)

func benchmark(b *testing.B, p Policy, kind Kind, pages []int64) {
	plan := Plan{Pages: 1 << 20, Budget: 1 << 16, Room: 1 << 12}
	observe := func(i int) {
		plan.Reset()
		p.Observe(Event{Kind: kind, Page: pages[i%len(pages)]}, &plan)
	}
	for i := range pages {
		observe(i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		observe(i)
	}
}

func BenchmarkObserve(b *testing.B) {
	var scans [][]int64
	for i := range int64(64) {
		scans = append(scans, scan(i*16384, 16384, 1))
	}
	interleaved := interleave(scans...)
	for _, p := range []struct {
		name string
		new  func() Policy
	}{
		{"Readahead", func() Policy { return Readahead(ReadaheadOptions{}) }},
		{"Stride", func() Policy { return Stride(StrideOptions{}) }},
	} {
		b.Run(p.name+"/random", func(b *testing.B) {
			benchmark(b, p.new(), Miss, random(1, 1<<16, 1<<20))
		})
		b.Run(p.name+"/random beside 64 scans", func(b *testing.B) {
			policy := p.new()
			plan := Plan{Pages: 1 << 20, Budget: 1 << 16, Room: 1 << 12}
			for i := range int64(64 * 8) {
				policy.Observe(Event{Kind: Miss, Page: i%64*16384 + i/64}, &plan)
			}
			benchmark(b, policy, Miss, random(1, 1<<16, 1<<20))
		})
		b.Run(p.name+"/scan touched", func(b *testing.B) {
			benchmark(b, p.new(), Touch, scan(0, 1<<20, 1))
		})
		b.Run(p.name+"/64 scans missed", func(b *testing.B) {
			benchmark(b, p.new(), Miss, interleaved)
		})
	}
}
