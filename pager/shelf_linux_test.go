package pager

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// ahead16 plans the 16 pages after each miss.
var ahead16 = prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
	if e.Kind == prefetch.Miss {
		plan.Add(e.Page+1, 16)
	}
})

// shelfRegion is a region over pages that begin with their number, of which page
// 0 has been missed by ReadAt, and 1 to 16 have been read ahead.
func shelfRegion(t *testing.T) (p *Pager, r *Region, mem []byte) {
	t.Helper()
	m := store.NewMemory(256 * FrameSize)
	k, _ := m.Kernel()
	for at := 0; at < len(k.Mem); at += 8 {
		binary.LittleEndian.PutUint64(k.Mem[at:], uint64(at/FrameSize))
	}
	p, r = rawMap(t, Options{Budget: 1024 * FrameSize}, m, RegionOptions{Prefetch: ahead16})
	if !sp.trap {
		p.Close()
		t.Skip("no trap: ReadAt pins the page")
	}
	readWord(t, r, 0)
	eventually(t, "what was read ahead is there", func() bool {
		n, _ := r.Residency(0, 17*FrameSize)
		return n == 17*FrameSize && p.aheadLoads.Load() == 0
	})
	return p, r, k.Mem
}

func readWord(t *testing.T, r *Region, page int64) uint64 {
	t.Helper()
	var b [8]byte
	if _, err := r.ReadAt(b[:], page*FrameSize+8); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

// spoil makes another number of every page's on the shelf, and says how many
// pages there are.
func (p *Pager) spoil() (pages int) {
	p.shelf.mu.Lock()
	defer p.shelf.mu.Unlock()
	for _, h := range p.shelf.list {
		for i := range h.gens {
			binary.LittleEndian.PutUint64(h.buf.mem[i<<h.r.shift+8:], 1000)
		}
		pages += len(h.gens)
	}
	for _, i := range p.shelf.singles.at {
		e := p.shelf.singles.ring[i]
		binary.LittleEndian.PutUint64(e.buf.mem[e.off+8:], 1000)
		pages++
	}
	return pages
}

// Who comes to a page that was read ahead for the first time, by ReadAt, copies
// from where it was read to; the second time, and in any other way, from the page.
func TestScanByReadAtLeavesPagesUntouched(t *testing.T) {
	p, r, _ := shelfRegion(t)
	defer p.Close()
	if n := p.spoil(); n != 16 {
		t.Fatalf("%d pages are on the shelf, want 16", n)
	}
	for page := int64(1); page <= 8; page++ {
		if got := readWord(t, r, page); got != 1000 {
			t.Errorf("page %d, first time: %d, not from the buffer", page, got)
		}
		if got := readWord(t, r, page); got != uint64(page) {
			t.Errorf("page %d, second time: %d", page, got)
		}
	}
	pin, err := r.Acquire(context.Background(), 9*FrameSize, FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint64(pin.Bytes()[8:]); got != 9 {
		t.Errorf("page 9 by Acquire: %d", got)
	}
	pin.Release()
	if got := readWord(t, r, 9); got != 9 {
		t.Errorf("page 9 by ReadAt after Acquire: %d", got)
	}
	if s := p.Stats().Prefetch; s.Used != 9 {
		t.Errorf("%d pages that were read ahead count as used, want 9", s.Used)
	}
	for page := int64(10); page <= 16; page++ {
		readWord(t, r, page)
	}
	if n := p.shelf.n.Load(); n != 1 { // page 9 was not copied
		t.Errorf("%d buffers are on the shelf, want 1", n)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if n := p.shelf.n.Load(); n != 0 {
		t.Errorf("%d buffers are on the shelf of a closed region", n)
	}
}

// A page that has been stored to, or has left and come back, is not read from
// where it was read to first.
func TestTheShelfShowsNothingOld(t *testing.T) {
	p, r, mem := shelfRegion(t)
	defer p.Close()
	want := func(what string, page int64, number uint64) {
		t.Helper()
		if got := readWord(t, r, page); got != number {
			t.Errorf("%s: %d, want %d", what, got, number)
		}
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], 77)
	if _, err := r.WriteAt(b[:], 1*FrameSize+8); err != nil {
		t.Fatal(err)
	}
	want("after WriteAt", 1, 77)
	pin, err := r.AcquireWrite(context.Background(), 2*FrameSize, FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	copy(pin.Bytes()[8:], b[:])
	want("under AcquireWrite", 2, 77)
	pin.Release()
	if r.Raw() == nil {
		copy(r.Bytes()[3*FrameSize+8:], b[:])
		want("after a store", 3, 77)
		copy(r.Bytes()[4*FrameSize+8:], b[:])
		if err := r.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		want("after a store that is in the store", 4, 77)
	}
	if err := r.Discard(context.Background(), 5*FrameSize, FrameSize); err != nil {
		t.Fatal(err)
	}
	want("after Discard", 5, 0)

	// All leave, what is in the store changes, and they come again in the same way,
	// with other words than before, which another group of pages has taken.
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	for stealOne(p.w, true, 0) {
	}
	for page := 0; page < 256; page++ {
		binary.LittleEndian.PutUint64(mem[page*FrameSize+8:], 500+uint64(page))
	}
	if n, _ := r.Residency(0, 17*FrameSize); n != 0 || p.shelf.n.Load() == 0 {
		t.Fatalf("%d bytes are resident, %d buffers on the shelf", n, p.shelf.n.Load())
	}
	want("of another group", 200, 700)
	want("of the same", 40, 540)
	want("missed again", 0, 500)
	eventually(t, "what was read ahead is there again", func() bool {
		n, _ := r.Residency(0, 17*FrameSize)
		return n == 17*FrameSize && p.aheadLoads.Load() == 0
	})
	for page := int64(1); page <= 16; page++ {
		want("read ahead again", page, 500+uint64(page))
	}
}

// The shelf is small, and where Acquire comes to pages that can be stored to there is
// nothing on it.
func TestTheShelfIsSmall(t *testing.T) {
	const pages = 4096
	lent := func() int64 {
		bufs.mu.Lock()
		defer bufs.mu.Unlock()
		return bufs.bytes.Load() - bufs.idle
	}
	before := lent() // by other tests
	for _, c := range []struct {
		way      string
		readOnly bool
		budget   int64
		most     int
	}{{"ReadAt", true, 64 << 20, shelfBytes}, {"ReadAt", false, 4 << 20, 4 << 20 / shelfShare}, {"Acquire", true, 64 << 20, shelfBytes}, {"Acquire", false, 64 << 20, 0}} {
		p, r := rawMap(t, Options{Budget: c.budget}, store.NewMemory(pages*FrameSize), RegionOptions{ReadOnly: c.readOnly})
		if !sp.trap {
			p.Close()
			t.Skip("no trap: ReadAt pins the page")
		}
		peak, bytes := 0, 0
		for page := range int64(pages) {
			touchAll(t, r, c.way, []int64{page})
			p.shelf.mu.Lock()
			bytes = 0
			for _, h := range p.shelf.list {
				bytes += len(h.buf.mem)
			}
			if bytes != p.shelf.bytes || len(p.shelf.list) > shelfMost {
				t.Fatalf("%d buffers of %d bytes on the shelf, it says %d", len(p.shelf.list), bytes, p.shelf.bytes)
			}
			p.shelf.mu.Unlock()
			peak = max(peak, bytes)
		}
		if peak > c.most || (peak == 0) != (c.most == 0) {
			t.Errorf("%s, read-only: %v, budget %d: %d bytes on the shelf, want at most %d", c.way, c.readOnly, c.budget, peak, c.most)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if n := p.shelf.n.Load(); n != 0 {
			t.Errorf("%d buffers are on the shelf of a closed pager", n)
		}
	}
	if out := lent(); out > before {
		t.Errorf("%d bytes of buffers are out, and nobody is left to give them back", out-before)
	}
}

// Scans by ReadAt beside one who writes: each sees at least what had been written
// when it began to read a page.
func TestScansByReadAtBesideAWriter(t *testing.T) {
	const pages = 512
	p, r := rawMap(t, Options{Budget: 128 * FrameSize}, store.NewMemory(pages*FrameSize), RegionOptions{})
	defer p.Close()
	var written [pages]atomic.Uint64
	var stop atomic.Bool
	var all sync.WaitGroup
	all.Go(func() {
		page := make([]byte, FrameSize)
		for n := uint64(1); !stop.Load(); n++ {
			// Behind and before those who scan.
			at := int64(n * 0x9E3779B97F4A7C15 >> 32 % pages)
			binary.LittleEndian.PutUint64(page, n)
			binary.LittleEndian.PutUint64(page[FrameSize-8:], n)
			b := page
			if n%2 == 0 { // a part of it: the page is brought in
				b = page[:8]
			}
			if _, err := r.WriteAt(b, at*FrameSize); err != nil {
				t.Error(err)
				return
			}
			written[at].Store(n)
		}
	})
	var scans sync.WaitGroup
	for g := range int64(2) {
		scans.Go(func() {
			b := make([]byte, FrameSize)
			for round := range int64(20) {
				for i := range int64(pages) {
					page := (i + g*pages/2) % pages
					if round%2 == 1 {
						page = pages - 1 - page
					}
					before := written[page].Load()
					if _, err := r.ReadAt(b, page*FrameSize); err != nil {
						t.Error(err)
						return
					}
					if got := binary.LittleEndian.Uint64(b); got < before {
						t.Errorf("page %d: %d, when %d had been written", page, got, before)
						return
					}
				}
			}
		})
	}
	scans.Wait()
	stop.Store(true)
	all.Wait()
	t.Log(p.Stats().Prefetch)
	if p.Stats().Prefetch.Used == 0 {
		t.Error("nothing was read ahead")
	}
}

// Where buffers are put off the shelf before anybody has come to their pages, none is
// kept for a while; where scans come to them, all are.
func TestTheShelfRestsWhereItIsNoUse(t *testing.T) {
	const each, reads = 16, 1200
	for _, c := range []struct {
		what string
		come bool
		rest bool
	}{{"nobody comes", false, true}, {"a scan comes", true, false}} {
		p, r := rawMap(t, Options{Budget: 64 << 20}, store.NewMemory(reads*each*FrameSize), RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
		if !sp.trap {
			p.Close()
			t.Skip("no trap: ReadAt pins the page")
		}
		rested := 0
		for i := range uint64(reads) {
			l := &load{r: r, first: i * each, buf: bufs.get(each * FrameSize)}
			for range each {
				l.gens = append(l.gens, 1)
			}
			p.shelf.mu.Lock()
			rests := p.shelf.trial.rest > 0
			p.shelf.mu.Unlock()
			p.shelve(l)
			for page := l.first; c.come && page < l.first+each; page++ {
				buf, _ := p.shelf.take(r, page, 1)
				if buf == nil {
					t.Fatalf("%s: page %d is not there", c.what, page)
				}
				bufs.put(buf)
			}
			bufs.put(l.buf) // as landed does
			if rests {
				rested++
			}
		}
		if !c.rest && rested != 0 || c.rest && (rested < shelfRest/each || rested > reads-shelfTrial/each) {
			t.Errorf("%s: %d of %d buffers were not kept", c.what, rested, reads)
		}
		if n := p.shelf.n.Load(); c.come && n != 0 {
			t.Errorf("%s: %d buffers are left", c.what, n)
		}
		p.Close()
	}
}
