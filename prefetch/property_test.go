package prefetch

import (
	"testing"

	"pgregory.net/rapid"
)

// Whatever happens, a plan keeps within the region and the room, names no page
// twice in its runs, and no marker in a run.
func TestPlansAreSane(t *testing.T) {
	for name, policy := range map[string]func(t *rapid.T) Policy{
		"Readahead": func(t *rapid.T) Policy {
			return Readahead(ReadaheadOptions{
				MinWindow: rapid.Int64Range(0, 1<<20).Draw(t, "min"),
				MaxWindow: rapid.Int64Range(0, 8<<20).Draw(t, "max"),
			})
		},
		"Stride": func(*rapid.T) Policy { return Stride(StrideOptions{}) },
		"Replay": func(t *rapid.T) Policy {
			trace := encode(t, &Trace{PageSize: 4096, Pages: rapid.SliceOf(rapid.Int64Range(0, 500)).Draw(t, "trace")})
			return mustReplay(t, trace, ReplayOptions{Batch: 4096 * rapid.Int64Range(0, 20).Draw(t, "batch")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { sane(t, policy(t)) })
		})
	}
}

func sane(t *rapid.T, p Policy) {
	plan := Plan{
		Pages:  rapid.SampledFrom([]int64{1, 5, 100, 1000, 1 << 40}).Draw(t, "pages"),
		Budget: rapid.SampledFrom([]int64{0, 4, 100, 10_000}).Draw(t, "budget"),
	}
	var told Feedback
	observe := func(page int64) {
		plan.Reset()
		plan.Room = rapid.Int64Range(-1, 300).Draw(t, "room")
		e := Event{Kind: Kind(rapid.IntRange(0, 8).Draw(t, "kind")), Page: page}
		if e.Kind > Hint {
			e.Kind = Miss
		}
		e.Late = e.Kind == Touch && rapid.Bool().Draw(t, "late")
		p.Observe(e, &plan)
		seen, n := map[int64]bool{}, int64(0)
		for _, r := range plan.Runs {
			n += r.N
			if r.First < 0 || r.N <= 0 || r.First+r.N > plan.Pages {
				t.Fatalf("at page %d: run %v in a region of %d pages", page, r, plan.Pages)
			}
			for q := r.First; q < r.First+r.N; q++ {
				if seen[q] {
					t.Fatalf("at page %d: page %d planned twice", page, q)
				}
				seen[q] = true
			}
		}
		if n > max(plan.Room, 0) {
			t.Fatalf("at page %d: %d pages planned with room for %d", page, n, plan.Room)
		}
		for _, m := range plan.Marks {
			if seen[m] || m < 0 || m >= plan.Pages {
				t.Fatalf("at page %d: marker %d", page, m)
			}
		}
		for _, r := range plan.Drop {
			if r.First < 0 || r.N <= 0 || r.First+r.N > plan.Pages {
				t.Fatalf("at page %d: drop %v", page, r)
			}
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"anywhere": func(t *rapid.T) { observe(rapid.Int64Range(0, plan.Pages-1).Draw(t, "page")) },
		"walk": func(t *rapid.T) {
			page := rapid.Int64Range(0, plan.Pages-1).Draw(t, "from")
			step := rapid.SampledFrom([]int64{1, 1, -1, 2, 7, -7}).Draw(t, "step")
			for range rapid.IntRange(1, 60).Draw(t, "n") {
				if page < 0 || page >= plan.Pages {
					break
				}
				observe(page)
				page += step
			}
		},
		"learn": func(t *rapid.T) {
			told.Issued += 500
			told.Used += rapid.Int64Range(0, 500).Draw(t, "used")
			told.Unused += rapid.Int64Range(0, 500).Draw(t, "unused")
			if l, ok := p.(Learner); ok {
				l.Learn(told)
			}
		},
	})
}
