package prefetch

import (
	"bytes"
	"io"
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
	interleaved, scattered := interleave(scans...), random(1, 1<<16, 1<<20)
	for _, p := range []struct {
		name string
		new  func() Policy
	}{
		{"Readahead", func() Policy { return Readahead(ReadaheadOptions{}) }},
		{"Stride", func() Policy { return Stride(StrideOptions{}) }},
	} {
		b.Run(p.name+"/random", func(b *testing.B) {
			benchmark(b, p.new(), Miss, scattered)
		})
		b.Run(p.name+"/random beside 64 scans", func(b *testing.B) {
			policy := p.new()
			plan := Plan{Pages: 1 << 20, Budget: 1 << 16, Room: 1 << 12}
			for i := range int64(64 * 8) {
				policy.Observe(Event{Kind: Miss, Page: i%64*16384 + i/64}, &plan)
			}
			benchmark(b, policy, Miss, scattered)
		})
		b.Run(p.name+"/touched scan", func(b *testing.B) {
			policy := p.new()
			plan := Plan{Pages: 1 << 20, Budget: 1 << 16, Room: 1 << 12}
			for i := range int64(8) {
				policy.Observe(Event{Kind: Miss, Page: i}, &plan)
			}
			benchmark(b, policy, Touch, scan(0, 1<<20, 1))
		})
		b.Run(p.name+"/64 scans", func(b *testing.B) {
			benchmark(b, p.new(), Miss, interleaved)
		})
	}
	b.Run("Replay/touches", func(b *testing.B) {
		var trace bytes.Buffer
		if _, err := (&Trace{PageSize: 4096, Pages: scattered}).WriteTo(&trace); err != nil {
			b.Fatal(err)
		}
		p, err := Replay(&trace, ReplayOptions{})
		if err != nil {
			b.Fatal(err)
		}
		benchmark(b, p, Touch, scattered)
	})
	b.Run("Record", func(b *testing.B) {
		r := Record(io.Discard)
		defer r.Close()
		benchmark(b, r, Miss, scattered)
	})
}
