package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// A page leaves again before the ReadAt that brought it in has run: it has its
// data all the same, for it copies from where the page was read to.
func TestReadAtCopiesFromTheReadBuffer(t *testing.T) {
	for _, pageSize := range []int{FrameSize, 4 * FrameSize} {
		const pages = 8
		m := store.NewMemory(int64(pages*pageSize) - 100)
		k, _ := m.Kernel()
		for i := range k.Mem {
			k.Mem[i] = byte(rand.Uint32())
		}
		s := store.NewFaulty(m, store.FaultyOptions{})
		p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{PageSize: pageSize, Prefetch: prefetch.None()})
		defer p.Close()
		defer s.Release()
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // the reader runs when this goroutine waits
		for page := range pages {
			for _, at := range []struct{ skip, n int }{{0, pageSize}, {0, 1}, {4095, 1}, {pageSize / 2, 77}, {pageSize - 200, 100}} {
				off := page*pageSize + at.skip
				n := min(at.n, len(k.Mem)-off)
				if n <= 0 {
					continue
				}
				s.HoldDone(store.OnRead)
				defer s.Release()
				got := make([]byte, n)
				done := make(chan error)
				go func() {
					_, err := r.ReadAt(got, int64(off))
					done <- err
				}()
				eventually(t, "the read holds its data", func() bool { return s.Counts().Held == 1 })
				before := p.Stats().Reads
				s.Step(1)
				for stealOne(p.w, true, 0) {
				}
				s.Release()
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, k.Mem[off:off+n]) {
					t.Fatalf("%d bytes at %d: wrong", n, off)
				}
				if again := p.Stats().Reads - before - 1; again != 0 {
					t.Fatalf("%d bytes at %d of a page of %d were read again %d times", n, off, pageSize, again)
				}
				for stealOne(p.w, true, 0) {
				}
			}
		}
	}
}

// Whoever is lent a buffer finds in it what was read for him, and gives it back,
// also when reads fail and when the region is closed meanwhile.
func TestLentBuffersComeBack(t *testing.T) {
	m := store.NewMemory(512 * FrameSize)
	k, _ := m.Kernel()
	for i := 0; i < len(k.Mem); i += 8 {
		binary.LittleEndian.PutUint64(k.Mem[i:], uint64(i)/FrameSize)
	}
	s := store.NewFaulty(m, store.FaultyOptions{Seed: 1, Faults: []store.Fault{{Ops: store.OnRead, Prob: 0.05, Err: unix.EIO}}})
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{Prefetch: prefetch.None()})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			b := make([]byte, FrameSize)
			for k := 0; ; k++ {
				page := rnd.Int64N(512)
				_, err := r.ReadAt(b, page*FrameSize)
				switch {
				case errors.Is(err, ErrClosed):
					return
				case err != nil:
					continue
				}
				for i := 0; i < FrameSize; i += 8 {
					if got := binary.LittleEndian.Uint64(b[i:]); got != uint64(page) {
						t.Errorf("page %d, byte %d: of page %d", page, i, got)
						return
					}
				}
			}
		})
	}
	eventually(t, "many reads", func() bool { return p.Stats().Reads > 20_000 })
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	bufs.mu.Lock()
	defer bufs.mu.Unlock()
	if out := bufs.bytes.Load() - bufs.idle; out != 0 {
		t.Errorf("%d bytes of buffers are lent out, and nobody is left to give them back", out)
	}
}

// A page is installed, leaves before its waiters are told, and is claimed by
// somebody who knows of no waiters: he is made to know of them. If it is a marker
// by then, whose read is done, it is mapped.
func TestWaitersOfAPageThatLeftAreToldByTheNext(t *testing.T) {
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, store.NewMemory(16*FrameSize), RegionOptions{Prefetch: prefetch.None()})
	defer p.Close()
	buf := bufs.get(FrameSize)
	defer bufs.put(buf)
	install := func(gen uint32) word {
		var res [1]installResult
		installGroup(r.d, 5, &gen, 1, unsafe.Pointer(&buf.mem[0]), false, &res[0])
		if res[0].code != installDone {
			t.Fatalf("not installed: %+v", res[0])
		}
		return res[0].old
	}
	claim := func(extra word) uint32 {
		_, gen, got := r.d.claim(5, extra)
		if !p.w.takeFrames(1) || got != claimed {
			t.Fatal("not claimed")
		}
		return gen
	}
	leaves := func() {
		if !stealOne(p.w, false, 0) {
			t.Fatal("it does not leave")
		}
	}
	for _, mark := range []bool{false, true} {
		if !r.enter() {
			t.Fatal("closed")
		}
		op := newOp(r)
		op.one[0] = pageRange{5, 1}
		op.ranges = op.one[:]
		op.left.Store(1)
		first := claim(flagWaited)
		p.enlist(op.waiterFor(5))
		install(first)
		leaves()
		if mark {
			second := claim(flagPrefetched | flagMark)
			p.keepMarker(r, 5, second, buf.mem[:FrameSize])
			p.settle(r, 5) // the first owner
		} else {
			second := claim(0) // as for reading ahead, or for a page that is written whole
			p.settle(r, 5)
			if old := install(second); old&flagWaited == 0 {
				t.Error("the second owner does not know that somebody waits")
			} else {
				p.settle(r, 5)
			}
		}
		select {
		case <-op.ch:
		default:
			t.Errorf("the waiter was not told (marker: %v)", mark)
			_, w := r.d.look(5)
			p.mapMarker(r, 5, uint32(w>>32))
			p.settle(r, 5)
			<-op.ch
		}
		readied.runnable.Add(-1)
		op.free()
		r.leave()
		leaves()
	}
}
