//go:build linux

package pager

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// TestTheCrowdIsCounted: whoever has been told of his pages is counted as
// runnable until he has run, also when he has given up; else reaping would be
// held back for ever, or never.
func TestTheCrowdIsCounted(t *testing.T) {
	name, _ := stampFile(t, 512*FrameSize)
	s, err := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range 10 {
				ctx, cancel := context.Background(), func() {}
				if i%3 == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(rnd.IntN(500))*time.Microsecond)
				}
				pin, err := r.Acquire(ctx, rnd.Int64N(512)*FrameSize, 1)
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				pin.Release()
				cancel()
			}
		})
	}
	if !within(t, 60*time.Second, "300 readers", wg.Wait) {
		return
	}
	for turn := 0; readied.runnable.Load() != 0; turn++ {
		if turn == 100 {
			t.Fatalf("%d goroutines are counted as runnable, and there are none", readied.runnable.Load())
		}
		time.Sleep(10 * time.Millisecond)
	}
}
