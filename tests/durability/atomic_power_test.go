package durability

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestAtomicPowerLoss runs the pager itself over a data store and a journal
// that log every write and flush, lets the power go at every tick of the log
// with all, nothing, or a random part of what was not flushed, sectors torn,
// and maps what is left: a whole commit, none older than what Commit had
// acknowledged. Now and then the power goes again while that is mapped.
func TestAtomicPowerLoss(t *testing.T) { atomicPowerLoss(t, 1000, false, false) }

// TestAtomicPowerLossWide is the same with commits of several transfers each, whose images
// are on their way while their checksums are computed, and of which some fail: after one
// that has failed a crash leaves all of it or nothing.
func TestAtomicPowerLossWide(t *testing.T) { atomicPowerLoss(t, 400, false, true) }

// TestAtomicPowerLossChecksummed is the same with checksums beside the data:
// nothing that is left is ever a checksum error, neither before recovery, when
// it is read through the journal, nor after it, when data and sums agree by
// themselves.
func TestAtomicPowerLossChecksummed(t *testing.T) { atomicPowerLoss(t, 400, true, false) }

func atomicPowerLoss(t *testing.T, atLeast int, summed, wide bool) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	if child.Isolate(t, child.Options{Procs: 2, Deadline: deadline(3*time.Minute, 40*time.Minute)}) {
		return
	}
	end, steps := time.Now().Add(30*time.Second), 50
	if summed || wide {
		steps = 30 // its images cost more
	}
	if fixture.Torture() {
		atLeast, end = 100*atLeast, time.Now().Add(30*time.Minute)
	}
	images, unseen := 0, 0
	for n := uint64(0); images < atLeast && time.Now().Before(end) && !t.Failed(); n++ {
		t.Run(fmt.Sprint("history", n), func(t *testing.T) {
			var h *history
			if wide {
				h = newWideHistory(t, seed+n, n%2 == 1)
			} else {
				h = newHistory(t, seed+n, n%2 == 1, summed)
			}
			h.run(steps)
			if !h.recorded() {
				unseen++
				return
			}
			k := h.lose(seed + n)
			images += k
			t.Logf("%d images, %d commits, steps %v", k, len(h.tried)-1, maps.Clone(h.steps))
		})
		if unseen > 20 {
			t.Fatal("too many histories with writes that were not recorded")
		}
	}
	t.Logf("%d images", images)
}

// lose tries every tick and says how many images that were.
func (h *history) lose(seed uint64) (images int) {
	h.t.Helper()
	p := fixture.Pager(h.t, pager.Options{Budget: 64 * frame})
	rng := rand.New(rand.NewPCG(seed, 6))
	for tick := h.tried[0].ack; tick <= h.rec.Now(); tick++ {
		for fate, survives := range []store.Survives{nil, store.Everything, store.AtRandom(seed + uint64(tick))} {
			m := h.images(tick, survives)
			twice := m.clone()
			_, err := h.judge(p, m, tick, tick%8 == 0)
			if images++; err == nil && rng.IntN(24) == 0 {
				var n int
				n, err = h.judgeAgain(p, twice, tick, rng)
				images += n
			}
			if err != nil {
				h.t.Fatalf("seed %d: power lost at tick %d of %d (%s): %v", seed, tick, h.rec.Now(), [...]string{"nothing survives", "everything survives", "some survives"}[fate], err)
			}
		}
	}
	return images
}

// deadline is short unless the long versions were asked for.
func deadline(short, long time.Duration) time.Duration {
	if fixture.Torture() {
		return long
	}
	return short
}
