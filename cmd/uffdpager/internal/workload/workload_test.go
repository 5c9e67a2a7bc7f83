package workload

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func kinds() []Kind {
	return []Kind{Random, Zipf, Scan, Chase, Mixed, Interleaved, Stride}
}

func take(s *Stream, n int) []Op {
	ops := make([]Op, n)
	last := uint64(1)
	for i := range ops {
		ops[i] = s.Next(last)
		last = last*6364136223846793005 + uint64(ops[i].Block)
	}
	return ops
}

func TestParseIsTheInverseOfString(t *testing.T) {
	for _, k := range kinds() {
		if got, err := Parse(k.String()); got != k || err != nil {
			t.Errorf("Parse(%q) = %v, %v", k, got, err)
		}
	}
	if _, err := Parse("sequential"); err == nil {
		t.Error("an unknown workload is accepted")
	}
}

// Every kind stays within the file, whatever its size and however many
// goroutines share it.
func TestOpsStayInTheFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{
			Kind:       rapid.SampledFrom(kinds()).Draw(t, "kind"),
			Blocks:     rapid.Int64Range(1, 1<<30).Draw(t, "blocks"),
			PerPage:    rapid.SampledFrom([]int64{1, 4, 512}).Draw(t, "per page"),
			Goroutines: rapid.IntRange(1, 2000).Draw(t, "goroutines"),
			WriteRatio: rapid.Float64Range(0, 1).Draw(t, "write ratio"),
			Seed:       rapid.Uint64().Draw(t, "seed"),
		}
		s := New(cfg).Stream(rapid.IntRange(0, cfg.Goroutines-1).Draw(t, "i"))
		for _, op := range take(s, 600) {
			if op.Block < 0 || op.Block >= cfg.Blocks {
				t.Fatalf("block %d of %d", op.Block, cfg.Blocks)
			}
		}
	})
}

func TestSameSeedSameWork(t *testing.T) {
	for _, k := range kinds() {
		cfg := Config{Kind: k, Blocks: 10000, PerPage: 1, Goroutines: 3, WriteRatio: .3, Seed: 7}
		a, b := take(New(cfg).Stream(1), 500), take(New(cfg).Stream(1), 500)
		if !slices.Equal(a, b) {
			t.Errorf("%v: the same seed gives other ops", k)
		}
		cfg.Seed++
		if slices.Equal(a, take(New(cfg).Stream(1), 500)) {
			t.Errorf("%v: another seed gives the same ops", k)
		}
	}
}

// The kinds that go through the file in some order leave nothing out.
func TestSequentialKindsCoverTheFile(t *testing.T) {
	for _, k := range []Kind{Scan, Interleaved, Stride} {
		for _, blocks := range []int64{1, 5, 1000, 2048, 4099} {
			for _, g := range []int{1, 3, 7} {
				w := New(Config{Kind: k, Blocks: blocks, PerPage: 1, Goroutines: g, Seed: 1})
				seen := map[int64]bool{}
				for i := range g {
					for _, op := range take(w.Stream(i), int(blocks)*2+2*scanChunk) {
						seen[op.Block] = true
					}
				}
				if int64(len(seen)) != blocks {
					t.Errorf("%v, %d goroutines: %d of %d blocks", k, g, len(seen), blocks)
				}
			}
		}
	}
}

func TestChaseDependsOnWhatWasRead(t *testing.T) {
	cfg := Config{Kind: Chase, Blocks: 1 << 20, PerPage: 1, Goroutines: 1, Seed: 1}
	if New(cfg).Stream(0).Next(1) == New(cfg).Stream(0).Next(2) {
		t.Error("other bytes, same next block")
	}
}

func TestWriteRatioIsMet(t *testing.T) {
	for _, ratio := range []float64{0, 0.1, 0.5, 1} {
		n := 0
		for _, op := range take(New(Config{Blocks: 1000, PerPage: 1, Goroutines: 1, WriteRatio: ratio, Seed: 3}).Stream(0), 20000) {
			if op.Write {
				n++
			}
		}
		if got := float64(n) / 20000; math.Abs(got-ratio) > 0.02 {
			t.Errorf("ratio %v: %v of the ops write", ratio, got)
		}
	}
}

// The share of the most popular ranks is what the distribution says it is.
func TestZipfFollowsItsDistribution(t *testing.T) {
	const n, draws = 1000, 400000
	z := newZipf(n, zipfSkew)
	rng := rand.NewPCG(1, 2)
	count := make([]float64, n)
	for range draws {
		count[z.draw(rng)]++
	}
	total := 0.0
	for k := 1; k <= n; k++ {
		total += math.Pow(float64(k), -zipfSkew)
	}
	for _, k := range []int{1, 2, 3, 10, 100} {
		want := math.Pow(float64(k), -zipfSkew) / total * draws
		if got := count[k-1]; math.Abs(got-want) > 5*math.Sqrt(want) {
			t.Errorf("rank %d: drawn %v times, want about %.0f", k, got, want)
		}
	}
}

func TestSpreadIsAPermutation(t *testing.T) {
	for _, n := range []int64{1, 2, 3, 64, 1000, 4096, 10007} {
		s := newSpread(n)
		seen := make([]bool, n)
		for i := range n {
			seen[s.at(i)] = true
		}
		if slices.Contains(seen, false) {
			t.Errorf("%d: something is left out", n)
		}
	}
}
