//go:build linux

package pager

import (
	"context"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
)

// What is held for a goroutine ends by itself, also if nothing else happens any
// more and nobody asks for room.
func TestHoldsEndByThemselves(t *testing.T) {
	p, r, _ := mapMemory(t, 100, Options{Budget: 64 * FrameSize}, store.FaultyOptions{}, RegionOptions{})
	eventually(t, "the housekeeper sleeps without a clock", func() bool {
		time.Sleep(2 * tick)
		return p.idle() && bare.Load32(&p.w.sleeping) == asleep
	})
	for i := range int64(3) {
		if _, err := r.Acquire(context.Background(), i*FrameSize, FrameSize); err != nil {
			t.Fatal(err)
		}
		var pk coro.Parked
		pk.G, pk.PC = uintptr(1+i), 7
		p.addHold(r, uint64(i), pk)
	}
	eventually(t, "the pins have ended", func() bool { return p.Stats().Pinned == 0 && p.holds.n.Load() == 0 })
}
