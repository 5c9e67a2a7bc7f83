package durability

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestAtomicSeveralPowerLoss is the loss of power for Pager.Commit over two
// regions. What is promised: each region holds whole commits only, and every
// commit that was acknowledged, of one or of both. What is not: that the two
// are as of the same commit if the power goes before it was acknowledged. The
// test counts how often they are not.
func TestAtomicSeveralPowerLoss(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	if child.Isolate(t, child.Options{Procs: 2, Deadline: deadline(3*time.Minute, 20*time.Minute)}) {
		return
	}
	atLeast, end := 400, time.Now().Add(30*time.Second)
	if fixture.Torture() {
		atLeast, end = 20_000, time.Now().Add(10*time.Minute)
	}
	images, apart := 0, 0
	for n := uint64(0); images < atLeast && time.Now().Before(end) && !t.Failed(); n++ {
		t.Run(fmt.Sprint("history", n), func(t *testing.T) {
			i, a := loseSeveral(t, seed+n, n%2 == 1)
			images, apart = images+i, apart+a
		})
	}
	if images == 0 {
		t.Error("no images")
	}
	t.Logf("%d images of two regions; in %d of them one region has a commit of both, and the other has not", images, apart)
}

func loseSeveral(t *testing.T, seed uint64, slow bool) (images, apart int) {
	rec := new(store.Recorder)
	rng := rand.New(rand.NewPCG(seed, 8))
	p := fixture.Pager(t, pager.Options{Budget: 32 * frame})
	hs := []*history{newHistoryOf(t, p, rec, seed, historyPages, slow, false), newHistoryOf(t, p, rec, seed+1<<32, historyPages, slow, false)}
	var both [][2]int // attempts that belong together
	for i := range 35 {
		if rng.IntN(6) > 0 {
			h := hs[rng.IntN(2)]
			if name, err := h.step(uint64(i)); err != nil {
				t.Fatalf("step %d, %s: %v", i, name, err)
			}
			continue
		}
		both = append(both, [2]int{len(hs[0].tried), len(hs[1].tried)})
		rs := []*pager.Region{hs[0].r, hs[1].r}
		if rng.IntN(2) == 0 {
			rs[0], rs[1] = rs[1], rs[0]
		}
		if err := commit(func() error { return p.Commit(context.Background(), rs...) }, hs...); err != nil {
			t.Fatalf("step %d, Pager.Commit: %v", i, err)
		}
	}
	if err := errors.Join(hs[0].r.Close(), hs[1].r.Close()); err != nil {
		t.Fatal(err)
	}
	if !hs[0].recorded() || !hs[1].recorded() {
		return 0, 0
	}
	judges := fixture.Pager(t, pager.Options{Budget: 64 * frame})
	first := max(hs[0].tried[0].ack, hs[1].tried[0].ack)
	for tick := first; tick <= rec.Now(); tick++ {
		for _, survives := range []store.Survives{nil, store.AtRandom(seed + uint64(tick))} {
			var seen [2]int
			for k, h := range hs {
				var err error
				if seen[k], err = h.judge(judges, h.images(tick, survives), tick, false); err != nil {
					t.Fatalf("seed %d: power lost at tick %d of %d: region %d: %v", seed, tick, rec.Now(), k, err)
				}
			}
			images++
			for _, b := range both {
				if (seen[0] >= b[0]) != (seen[1] >= b[1]) {
					apart++
					break
				}
			}
		}
	}
	return images, apart
}
