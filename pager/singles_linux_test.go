package pager

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/uffdpager/uffdpager/prefetch"
)

// apart16 plans 16 pages after each miss, no two of which are neighbours.
var apart16 = prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
	if e.Kind == prefetch.Miss {
		for i := range int64(16) {
			plan.Add(e.Page+2+2*i, 1)
		}
	}
})

// Single pages that were read ahead are copied from where they were read to, once, by
// ReadAt; and Acquire has them from there, where nobody can store to them.
func TestSinglePagesAreOnTheShelf(t *testing.T) {
	for _, c := range []struct {
		way      string
		readOnly bool
		shelf    bool
	}{{"ReadAt", false, true}, {"ReadAt", true, true}, {"Acquire", true, true}, {"Acquire", false, false}} {
		p, r := rawMap(t, Options{Budget: 1024 * FrameSize}, numbered(256), RegionOptions{Prefetch: apart16, ReadOnly: c.readOnly})
		if !sp.trap {
			p.Close()
			t.Skip("no trap: ReadAt pins the page")
		}
		read := func(page int64) uint64 {
			if c.way == "ReadAt" {
				return readWord(t, r, page)
			}
			pin, err := r.Acquire(t.Context(), page*FrameSize, FrameSize)
			if err != nil {
				t.Fatal(err)
			}
			defer pin.Release()
			if pin.isLent() {
				return 1000
			}
			return binary.LittleEndian.Uint64(pin.Bytes()[8:])
		}
		read(0)
		eventually(t, "what was read ahead is there", func() bool {
			n, _ := r.Residency(0, 34*FrameSize)
			return n == 17*FrameSize && p.aheadLoads.Load() == 0
		})
		pages := len(p.shelf.singles.at)
		if c.way == "ReadAt" {
			pages = p.spoil()
		}
		if want := map[bool]int{true: 16}[c.shelf]; pages != want {
			t.Errorf("%v: %d pages are on the shelf, want %d", c, pages, want)
		}
		for i := range int64(16) {
			page := 2 + 2*i
			first := uint64(page)
			if c.shelf {
				first = 1000
			}
			if got := read(page); got != first {
				t.Errorf("%v: page %d, first time: %d, want %d", c, page, got, first)
			}
			if got := read(page); got != uint64(page) {
				t.Errorf("%v: page %d, second time: %d", c, page, got)
			}
		}
		if n := p.shelf.n.Load(); n != 0 {
			t.Errorf("%v: %d are left on the shelf", c, n)
		}
		p.Close()
	}
}

// Random histories of the small buffers beside a list of what was added, the oldest
// first.
func TestSinglesAgainstAModel(t *testing.T) {
	type kept struct {
		page pageOf
		gen  uint32
		off  int
		buf  *buffer
	}
	for seed := range uint64(24) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		out := buffersOut()
		regions := []*Region{{shift: frameShift}, {shift: frameShift}, {shift: frameShift + rnd.Uint32N(2)}}
		var s singles
		var model []kept
		most := FrameSize << rnd.IntN(11)
		remove := func(i int) {
			model = append(model[:i:i], model[i+1:]...)
		}
		put := func(list []*buffer, what string, want []kept) {
			t.Helper()
			if len(list) != len(want) {
				t.Fatalf("seed %d: %s: %d buffers, want %d", seed, what, len(list), len(want))
			}
			for i, buf := range list {
				if buf != want[i].buf {
					t.Fatalf("seed %d: %s: buffer %d is not that of %v", seed, what, i, want[i].page)
				}
				bufs.put(buf)
			}
		}
		for step := range 3000 {
			r := regions[rnd.IntN(len(regions))]
			size := 1 << r.shift
			switch k := rnd.IntN(100); {
			case k < 60:
				l := &load{r: r, first: rnd.Uint64N(8192)}
				for range 1 + rnd.IntN(loanBytes>>r.shift) {
					l.gens = append(l.gens, uint32(step))
				}
				l.buf = bufs.get(size * len(l.gens))
				before := s.trial.rest
				list := s.add(l, most, nil)
				if before > 0 || len(l.buf.mem) > most {
					if len(list) != 0 {
						t.Fatalf("seed %d: something went for what is not kept", seed)
					}
					bufs.put(l.buf)
					break
				}
				var gone []kept
				for i := range l.gens {
					page := pageOf{r, l.first + uint64(i)}
					for j := range model {
						if model[j].page == page {
							gone = append(gone, model[j])
							remove(j)
							break
						}
					}
					for {
						held := map[*buffer]bool{l.buf: true}
						for _, m := range model {
							held[m.buf] = true
						}
						bytes := 0
						for buf := range held {
							bytes += len(buf.mem)
						}
						if bytes <= most {
							break
						}
						gone = append(gone, model[0])
						remove(0)
					}
					model = append(model, kept{page, uint32(step), i * size, l.buf})
				}
				// (What goes because places run out is not in the model: most is too small for that.)
				if before == 0 && s.trial.rest > 0 { // and all that is left, for it was no use
					put(list[:len(gone)], "add", gone)
					for _, buf := range list[len(gone):] {
						bufs.put(buf)
					}
					if len(list) != len(gone)+len(model) {
						t.Fatalf("seed %d: %d of %d pages are given back for a rest", seed, len(list)-len(gone), len(model))
					}
					model = nil
				} else {
					put(list, "add", gone)
				}
				bufs.put(l.buf)
			case k < 98:
				page, gen := pageOf{r, rnd.Uint64N(8192)}, uint32(0)
				if len(model) > 0 && rnd.IntN(4) > 0 {
					m := model[rnd.IntN(len(model))]
					if page, gen = m.page, m.gen; rnd.IntN(8) == 0 {
						gen++
					}
				}
				buf, off := s.take(page.r, page.page, gen)
				found := -1
				for j, m := range model {
					if m.page == page && m.gen == gen {
						found = j
					}
				}
				if (buf != nil) != (found >= 0) {
					t.Fatalf("seed %d: %v of generation %d: there: %v, want %v", seed, page, gen, buf != nil, found >= 0)
				}
				if found >= 0 {
					if m := model[found]; m.buf != buf || m.off != off {
						t.Fatalf("seed %d: %v is elsewhere", seed, page)
					}
					bufs.put(buf)
					remove(found)
				}
			case k == 98 && rnd.IntN(20) == 0:
				var gone []*buffer
				want := map[*buffer]int{}
				for j := 0; j < len(model); {
					if model[j].page.r == r {
						want[model[j].buf]++
						remove(j)
						continue
					}
					j++
				}
				gone = s.drop(r)
				for _, buf := range gone {
					want[buf]--
					bufs.put(buf)
				}
				for _, n := range want {
					if n != 0 {
						t.Fatalf("seed %d: a region's buffers are not all dropped", seed)
					}
				}
			}
			if len(s.at) != len(model) {
				t.Fatalf("seed %d: %d pages, want %d", seed, len(s.at), len(model))
			}
			held, bytes := map[*buffer]bool{}, 0
			for _, m := range model {
				if !held[m.buf] {
					held[m.buf] = true
					bytes += len(m.buf.mem)
				}
			}
			if bytes != s.bytes || bytes > most {
				t.Fatalf("seed %d: %d bytes of buffers are kept, of at most %d, and it says %d", seed, bytes, most, s.bytes)
			}
		}
		for _, buf := range s.drop(nil) {
			bufs.put(buf)
		}
		if n := buffersOut(); n != out || s.bytes != 0 {
			t.Fatalf("seed %d: %d bytes of buffers are out, it says %d", seed, n-out, s.bytes)
		}
	}
}

// More places than there are, most of them empty again: the oldest go.
func TestSinglesGoRound(t *testing.T) {
	r := &Region{shift: frameShift}
	var s singles
	out := buffersOut()
	for i := range uint64(3 * singlesMost) {
		l := &load{r: r, first: i, gens: []uint32{1}, buf: bufs.get(FrameSize)}
		for _, buf := range s.add(l, singlesBytes, nil) {
			bufs.put(buf)
		}
		bufs.put(l.buf)
		if i%3 != 0 {
			buf, _ := s.take(r, i, 1)
			if buf == nil {
				t.Fatalf("page %d is not there", i)
			}
			bufs.put(buf)
		}
	}
	n := 0
	for i := range uint64(3 * singlesMost) {
		if buf, _ := s.take(r, i, 1); buf != nil {
			if bufs.put(buf); i < 2*singlesMost {
				t.Errorf("page %d is still there", i)
			}
			n++
		}
	}
	if n < singlesMost/3 {
		t.Errorf("%d pages were there, want the last %d", n, singlesMost/3)
	}
	if n := buffersOut(); n != out || s.bytes != 0 || len(s.at) != 0 {
		t.Errorf("%d bytes of buffers are out, %d count, %d pages", n-out, s.bytes, len(s.at))
	}
}
