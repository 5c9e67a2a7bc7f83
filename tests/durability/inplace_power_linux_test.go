package durability

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// deaf is a store that says it has flushed and has not.
type deaf struct{ store.Store }

func (d deaf) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		if op.Code == aio.Flush {
			op.N, op.Err = 0, nil
			op.Done(op)
			continue
		}
		d.Store.Start(e, []*aio.Op{op})
	}
}

// ack is what a Sync has acknowledged, and when.
type ack struct {
	tick int
	w    int
	want [pages]uint64
}

// powerRun runs writers over a recording store and checks images of it. It
// returns how many images were looked at.
func powerRun(t *testing.T, seed uint64, steps, randoms int, wrap func(store.Store) store.Store) (images int, err error) {
	t.Helper()
	var rec store.Recorder
	recording, err := store.NewRecording(store.NewMemory(pages*page), &rec)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pager.New(pager.Options{Budget: 24 * page})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// Faulty has no kernel form here: what is written through that is not
	// recorded. Its latency keeps several writes in flight.
	r, err := p.Map(store.NewFaulty(wrap(recording), store.FaultyOptions{Seed: seed, Jitter: 200 * time.Microsecond}),
		pager.RegionOptions{Writeback: pager.Writeback{Age: time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var acks []ack
	var failed error
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			var have [pages]uint64
			for range steps {
				var err error
				for range 1 + rnd.IntN(6) {
					pg := rnd.IntN(pages)
					have[pg]++
					err = errors.Join(err, write(r, rnd, pg, w, have[pg]))
				}
				if rnd.IntN(3) > 0 {
					err = errors.Join(err, sync1(r, rnd))
					mu.Lock()
					acks = append(acks, ack{rec.Now(), w, have})
					mu.Unlock()
				}
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	now := rec.Now()
	for tick := 0; tick <= now; tick++ {
		var want counts
		for _, a := range acks {
			if a.tick <= tick {
				for pg, n := range a.want {
					want[a.w][pg] = max(want[a.w][pg], n)
				}
			}
		}
		for k := range 2 + randoms {
			survives := store.AtRandom(seed<<32 | uint64(tick)<<8 | uint64(k))
			switch k {
			case 0:
				survives = nil
			case 1:
				survives = store.Everything
			}
			images++
			if err := compare(recording.Image(tick, survives), &want); err != nil {
				return images, err
			}
		}
	}
	return images, nil
}

// TestInPlacePowerLoss: whatever moment the power goes, and whatever becomes of
// the writes that no flush has covered – none of them, all, some, parts of some
// – what Sync has acknowledged is there.
func TestInPlacePowerLoss(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	runs, steps, randoms := 1, 25, 4
	if fixture.Torture() {
		runs, steps, randoms = 40, 60, 20
	}
	total := 0
	for i := range uint64(runs) {
		n, err := powerRun(t, seed+i, steps, randoms, func(s store.Store) store.Store { return s })
		total += n
		if err != nil {
			t.Fatalf("seed %d, image %d: %v", seed+i, n, err)
		}
	}
	t.Logf("%d images", total)
}

// TestInPlacePowerLossWithoutFlush: a Sync that does not flush is caught.
func TestInPlacePowerLossWithoutFlush(t *testing.T) {
	fixture.NeedWrite(t)
	n, err := powerRun(t, 1, 10, 1, func(s store.Store) store.Store { return deaf{s} })
	if err == nil {
		t.Errorf("%d images, and nobody noticed", n)
	}
	t.Logf("caught at image %d: %v", n, err)
}
