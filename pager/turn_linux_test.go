package pager

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// A crowd under a budget of four pages, every instruction of which needs two of
// them: each of the crowd gets through, and for each instruction that does a
// bounded number of pages is read. Without turns that were 1300 for a
// load, and 200 for a store.
func TestACrowdTakesTurns(t *testing.T) {
	const (
		pages = 100
		crowd = 24
		each  = 10
		most  = 60 // pages read for one instruction
	)
	load := func(mem []byte) { loaded.Add(binary.LittleEndian.Uint64(mem)) }
	store8 := func(mem []byte) { binary.LittleEndian.PutUint64(mem, 1) }
	for _, c := range []struct {
		name    string
		access  func(mem []byte)
		latency time.Duration // longer than what is held lasts among those who want room
	}{{"load", load, 0}, {"store", store8, 0}, {"load from afar", load, 3 * holdShort}} {
		t.Run(c.name, func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
			p, r := rawMap(t, Options{Budget: 4 * FrameSize}, store.NewFaulty(store.NewMemory(pages*FrameSize), store.FaultyOptions{Kernel: true, Latency: c.latency}), RegionOptions{Prefetch: prefetch.None()})
			defer p.Close()
			if r.Raw() != nil || p.Stats().ParkMode != coro.InPlace {
				t.Skip("nobody is parked in place")
			}
			var got atomic.Int64
			var wg sync.WaitGroup
			for w := range crowd {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(w), 7))
					for range each {
						border := (1 + rnd.Int64N(pages-2)) * FrameSize
						if err := Guard(func() error { c.access(r.Bytes()[border-4:]); return nil }); err != nil {
							t.Error(err)
						}
						got.Add(1)
					}
				})
			}
			through := make(chan struct{})
			go func() { wg.Wait(); close(through) }()
			for again := true; again; {
				select {
				case <-through:
					again = false
				case <-time.After(time.Millisecond):
					again = p.Stats().Reads < crowd*each*most
				}
			}
			n, reads := got.Load(), p.Stats().Reads
			t.Logf("%d instructions, %d pages read", n, reads)
			if n < crowd*each {
				t.Errorf("%d instructions of %d have got through, and %d pages were read", n, crowd*each, reads)
				if err := p.SetBudget(2 * pages * FrameSize); err != nil { // they all do now
					t.Error(err)
				}
				<-through
			}
		})
	}
}

var loaded atomic.Uint64
