package counters

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const page = pager.FrameSize

// cases are budgets and region sizes in pages.
var cases = []struct{ budget, pages int64 }{{2048, 4096}, {4, 100}, {5, 100}, {64, 1000}}

// exact makes a pager and a region whose counters can be foretold.
func exact(t *testing.T, s store.Store, budget int64) (*pager.Pager, *pager.Region) {
	t.Helper()
	p := fixture.Pager(t, pager.Options{Budget: budget * page, EvictBatch: 1})
	return p, fixture.Map(t, p, s, pager.RegionOptions{
		Prefetch: prefetch.None(), Evict: evict.NewFIFO(),
		Writeback: pager.Writeback{Age: -1, DirtyShare: 1},
	})
}

// ways are the ways to read one page; mem is all of the region.
var ways = []struct {
	name string
	read func(r *pager.Region, off int64, buf []byte) error
}{
	{"Bytes", func(r *pager.Region, off int64, buf []byte) error {
		buf[0] = r.Bytes()[off]
		copy(buf, r.Bytes()[off:off+page])
		return nil
	}},
	{"View", func(r *pager.Region, off int64, buf []byte) error {
		return r.View(context.Background(), func(mem []byte) error {
			copy(buf, mem[off:off+page])
			return nil
		})
	}},
	{"ReadAt", func(r *pager.Region, off int64, buf []byte) error {
		_, err := r.ReadAt(buf, off)
		return err
	}},
	{"Acquire", func(r *pager.Region, off int64, buf []byte) error {
		pin, err := r.Acquire(context.Background(), off, page)
		if err != nil {
			return err
		}
		defer pin.Release()
		copy(buf, pin.Bytes())
		return nil
	}},
	{"LockEventfd", func(r *pager.Region, off int64, buf []byte) error {
		l, err := r.LockEventfd(off, page, -1)
		if err != nil {
			return err
		}
		defer l.Unlock()
		if err := l.Wait(context.Background()); err != nil {
			return err
		}
		copy(buf, r.Bytes()[off:off+page])
		return nil
	}},
}

// TestTwiceInOrder touches twice as many pages as fit twice, in order: a FIFO
// has always just lost the page that comes, so every touch is a miss.
func TestTwiceInOrder(t *testing.T) {
	for _, c := range cases {
		for _, way := range ways {
			t.Run(fmt.Sprintf("%d_of_%d/%s", c.budget, c.pages, way.name), func(t *testing.T) {
				if child.Isolate(t, child.Options{}) {
					return
				}
				s := store.NewFaulty(fixture.Memory(t, c.pages*page, 1), store.FaultyOptions{Kernel: true})
				p, r := exact(t, s, c.budget)
				fixture.NeedRaw(t, r)
				buf := make([]byte, page)
				for round := range int64(2) {
					for i := range c.pages {
						if err := way.read(r, i*page, buf); err != nil {
							t.Fatal(err)
						}
						if err := fixture.Check(buf, i*page, 1); err != nil {
							t.Fatal(err)
						}
						if s := p.Stats(); s.Resident > s.Budget {
							t.Fatalf("round %d page %d: %d bytes resident in %d", round, i, s.Resident, s.Budget)
						}
					}
				}
				wantReads(t, p.Stats(), 2*c.pages, c.budget)
				// What comes through the store is counted there as well; the
				// fault server reads past it.
				if n := s.Counts().Reads; n > 2*c.pages || way.name != "Bytes" && way.name != "View" && n != 2*c.pages {
					t.Errorf("the store saw %d reads, want %d", n, 2*c.pages)
				}
			})
		}
	}
}

// wantReads checks the counters after n misses in order under a FIFO.
func wantReads(t *testing.T, s pager.Stats, n, budget int64) {
	t.Helper()
	if s.Misses != n || s.Reads != n || s.ReadBytes != n*page || s.Joined != 0 {
		t.Errorf("%d misses, %d reads of %d bytes, %d joined; want %d, %d, %d, 0", s.Misses, s.Reads, s.ReadBytes, s.Joined, n, n, n*page)
	}
	if s.Resident > budget*page || s.Resident%page != 0 {
		t.Errorf("%d bytes resident, budget %d", s.Resident, budget*page)
	}
	if want := n - s.Resident/page; s.Evictions != want {
		t.Errorf("%d evictions, want %d: %d pages came and %d are resident", s.Evictions, want, n, s.Resident/page)
	}
	// The budget is used: no more than a small part of it lies idle.
	if reserve := budget*page - s.Resident; reserve > reserveOf(budget)*page {
		t.Errorf("%d bytes resident of a budget of %d: more than the reserve of %d pages is idle", s.Resident, budget*page, reserveOf(budget))
	}
	if s.Prefetch.Issued != 0 {
		t.Errorf("%d pages prefetched by a region that must not", s.Prefetch.Issued)
	}
	if t.Failed() {
		t.Logf("%v", s)
	}
}

// reserveOf is how many frames of a budget the fault server may keep free, in
// pages.
func reserveOf(budget int64) int64 { return min(max(budget/4, 1), 16) }

// TestWriteAllThenRead writes twice as many whole pages as fit, which reads
// nothing, and reads them back.
func TestWriteAllThenRead(t *testing.T) {
	fixture.NeedWrite(t)
	for _, c := range cases {
		t.Run(fmt.Sprintf("%d_of_%d", c.budget, c.pages), func(t *testing.T) {
			if child.Isolate(t, child.Options{}) {
				return
			}
			s := store.NewFaulty(store.NewMemory(c.pages*page), store.FaultyOptions{Check: true})
			p, r := exact(t, s, c.budget)
			buf := make([]byte, page)
			for i := range c.pages {
				fixture.Fill(buf, i*page, 2)
				if _, err := r.WriteAt(buf, i*page); err != nil {
					t.Fatal(err)
				}
			}
			if s := p.Stats(); s.Reads != 0 || s.ReadBytes != 0 {
				t.Errorf("%d reads to overwrite whole pages", s.Reads)
			}
			if err := r.Sync(context.Background()); err != nil {
				t.Fatal(err)
			}
			if s := p.Stats(); s.Writebacks != c.pages || s.WrittenBytes != c.pages*page || s.Dirty != 0 {
				t.Errorf("%d pages written in %d bytes, %d bytes dirty; want %d, %d, 0", s.Writebacks, s.WrittenBytes, s.Dirty, c.pages, c.pages*page)
			}
			got := make([]byte, page)
			for i := range c.pages {
				fixture.Fill(buf, i*page, 2)
				if _, err := r.ReadAt(got, i*page); err != nil {
					t.Fatal(err)
				}
				if err := fixture.Compare(got, buf, i*page); err != nil {
					t.Fatal(err)
				}
			}
			st := p.Stats()
			if st.Reads != c.pages || st.Misses != c.pages {
				t.Errorf("%d reads, %d misses to verify; want %d", st.Reads, st.Misses, c.pages)
			}
			if st.Writebacks != c.pages {
				t.Errorf("%d writebacks after reading, want %d", st.Writebacks, c.pages)
			}
			if want := 2*c.pages - st.Resident/page; st.Evictions != want {
				t.Errorf("%d evictions, want %d: %d pages came and %d are resident", st.Evictions, want, 2*c.pages, st.Resident/page)
			}
			if n := s.Counts(); n.Overlaps != 0 || n.Changed != 0 {
				t.Errorf("%d writes overlapped, %d changed under way", n.Overlaps, n.Changed)
			}
		})
	}
}

// TestBytesReadsOnlyWhatIsTouched: one byte costs one page, and asking for the
// slice costs none.
func TestBytesReadsOnlyWhatIsTouched(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	p, r := exact(t, fixture.Memory(t, 512*page, 1), 600)
	fixture.NeedRaw(t, r)
	mem := r.Bytes()
	if s := p.Stats(); s.Reads != 0 || s.Resident != 0 {
		t.Fatalf("Bytes read %d times, %d bytes resident", s.Reads, s.Resident)
	}
	for n, i := range []int64{0, 511, 7, 300} {
		if got, want := mem[i*page+13], fixture.Byte(i*page+13, 1); got != want {
			t.Fatalf("page %d: %#x, want %#x", i, got, want)
		}
		if s := p.Stats(); s.Reads != int64(n+1) || s.Resident != int64(n+1)*page {
			t.Fatalf("after %d touches: %d reads, %d bytes resident", n+1, s.Reads, s.Resident)
		}
		if resident, _ := r.Residency(i*page, page); resident != page {
			t.Fatalf("page %d: %d bytes resident", i, resident)
		}
	}
}

// TestAcquireDoesNotCopy: a pin shows the region's own memory.
func TestAcquireDoesNotCopy(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	p, r := exact(t, fixture.Memory(t, 64*page, 1), 64)
	fixture.NeedRaw(t, r)
	mem := r.Bytes()
	for _, g := range []pager.Range{{Off: 0, Len: 1}, {Off: 5000, Len: 3 * page}, {Off: 64*page - 9, Len: 9}} {
		pin, err := r.Acquire(context.Background(), g.Off, g.Len)
		if err != nil {
			t.Fatal(err)
		}
		b := pin.Bytes()
		if int64(len(b)) != g.Len || len(b) != cap(b) || &b[0] != &mem[g.Off] {
			t.Errorf("%v: %d bytes at %p, want them at %p", g, len(b), &b[0], &mem[g.Off])
		}
		want := bytes.Clone(b)
		pin.Release()
		before := p.Stats().Reads
		if !bytes.Equal(mem[g.Off:g.Off+g.Len], want) || p.Stats().Reads != before {
			t.Errorf("%v: Release took the page away", g)
		}
	}
}

// TestHitsCostNothing: what is resident is neither read nor counted again.
func TestHitsCostNothing(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	p, r := exact(t, fixture.Memory(t, 64*page, 1), 128)
	fixture.NeedRaw(t, r)
	buf := make([]byte, page)
	for _, way := range ways {
		for i := range int64(64) {
			if err := way.read(r, i*page, buf); err != nil {
				t.Fatal(err)
			}
		}
		if s := p.Stats(); s.Misses != 64 || s.Reads != 64 || s.Evictions != 0 {
			t.Fatalf("after %s: %d misses, %d reads, %d evictions", way.name, s.Misses, s.Reads, s.Evictions)
		}
	}
	pins, ranges := make([]pager.Pin, 2), []pager.Range{{Off: 0, Len: 8}, {Off: 9 * page, Len: 8}}
	ctx := context.Background()
	for what, hit := range map[string]func(){
		"Acquire": func() {
			pin, err := r.Acquire(ctx, 5*page, page)
			if err != nil {
				t.Fatal(err)
			}
			pin.Release()
		},
		"ReadAt": func() {
			if _, err := r.ReadAt(buf, 6*page+5); err != nil {
				t.Fatal(err)
			}
		},
		"TryAcquire": func() {
			pin, ok := r.TryAcquire(7*page, page)
			if !ok {
				t.Fatal("TryAcquire of a resident page says no")
			}
			pin.Release()
		},
		"AcquireV": func() {
			if err := r.AcquireV(ctx, ranges, pins); err != nil {
				t.Fatal(err)
			}
			pins[0].Release()
			pins[1].Release()
		},
		"View": func() {
			if err := r.View(ctx, func(mem []byte) error { buf[0] = mem[8*page]; return nil }); err != nil {
				t.Fatal(err)
			}
		},
		"Prefetch": func() { r.Prefetch(offs[:], 1) },
	} {
		if n := testing.AllocsPerRun(100, hit); n != 0 {
			t.Errorf("%s: %v allocations per hit", what, n)
		}
	}
}

var offs = [...]int64{0, 9 * page, 20 * page}
