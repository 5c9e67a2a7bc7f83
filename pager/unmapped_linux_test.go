package pager

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// unmappedRegion is a region of stamped pages to which nobody but ReadAt has come, for
// long enough.
func unmappedRegion(t *testing.T, pages int64, budget int64) (*Pager, *Region, []byte) {
	t.Helper()
	name, data := stampFile(t, int(pages*FrameSize))
	s, err := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	p, r := rawMap(t, Options{Budget: budget}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	if !sp.trap {
		p.Close()
		t.Skip("ReadAt pins here")
	}
	r.copies.Store(unmappedAfter)
	return p, r, data
}

func readPageOf(t *testing.T, r *Region, data []byte, page int64) {
	t.Helper()
	b := make([]byte, FrameSize)
	if _, err := r.ReadAt(b, page*FrameSize); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, data[page*FrameSize:][:FrameSize]) {
		t.Fatalf("page %d: wrong bytes", page)
	}
}

// mapped is how many pages are.
func (r *Region) mapped() (n int) {
	r.eachPage(func(_ uint64, w word) {
		if present(w) {
			n++
		}
	})
	return n
}

// Where only ReadAt comes pages are neither installed nor unmapped, are found again
// without a read, and leave like others: the budget holds, the policy keeps what is
// used.
func TestReadAtAloneNeedsNoMapping(t *testing.T) {
	const pages, frames = 2048, 256
	p, r, data := unmappedRegion(t, pages, frames*FrameSize)
	defer p.Close()
	before := bufs.kept.Load()
	for range 4 * pages {
		readPageOf(t, r, data, rand.Int64N(pages))
		if n := load64(&r.d.resident); n > frames {
			t.Fatalf("%d frames are in use, of %d", n, frames)
		}
	}
	if have, _ := r.Residency(0, r.Len()); have < frames*FrameSize/2 {
		t.Errorf("%d bytes are resident", have)
	}
	if n := r.mapped(); n > frames/16 {
		t.Errorf("%d pages are mapped", n)
	}
	st := p.Stats()
	if st.Reads > 15*pages/4 || st.Evictions < 2*pages { // one in eight is a hit
		t.Errorf("%d reads and %d pages have left, in %d", st.Reads, st.Evictions, 4*pages)
	}
	if n := bufs.kept.Load() - before; n != p.unmapped.n.Load()*FrameSize || n < frames*FrameSize/2 || n > load64(&r.d.resident)*FrameSize {
		t.Errorf("%d bytes of frames are buffers, of %d pages", n, p.unmapped.n.Load())
	}
	// What is read again and again is mapped, without another read.
	readPageOf(t, r, data, 7)
	hits := 0
	for _, w := r.d.look(7); !present(w); _, w = r.d.look(7) {
		if hits++; hits > 100*unmappedOften {
			t.Fatalf("a page that was read %d times: %#x", hits, w)
		}
		readPageOf(t, r, data, 7)
	}
	if n := p.Stats().Reads - st.Reads; n > 1 {
		t.Errorf("it took %d reads", n)
	}
}

// A region to which others come as well has its pages mapped.
func TestPagesAreMappedWhereOthersCome(t *testing.T) {
	p, r, data := unmappedRegion(t, 256, 128*FrameSize)
	defer p.Close()
	readPageOf(t, r, data, 0)
	if r.mapped() != 0 {
		t.Fatal("a page is mapped")
	}
	pin, err := r.Acquire(context.Background(), FrameSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	pin.Release()
	for page := range int64(8) {
		readPageOf(t, r, data, 8+page)
	}
	if n := r.mapped(); n != 9 {
		t.Errorf("%d of 9 pages are mapped after an Acquire", n)
	}
}

// Whoever comes to a page that is not mapped, in whichever way, finds its bytes and
// waits for no read.
func TestUnmappedPagesAreMappedForOthers(t *testing.T) {
	ctx := context.Background()
	ways := map[string]func(r *Region, off int64) []byte{
		"Acquire": func(r *Region, off int64) []byte {
			pin, err := r.Acquire(ctx, off, FrameSize)
			if err != nil {
				t.Error(err)
				return nil
			}
			defer pin.Release()
			return bytes.Clone(pin.Bytes())
		},
		"AcquireV": func(r *Region, off int64) []byte {
			var pins [2]Pin
			if err := r.AcquireV(ctx, []Range{{Off: off, Len: FrameSize}, {Off: off, Len: 1}}, pins[:]); err != nil {
				t.Error(err)
				return nil
			}
			defer pins[0].Release()
			defer pins[1].Release()
			return bytes.Clone(pins[0].Bytes())
		},
		"TryAcquire": func(r *Region, off int64) (b []byte) {
			eventually(t, "TryAcquire gets the page", func() bool {
				pin, ok := r.TryAcquire(off, FrameSize)
				if ok {
					b = bytes.Clone(pin.Bytes())
					pin.Release()
				}
				return ok
			})
			return b
		},
		"LockEventfd": func(r *Region, off int64) []byte {
			l, err := r.LockEventfd(off, FrameSize, -1)
			if err == nil {
				err = l.Wait(ctx)
			}
			if err != nil {
				t.Error(err)
				return nil
			}
			defer l.Unlock()
			return bytes.Clone(r.Bytes()[off:][:FrameSize])
		},
		"View": func(r *Region, off int64) (b []byte) {
			if err := r.View(ctx, func(mem []byte) error { b = bytes.Clone(mem[off:][:FrameSize]); return nil }); err != nil {
				t.Error(err)
			}
			return b
		},
		"Bytes": func(r *Region, off int64) []byte { return bytes.Clone(r.Bytes()[off:][:FrameSize]) },
		"ReadAt to a region": func(r *Region, off int64) []byte {
			m, err := r.p.Map(store.NewMemory(FrameSize), RegionOptions{})
			if err != nil {
				t.Error(err)
				return nil
			}
			defer m.Close()
			if _, err := r.ReadAt(m.Bytes(), off); err != nil {
				t.Error(err)
			}
			return bytes.Clone(m.Bytes())
		},
	}
	for name, get := range ways {
		t.Run(name, func(t *testing.T) {
			p, r, data := unmappedRegion(t, 64, 64*FrameSize)
			defer p.Close()
			if r.Raw() != nil && (name == "View" || name == "Bytes" || name == "ReadAt to a region") {
				t.Skip(r.Raw())
			}
			for page := range int64(4) {
				readPageOf(t, r, data, page)
			}
			before := p.Stats()
			if got := get(r, FrameSize); !bytes.Equal(got, data[FrameSize:][:FrameSize]) {
				t.Error("wrong bytes")
			}
			after := p.Stats()
			// A thread that blocks may read by itself; and a region to copy to has a page.
			if n := after.Reads - before.Reads; n > 0 && after.Faults.Blocked == before.Faults.Blocked && name != "ReadAt to a region" {
				t.Errorf("%d reads of what is in memory", n)
			}
			if n := r.mapped(); n != 1 && name != "ReadAt to a region" {
				t.Errorf("%d pages are mapped", n)
			}
		})
	}
}

// Everybody at once, and those who take frames away: bytes are right, nobody waits for
// ever, and all buffers come back.
func TestUnmappedPagesAmongOthers(t *testing.T) {
	for _, frames := range []int64{12, 64} {
		t.Run(fmt.Sprint(frames), func(t *testing.T) { unmappedAmongOthers(t, frames) })
	}
}

func unmappedAmongOthers(t *testing.T, frames int64) {
	const pages = 512
	kept := bufs.kept.Load()
	p, r, data := unmappedRegion(t, pages, frames*FrameSize)
	var stop atomic.Bool
	var wg sync.WaitGroup
	work := func(f func(page int64)) {
		wg.Go(func() {
			for !stop.Load() {
				f(rand.Int64N(pages))
			}
		})
	}
	for range 6 {
		b := make([]byte, FrameSize)
		work(func(page int64) {
			r.copies.Store(unmappedAfter)
			if rand.IntN(4) == 0 {
				page %= 8
			}
			if _, err := r.ReadAt(b, page*FrameSize); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(b, data[page*FrameSize:][:FrameSize]) {
				t.Errorf("page %d: wrong bytes", page)
			}
		})
	}
	for range 2 {
		work(func(page int64) {
			pin, err := r.Acquire(context.Background(), page*FrameSize, FrameSize)
			if err != nil {
				t.Error(err)
				return
			}
			if !bytes.Equal(pin.Bytes(), data[page*FrameSize:][:FrameSize]) {
				t.Errorf("page %d: wrong bytes in a pin", page)
			}
			pin.Release()
		})
	}
	if r.Raw() == nil {
		work(func(page int64) {
			if mem := r.Bytes()[page*FrameSize:][:FrameSize]; !bytes.Equal(mem, data[page*FrameSize:][:FrameSize]) {
				t.Errorf("page %d: wrong bytes in memory", page)
			}
		})
	}
	work(func(page int64) {
		stealOne(p.w, true, 0)
		r.Advise(page*FrameSize, FrameSize, DontNeed)
		r.Residency(0, r.Len())
		time.Sleep(time.Millisecond)
	})
	if os.Getenv("UFFDPAGER_TORTURE") != "" {
		time.Sleep(5 * time.Second)
	}
	time.Sleep(500 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if n := load64(&p.w.free); n != p.budget.Load() {
		t.Errorf("%d of %d frames are free", n, p.budget.Load())
	}
	if n := p.unmapped.n.Load(); n != 0 {
		t.Errorf("%d buffers are left", n)
	}
	for i, heads := 0, p.unmapped.chains(); i < len(heads); i++ {
		if heads[i].Load() != nil {
			t.Fatalf("a buffer is left in chain %d", i)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "nothing is counted as kept", func() bool { return bufs.kept.Load() <= kept })
}

// A page that a fault server has read itself is its own: what was kept goes when
// the policy comes to it, and no later claim of the page is mistaken for it.
func TestUnmappedPageThatWasTaken(t *testing.T) {
	p, r, data := unmappedRegion(t, 256, 64*FrameSize)
	defer p.Close()
	pin, err := r.Acquire(context.Background(), 5*FrameSize, 1) // its neighbour keeps the word where it is
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	r.copies.Store(unmappedAfter)
	readPageOf(t, r, data, 3)
	if p.unmapped.n.Load() != 1 {
		t.Fatal("the page is not kept")
	}
	pw, w := r.d.look(3)
	if !r.copyUnmapped(make([]byte, FrameSize), 0, pw, w, 3) {
		t.Error("a page that is kept is not copied from")
	}
	if !stealOne(p.w, true, 0) {
		t.Fatal("nothing is to be stolen")
	}
	// Its buffer may be anything by the time that somebody has copied who looked before.
	if r.copyUnmapped(make([]byte, FrameSize), 0, pw, w, 3) {
		t.Error("what was copied is taken for the page, which has left meanwhile")
	}
	if have, _ := r.Residency(3*FrameSize, FrameSize); have != 0 {
		t.Error("a page that was stolen is resident")
	}
	reads := p.Stats().Reads
	readPageOf(t, r, data, 3)
	if n := p.Stats().Reads - reads; n != 1 {
		t.Errorf("%d reads of a page that was stolen", n)
	}
	if pw, w := r.d.look(3); !r.copyUnmapped(make([]byte, FrameSize), 0, pw, w, 3) {
		t.Error("a page that is kept again is not copied from")
	}
	// Stolen again, and found by the policy: both that it was.
	stealOne(p.w, true, 0)
	p.unmapped.sweep(r.d, 3)
	if n := p.unmapped.n.Load(); n != 0 {
		t.Errorf("%d buffers of no page", n)
	}
	// One that is good is not swept.
	readPageOf(t, r, data, 3)
	p.unmapped.sweep(r.d, 3)
	if n := p.unmapped.n.Load(); n != 1 {
		t.Errorf("%d buffers of a page that is kept", n)
	}
	if r.Raw() == nil {
		_, w := r.d.look(3)
		if errno := serveRead(r.d, 3); errno != 0 {
			t.Fatal(errno)
		}
		if _, now := r.d.look(3); !present(now) || now>>32 == w>>32 {
			t.Fatalf("the page has not been taken over: %#x", now)
		}
		if got := unsafe.Slice((*byte)(unsafe.Add(r.base, 3*FrameSize)), FrameSize); !bytes.Equal(got, data[3*FrameSize:][:FrameSize]) {
			t.Error("wrong bytes")
		}
		p.rouse()
		eventually(t, "the buffer of a page that was taken over goes", func() bool { return p.unmapped.n.Load() == 0 })
	}
}

// A buffer that lost its memory is taken last: while others are idle nobody else loses his.
func TestBuffersWithoutMemoryAreTakenLast(t *testing.T) {
	var bp bufferPool
	var out []*buffer
	for range (bufferKeep + 3*coolBytes) / FrameSize {
		out = append(out, bp.get(FrameSize))
	}
	for _, b := range out {
		bp.put(b)
	}
	before := bp.bytes.Load()
	if before > bufferKeep+coolBytes || bp.cold[0] == nil {
		t.Fatalf("%d bytes are idle", before)
	}
	for range 1000 {
		b := bp.get(FrameSize)
		if n := bp.bytes.Load(); n != before {
			t.Fatalf("%d bytes of memory instead of %d: it had been given back", n, before)
		}
		bp.put(b)
	}
}

// Generations are used again after 2³² claims, a matter of an hour or two, and a page
// that is hit stays for longer than that: its number is another page's as well by then.
func TestUnmappedPagesWithTheSameGeneration(t *testing.T) {
	const pages = 1024 // of 64 chains or more, so that some are in that of page 3
	p, r, data := unmappedRegion(t, pages, 64*FrameSize)
	defer p.Close()
	readPageOf(t, r, data, 3)
	_, w := r.d.look(3)
	if !isMarker(w) {
		t.Fatalf("a page that ReadAt has read: %#x", w)
	}
	chain := func(page uint64) uint64 {
		return unmappedHash(pageKey(r.d, page)) & uint64(len(p.unmapped.chains())-1)
	}
	other := uint64(4)
	for chain(other) != chain(3) {
		if other++; other == pages {
			t.Fatal("no page is in the same chain")
		}
	}
	last := atomic.LoadUint32(&generation.last)
	atomic.StoreUint32(&generation.last, uint32(w>>32)-1) // as after 2³² claims
	readPageOf(t, r, data, int64(other))
	atomic.StoreUint32(&generation.last, max(last, atomic.LoadUint32(&generation.last)))
	if _, v := r.d.look(other); !isMarker(v) || (v^w)&genMask != 0 {
		t.Skipf("somebody else has claimed a page: %#x and %#x", w, v)
	}
	readPageOf(t, r, data, 3)
	readPageOf(t, r, data, int64(other))
}

// Every step along a chain is a cache miss, and pages come from a small part of all
// numbers there are.
func TestUnmappedChainsAreShort(t *testing.T) {
	for name, page := range map[string]func(i int) uint64{
		"random":  func(int) uint64 { return rand.Uint64N(1 << 20) },
		"in turn": func(i int) uint64 { return uint64(i) },
		"strided": func(i int) uint64 { return uint64(i) << 9 },
	} {
		const n = 1 << 16
		seen, chain, steps := map[uint64]bool{}, map[uint64]int{}, 0
		for i := range n {
			if p := page(i); !seen[p] {
				seen[p] = true
				h := unmappedHash(evict.Page(3<<noticePageBits|p)) % n
				chain[h]++
				steps += chain[h]
			}
		}
		if mean := float64(steps) / float64(len(seen)); mean > 1.7 { // 1.5 at random
			t.Errorf("%s: a page is found after %.2f steps", name, mean)
		}
	}
}
