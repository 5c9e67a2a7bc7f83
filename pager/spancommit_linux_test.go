package pager

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// spans is how many spans there have been (modulo 4096).
func spans(r *Region) uint64 { return bare.Load64(&r.d.span) >> 52 }

// recovered maps what a crash leaves of a, and compares it with what was
// committed.
func recovered(t *testing.T, p *Pager, a *atomicRegion, o RegionOptions) {
	t.Helper()
	data, journal := a.crash()
	c := mapAtomic(t, p, data, journal, o)
	defer c.Close()
	if err := checkBytes(c.Region, a.committed); err != nil {
		t.Error(err)
	}
}

// scatteredRegion is an Atomic region with slots, and with these pages dirty
// once more.
func scatteredRegion(t *testing.T, o RegionOptions, dirty ...int) (*Pager, *atomicRegion) {
	t.Helper()
	p := newPager(t, Options{Budget: 256 * FrameSize})
	if sp.fd < 0 || !sp.wp {
		t.Skip("no write-protection here")
	}
	a := mapAtomic(t, p, make([]byte, 64*FrameSize), nil, o)
	change := func(b byte) {
		for _, page := range dirty {
			fill(t, a.Region, page, b+byte(page))
			copy(a.model[page*FrameSize:], slices.Repeat([]byte{b + byte(page)}, FrameSize))
		}
	}
	change(1)
	if err := a.Commit(context.Background()); err != nil { // makes the slots
		t.Fatal(err)
	}
	change(100)
	return p, a
}

// Pages of a commit that are not far from each other are protected together,
// and each gets the slot and the record that are its own.
func TestCommitProtectsScatteredPagesTogether(t *testing.T) {
	o := RegionOptions{Journal: JournalOptions{Limit: 400 * FrameSize, Interval: -1}, Writeback: Writeback{NoSteal: true}}
	p, a := scatteredRegion(t, o, 2, 3, 10, 20, 21, 22, 40, 63)
	before, writes := spans(a.Region), p.Stats().Writes
	if err := a.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	a.noteCommit()
	if n := spans(a.Region) - before; n != 1 {
		t.Errorf("%d spans, want 1", n)
	}
	if n := p.Stats().Writes - writes; n != 1 {
		t.Errorf("%d writes of images, want 1", n)
	}
	recovered(t, p, a, o)
}

// Pages that cannot be copied when it is their turn leave holes among the
// slots: theirs are free again, and what comes behind them is written by
// itself.
func TestSpanWithHoles(t *testing.T) {
	o := RegionOptions{Journal: JournalOptions{Limit: 400 * FrameSize, Interval: -1}, Writeback: Writeback{NoSteal: true}}
	p, a := scatteredRegion(t, o, 2, 3, 5, 6, 7, 9, 12)
	r := a.Region
	if err := a.atomic.checkpoint(context.Background()); err != nil { // now only what this test takes is taken
		t.Fatal(err)
	}
	free := load64(&r.d.slotsFree)
	var list []dirtyPage
	for _, page := range []uint64{2, 3, 5, 6, 7, 9, 12} {
		list = append(list, dirtyPage{r.d, page})
	}
	write := func() (got [][]uint64) {
		ws, used, none := r.gather(list, nil, true)
		if used != len(list) || none {
			t.Fatalf("%d of %d pages looked at, slots missing: %v", used, len(list), none)
		}
		for _, w := range ws {
			got = append(got, slices.Clone(w.pages))
			p.began(writeSync)
			w.why = writeSync
			w.start()
		}
		for turn := 0; r.write.inflight.Load() != 0; turn++ {
			p.reapSome(64)
			pause(turn)
		}
		slices.SortFunc(got, slices.Compare)
		return got
	}
	atomic.StoreUint64(&r.d.holdFirst, 3)
	atomic.StoreUint64(&r.d.holdEnd, 6)
	if got, want := write(), [][]uint64{{2}, {9, 12}}; !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("writes of pages %v, want %v", got, want)
	}
	if now := load64(&r.d.slotsFree); now != free-3 {
		t.Errorf("%d slots are free, %d were, and 3 images are written", now, free)
	}
	atomic.StoreUint64(&r.d.holdEnd, 0)
	if got, want := write(), [][]uint64{{3, 5, 6, 7}}; !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("writes of pages %v, want %v", got, want)
	}
	if err := a.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	a.noteCommit()
	recovered(t, p, a, o)
}
