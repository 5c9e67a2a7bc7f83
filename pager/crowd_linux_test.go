//go:build linux

package pager

import (
	"context"
	"math/rand/v2"
	"runtime"
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

// TestParkedRunWhenTheDeviceIsDry: a reaper that has told a few lets them run before
// it tells more, parked ones too, if the device has nothing left to do; not when reads
// wait for the queue depth, and not for a while when that took long.
func TestParkedRunWhenTheDeviceIsDry(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	p, _ := rawMap(t, Options{Budget: 1 << 20}, store.NewMemory(1<<20), RegionOptions{ReadOnly: true})
	defer p.Close()
	// ran says how often of 50 times a goroutine that is ready runs in thin, when so
	// many parked ones have been resumed.
	const rounds = 50
	ran := func(parked int32) (n int) {
		for range rounds {
			done := make(chan struct{})
			go close(done)
			p.courtesy.dry.rest.Store(0)
			readied.parked.Store(parked)
			p.thin()
			select {
			case <-done:
				n++
			default:
			}
			<-done
		}
		return n
	}
	// One in 61 yields comes back at once.
	if n := ran(dryMost); n < rounds*9/10 {
		t.Errorf("with %d resumed, others ran %d of %d times", dryMost, n, rounds)
	}
	if n := readied.parked.Load(); n != 0 {
		t.Errorf("%d are still to run after that", n)
	}
	if n := ran(dryMost - 1); n != 0 {
		t.Errorf("with %d resumed, others ran %d times", dryMost-1, n)
	}
	p.queue.n.Add(1)
	if n := ran(dryMost); n != 0 {
		t.Errorf("with a read that waits for the queue depth, others ran %d times", n)
	}
	p.queue.n.Add(-1)

	p.courtesy.dry.rest.Store(2)
	for want := int32(1); want >= 0; want-- {
		readied.parked.Store(dryMost)
		p.thin()
		if n := p.courtesy.dry.rest.Load(); n != want || readied.parked.Load() != 0 {
			t.Errorf("resting it has %d left, want %d; %d to run", n, want, readied.parked.Load())
		}
	}
}
