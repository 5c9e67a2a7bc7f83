package pager

import (
	"context"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// A bulk of which some is there already does not fall to pieces beside surprises:
// whatever the holes, what goes out together makes up one short read, and the next
// of it when that has come back; not a page for each page that comes back.
func TestBulkWithHolesGoesOutInOnePiece(t *testing.T) {
	const span = 8 << 20
	for _, every := range []int64{3, 1} { // one page in so many is there; 1: all but one in 40
		spy := &submissionSpy{Store: store.NewMemory(64 << 20)}
		s := store.NewFaulty(spy, store.FaultyOptions{})
		p, r := rawMap(t, Options{Budget: 128 << 20}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
		missing := int64(0)
		for page := range int64(span / FrameSize) {
			if every == 1 && page%40 == 7 || every > 1 && page%every != 0 {
				missing++
				continue
			}
			pin, err := r.Acquire(context.Background(), page*FrameSize, 1)
			if err != nil {
				t.Fatal(err)
			}
			pin.Release()
		}
		s.Hold(store.OnRead)
		defer s.Release()
		p.surprised.Store(1 << 62) // one that is never forgotten
		if err := r.Advise(0, span, WillNeed); err != nil {
			t.Fatal(err)
		}
		const most = calmBulk / FrameSize
		rounds := int64(0)
		for left := missing; left > 0; rounds++ {
			n := p.aheadPages.Load()
			if n == 0 || n > most {
				t.Fatalf("one page in %d there: %d pages are under way after %d rounds, want at most %d", every, n, rounds, most)
			}
			// All but the last come back: that is room for no read yet.
			held := s.Counts().Held
			s.Step(held - 1)
			if n := s.Counts().Held; n != 1 {
				t.Fatalf("one page in %d there: %d reads under way when all but one of %d have come back", every, n, held)
			}
			left -= n
			s.Step(1)
		}
		// At least half of a read each time, but for the last.
		if most := 2*missing/most + 2; rounds > most {
			t.Errorf("one page in %d there: %d pages in %d rounds, want at most %d", every, missing, rounds, most)
		}
		t.Logf("one page in %d there: %d pages in %d rounds", every, missing, rounds)
		s.Release()
		p.Close()
	}
}
