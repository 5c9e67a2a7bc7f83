package pager

import (
	"context"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// However much is read ahead and not used, it displaces an eighth of the budget and what is
// under way at most; and of the pages that are there those that have been used once, and none
// that has been used again.
func TestReadsAheadDisplaceTheColdest(t *testing.T) {
	const (
		budget = 1024
		hot    = budget / 2
	)
	for _, c := range []struct {
		name string
		hint bool // named by the program, not planned by a policy
	}{{"planned", false}, {"named", true}} {
		t.Run(c.name, func(t *testing.T) {
			p, r, _ := mapMemory(t, 1<<16, Options{Budget: budget * FrameSize}, store.FaultyOptions{}, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
			use := func(page int64) {
				pin, err := r.Acquire(context.Background(), page*FrameSize, 1)
				if err != nil {
					t.Fatal(err)
				}
				pin.Release()
			}
			place := func(i int64) int64 { return 2 * i } // hot and cold ones, apart
			for i := range int64(budget) {
				use(place(i))
			}
			for i := range int64(hot) {
				use(place(i))
			}
			for at := uint64(10_000); at < 20_000; at += 100 {
				p.addJob(aheadJob{r: r, next: at, end: at + 100, hint: c.hint})
				p.pumpNow()
				eventually(t, "it is read", func() bool { return p.aheadLoads.Load() == 0 && p.jobs.pending.Load() == 0 })
			}
			if n := r.ahead.issued.Load(); n != 10_000 {
				t.Fatalf("%d pages were read ahead", n)
			}
			lost := [2]int{}
			for i := range int64(budget) {
				if n, _ := r.Residency(place(i)*FrameSize, FrameSize); n == 0 {
					lost[i/hot]++
				}
			}
			t.Logf("%d pages in use and %d others left", lost[0], lost[1])
			if most := budget/8 + int(p.aheadLimit()); lost[0] > 0 || lost[1] > most {
				t.Errorf("%d pages in use and %d others left, want 0 and %d at most", lost[0], lost[1], most)
			}
		})
	}
}
