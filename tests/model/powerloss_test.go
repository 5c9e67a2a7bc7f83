package model

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestPowerLoss writes and syncs at random over a store that logs every write
// and flush, and looks at what a loss of power at any moment would leave: of
// what Sync had acknowledged by then everything is there, or what was written
// over it later; of the rest anything may be, but nothing that was never
// written.
func TestPowerLoss(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	if child.Isolate(t, child.Options{Procs: 2, Deadline: duration(60*time.Second, 10*time.Minute)}) {
		return
	}
	n := 0
	for end := time.Now().Add(duration(3*time.Second, 5*time.Minute)); time.Now().Before(end) && !t.Failed(); n++ {
		powerLoss(t, seed+uint64(n))
	}
	t.Logf("%d histories", n)
}

// A history of versions, sector by sector.
type sectors struct {
	versions [][][]byte // of each sector, oldest first
	durable  []int      // the oldest that may still be seen
	acks     []ack
}

// ack is what was durable at a tick.
type ack struct {
	tick    int
	durable []int
}

func (s *sectors) write(off int64, b []byte) {
	for i := int64(0); i < int64(len(b)); i += store.Sector {
		k := (off + i) / store.Sector
		s.versions[k] = append(s.versions[k], slices.Clone(b[i:i+store.Sector]))
	}
}

func (s *sectors) acknowledge(tick int, off, n int64) {
	for k := off / store.Sector; k < (off+n)/store.Sector; k++ {
		s.durable[k] = len(s.versions[k]) - 1
	}
	s.acks = append(s.acks, ack{tick, slices.Clone(s.durable)})
}

// check compares an image with what may be there after a crash at that tick. A
// sector may mix versions: it may have been copied while it was being written.
func (s *sectors) check(img []byte, tick int) error {
	oldest := make([]int, len(s.versions))
	for _, a := range s.acks {
		if a.tick <= tick {
			oldest = a.durable
		}
	}
	for k, all := range s.versions {
		got := img[k*store.Sector:][:store.Sector]
		for i, b := range got {
			if !slices.ContainsFunc(all[oldest[k]:], func(v []byte) bool { return v[i] == b }) {
				return fmt.Errorf("tick %d, sector %d byte %d: %#x is in none of the %d versions from the one acknowledged (%#x) on",
					tick, k, i, b, len(all)-oldest[k], all[oldest[k]][i])
			}
		}
	}
	return nil
}

func powerLoss(t *testing.T, seed uint64) {
	g := newGenerator(seed, 0)
	const pages = 24
	const size = pages * pager.FrameSize
	rec := new(store.Recorder)
	s, err := store.NewRecording(fixture.Memory(t, size, seed), rec)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pager.New(pager.Options{Budget: int64(6+g.intn(10, "")) * pager.FrameSize})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := p.Map(s, pager.RegionOptions{Writeback: pager.Writeback{DirtyShare: 0.2, Age: time.Duration(1+g.intn(5, "")) * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	h := &sectors{versions: make([][][]byte, size/store.Sector), durable: make([]int, size/store.Sector)}
	base := make([]byte, size)
	fixture.Fill(base, 0, seed)
	h.write(0, base)
	ctx := context.Background()
	for step := range 30 + g.intn(60, "") {
		off := int64(g.intn(size/store.Sector, "")) * store.Sector
		n := min(int64(1+g.intn(16, ""))*store.Sector, size-off)
		b := make([]byte, n)
		fixture.Fill(b, int64(step)*8, seed^uint64(step)<<32)
		switch g.intn(8, "") {
		case 0:
			err = r.Sync(ctx)
			h.acknowledge(rec.Now(), 0, size)
		case 1:
			err = r.SyncRange(ctx, off, n)
			h.acknowledge(rec.Now(), off, n)
		case 2:
			var pin pager.Pin
			if pin, err = r.AcquireWrite(ctx, off, n); err == nil {
				h.write(off, b)
				copy(pin.Bytes(), b)
				pin.Release()
			}
		case 3:
			off -= off % pager.FrameSize
			n = pager.FrameSize
			h.write(off, make([]byte, n))
			err = r.Discard(ctx, off, n)
		case 4:
			_, err = r.ReadAt(b, off)
		default:
			h.write(off, b)
			_, err = r.WriteAt(b, off)
		}
		if err != nil {
			t.Fatalf("seed %d step %d: %v", seed, step, err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatalf("seed %d: Close: %v", seed, err)
	}
	h.acknowledge(rec.Now(), 0, size)
	last := rec.Now()
	for i := range 60 {
		tick := g.intn(last+1, "")
		survives := store.AtRandom(seed + uint64(i))
		switch {
		case i == 0:
			tick, survives = last, nil
		case i%5 == 0:
			survives = nil // nothing that is not durable
		case i%5 == 1:
			survives = store.Everything
		}
		if err := h.check(s.Image(tick, survives), tick); err != nil {
			t.Fatalf("seed %d, image %d of a crash at tick %d of %d: %v", seed, i, tick, last, err)
		}
	}
}
