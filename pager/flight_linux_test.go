package pager

import (
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// Many who miss large pages at once have no more under way, and no more buffers, than a
// part of the budget; whoever comes next goes when one has come back, and a single
// read always goes.
func TestBytesUnderWayAreBounded(t *testing.T) {
	const page, readers = MaxPageSize, 40
	s := store.NewFaulty(store.NewMemory(readers*page), store.FaultyOptions{})
	p, r := rawMap(t, Options{Budget: 64 * page}, s, RegionOptions{ReadOnly: true, PageSize: page, Prefetch: prefetch.None()})
	defer p.Close()
	defer s.Release()
	limit := p.flightLimit()
	if limit != flightLeast || limit >= readers*page/2 {
		t.Fatalf("%d bytes may be under way", limit)
	}
	before := buffersOut()
	s.HoldDone(store.OnRead)
	defer s.Release()
	var wg sync.WaitGroup
	for i := range int64(readers) {
		wg.Go(func() {
			if _, err := r.ReadAt(make([]byte, 1), i*page); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "everybody has asked", func() bool { return p.Stats().Misses == readers })
	for back := range int64(readers) {
		want := min(limit, (readers-back)*page)
		eventually(t, "as much is under way as may be", func() bool { return int64(s.Counts().Held)*page == want })
		if got, out := p.flight.Load(), buffersOut()-before; got != want || out != want {
			t.Errorf("%d have come back: %d bytes are under way, with %d bytes of buffers; want %d", back, got, out, want)
		}
		s.Step(1)
	}
	s.Release()
	if !within(t, 30*time.Second, "the reads", wg.Wait) {
		return
	}
	eventually(t, "nothing is under way", func() bool { return p.flight.Load() == 0 })

	// What is larger than may be goes when it is alone.
	l := &load{r: r, gens: make([]uint32, 2*flightMost/page)}
	if !p.takeOff(l) {
		t.Error("a read does not go although nothing is under way")
	}
	if small := (&load{r: r, gens: make([]uint32, 1)}); p.takeOff(small) {
		t.Error("another one goes beside it")
	}
	p.flight.Add(-l.bytes())
	p.inflight.Add(-1)
	if n := p.inflight.Load(); n != 0 {
		t.Errorf("%d loads are counted", n)
	}
}
