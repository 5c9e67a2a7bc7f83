//go:build linux && !race && !uffdpager_invariants

package pager

import (
	"context"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// TestMissesDoNotAllocate: neither do hits. (Under the race detector a sync.Pool
// forgets things on purpose, and invariants are written down.)
func TestMissesDoNotAllocate(t *testing.T) {
	const pages = 1024
	p := newPager(t, Options{Budget: pages / 4 * FrameSize})
	r, err := p.Map(store.NewMemory(pages*FrameSize), RegionOptions{Prefetch: prefetch.None()})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8)
	rs, pins := make([]Range, 2), make([]Pin, 2)
	ways := map[string]func(off int64){
		"Acquire": func(off int64) {
			pin, err := r.Acquire(context.Background(), off, 8)
			if err != nil {
				t.Fatal(err)
			}
			pin.Release()
		},
		"Acquire of two pages": func(off int64) {
			pin, err := r.Acquire(context.Background(), min(off, (pages-2)*FrameSize), FrameSize+1)
			if err != nil {
				t.Fatal(err)
			}
			pin.Release()
		},
		"AcquireV": func(off int64) {
			for i := range rs { // far from each other
				rs[i] = Range{(off + int64(i)*pages/2*FrameSize) % (pages * FrameSize), 8}
			}
			if err := r.AcquireV(context.Background(), rs, pins); err != nil {
				t.Fatal(err)
			}
			for _, pin := range pins {
				pin.Release()
			}
		},
		"ReadAt": func(off int64) {
			if _, err := r.ReadAt(buf, off); err != nil {
				t.Fatal(err)
			}
		},
	}
	if r.Raw() == nil {
		ways["Bytes"] = func(off int64) { buf[0] = r.Bytes()[off] }
	}
	for name, touch := range ways {
		t.Run(name, func(t *testing.T) {
			next := int64(0)
			miss := func() {
				for range 16 { // round and round: four times what fits
					touch(next % pages * FrameSize)
					next += 2
					if next%pages == 0 {
						next++
					}
				}
			}
			for range 2 * pages / 16 {
				miss()
			}
			before := p.Stats().Misses
			if n := testing.AllocsPerRun(pages/16, miss); n > 1 {
				t.Errorf("%v allocations in 16 accesses", n)
			}
			if n := p.Stats().Misses - before; n < pages/2 {
				t.Errorf("%d misses of %d accesses", n, pages)
			}
		})
	}
}
