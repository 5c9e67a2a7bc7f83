//go:build linux

package pager

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// keptRegion is a region of four times the budget, in frames, whose pages have
// kept nearly all credits there are. Nothing is written unless it must be.
func keptRegion(t *testing.T, budget int64) (*Pager, *Region) {
	t.Helper()
	p, r := rawMap(t, Options{Budget: budget * FrameSize, StallLimit: 20 * time.Second}, store.NewMemory(4*budget*FrameSize),
		RegionOptions{Prefetch: prefetch.None(), Writeback: Writeback{Age: -1, DirtyShare: 1}})
	t.Cleanup(func() { p.Close() })
	for off := range p.pinnable.Load() - 4 {
		pin, err := r.Acquire(context.Background(), off*FrameSize, 1)
		if err != nil {
			t.Fatal(err)
		}
		pin.Release()
	}
	if kept := load64(&p.w.kept); kept < budget/2 {
		t.Fatalf("pages keep %d credits of %d", kept, p.pinnable.Load())
	}
	return p, r
}

// TestAHitChangesOneWord: pinning a resident page again and again takes no
// credit from anywhere and brings none back.
func TestAHitChangesOneWord(t *testing.T) {
	p, r := keptRegion(t, 64)
	stocks := func() (s [creditShards + 2]int64) {
		for i := range p.credits.shard {
			s[i] = p.credits.shard[i].stock.Load()
		}
		s[creditShards], s[creditShards+1] = p.credits.global.Load(), load64(&p.w.kept)
		return s
	}
	at := int64(40 * FrameSize)
	for i := range 100 {
		before := stocks()
		pin, err := r.Acquire(context.Background(), at, 1)
		if err != nil {
			t.Fatal(err)
		}
		held := stocks()
		pin.Release()
		if after := stocks(); i > 0 && (held != before || after != before) {
			t.Fatalf("hit %d: credits were %v, %v while pinned, and %v afterwards", i, before, held, after)
		}
	}
}

// TestKeptCreditsComeBack: what clean pages keep is there for whoever needs it,
// at once, and no credit is lost or made.
func TestKeptCreditsComeBack(t *testing.T) {
	ctx := context.Background()
	one := []byte{1}
	for _, c := range []struct {
		name string
		use  func(t *testing.T, p *Pager, r *Region, n int64) // n pages can be pinned or dirty
	}{
		{"pins, one by one", func(t *testing.T, p *Pager, r *Region, n int64) {
			for page := range n {
				pin, err := r.Acquire(ctx, (100+page)*FrameSize, 1)
				if err != nil {
					t.Fatal(err)
				}
				defer pin.Release()
			}
			r.ReadAt(one, 40*FrameSize)
			if _, ok := r.TryAcquire(40*FrameSize, 1); ok {
				t.Error("one more page than Pinnable was pinned")
			}
		}},
		{"one wide pin", func(t *testing.T, p *Pager, r *Region, n int64) {
			pin, err := r.Acquire(ctx, 100*FrameSize, n*FrameSize)
			if err != nil {
				t.Fatal(err)
			}
			pin.Release()
		}},
		{"WriteAt", func(t *testing.T, p *Pager, r *Region, n int64) {
			for page := range n {
				if _, err := r.WriteAt(one, page*FrameSize); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"raw stores", func(t *testing.T, p *Pager, r *Region, n int64) {
			if err := r.Raw(); err != nil {
				t.Skip(err)
			}
			for page := range n {
				r.Bytes()[page*FrameSize] = 1
			}
		}},
		{"the fault server", func(t *testing.T, p *Pager, r *Region, n int64) {
			for page := n - 4; page < n+12; page++ { // these keep none of their own
				r.ReadAt(one, page*FrameSize)
				if errno := serveWrite(r.d, uint64(page)); errno != 0 {
					t.Fatalf("page %d: errno %d", page, errno)
				}
				if left := p.credits.global.Load(); left < 0 {
					t.Fatalf("page %d: the server has used its reserve, %d, while pages keep %d", page, left, load64(&p.w.kept))
				}
			}
		}},
		{"stealing", func(t *testing.T, p *Pager, r *Region, n int64) {
			for stealOne(p.w, false, 0) {
			}
			if kept := load64(&p.w.kept); kept != 0 {
				t.Errorf("%d credits are kept by no page", kept)
			}
		}},
		{"a wide pin in line", func(t *testing.T, p *Pager, r *Region, n int64) {
			pin, err := r.Acquire(ctx, 0, 1)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			go func() {
				all, err := r.Acquire(ctx, 100*FrameSize, n*FrameSize)
				all.Release()
				done <- err
			}()
			for p.lineLen[lineCredits].Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			// However many there are: they are all for the one who waits.
			if p.easeCredits(); !r.unpinPage(uint64(pin.off >> frameShift)) {
				t.Error("a page keeps its credit while somebody waits for it")
			}
			p.giveCredits(1)
			if err := <-done; err != nil {
				t.Error(err)
			}
		}},
		{"SetBudget", func(t *testing.T, p *Pager, r *Region, n int64) {
			if err := p.SetBudget(MinBudget); err != nil {
				t.Fatal(err)
			}
		}},
		{"eviction", func(t *testing.T, p *Pager, r *Region, n int64) {
			for page := range int64(256) {
				r.ReadAt(one, page*FrameSize)
			}
		}},
		{"Advise", func(t *testing.T, p *Pager, r *Region, n int64) {
			if err := r.Advise(0, r.Len(), DontNeed); err != nil {
				t.Fatal(err)
			}
			if kept := load64(&p.w.kept); kept != 0 {
				t.Errorf("%d credits are kept by no page", kept)
			}
		}},
		{"Close", func(t *testing.T, p *Pager, r *Region, n int64) {
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if kept := load64(&p.w.kept); kept != 0 {
				t.Errorf("%d credits are kept by no page", kept)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, r := keptRegion(t, 64)
			n := p.pinnable.Load()
			within(t, 10*time.Second, c.name, func() { c.use(t, p, r, n) })
			if w := p.Stats().Writebacks; w != 0 && c.name != "SetBudget" && c.name != "Close" {
				t.Errorf("%d pages were written for credits that nobody uses", w)
			}
			creditsWhole(t, p, c.name)
		})
	}
}

// TestKeptCreditsOfTheCrowd: hits, stores, evictions, budgets and a wide pin
// that stands in line for what the others have, all at once. The wide pin must
// come through without the clock's help as often as it is tried, and no credit
// may be lost.
func TestKeptCreditsOfTheCrowd(t *testing.T) {
	p, r := keptRegion(t, 256)
	ctx := context.Background()
	var stop atomic.Bool
	var wg sync.WaitGroup
	crowd := func(fn func(rnd *rand.Rand) error) {
		wg.Go(func() {
			for rnd := rand.New(rand.NewPCG(rand.Uint64(), 1)); !stop.Load(); {
				if err := fn(rnd); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 4 {
		crowd(func(rnd *rand.Rand) error {
			pin, err := r.Acquire(ctx, rnd.Int64N(300)*FrameSize, 1)
			pin.Release()
			return err
		})
	}
	crowd(func(rnd *rand.Rand) error {
		_, err := r.WriteAt([]byte{1}, rnd.Int64N(200)*FrameSize)
		time.Sleep(100 * time.Microsecond)
		return err
	})
	crowd(func(rnd *rand.Rand) error {
		pin, err := r.AcquireWrite(ctx, rnd.Int64N(200)*FrameSize, 3*FrameSize)
		pin.Release()
		time.Sleep(100 * time.Microsecond)
		return err
	})
	crowd(func(rnd *rand.Rand) error {
		time.Sleep(5 * time.Millisecond)
		return r.Advise(rnd.Int64N(512)*FrameSize, 64*FrameSize, DontNeed)
	})
	crowd(func(rnd *rand.Rand) error {
		time.Sleep(20 * time.Millisecond)
		return p.SetBudget((200 + rnd.Int64N(57)) * FrameSize)
	})
	d := 400 * time.Millisecond
	if os.Getenv("UFFDPAGER_TORTURE") != "" {
		d = time.Minute
	}
	wide := 0
	within(t, d+60*time.Second, "a wide pin", func() {
		for end := time.Now().Add(d); time.Now().Before(end); wide++ {
			pin, err := r.Acquire(ctx, 300*FrameSize, 150*FrameSize)
			if err != nil {
				t.Error(err)
				return
			}
			pin.Release()
		}
	})
	stop.Store(true)
	within(t, 30*time.Second, "the crowd", wg.Wait)
	t.Logf("%d wide pins", wide)
	if t.Failed() {
		return
	}
	if err := p.SetBudget(256 * FrameSize); err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	creditsWhole(t, p, "after the crowd")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if kept := load64(&p.w.kept); kept != 0 {
		t.Errorf("%d credits are kept by no page", kept)
	}
}
