package pager

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// numbered is a store of so many pages, all words of which are the page's number.
func numbered(pages int) store.Store {
	m := store.NewMemory(int64(pages) * FrameSize)
	k, _ := m.Kernel()
	for at := 0; at < len(k.Mem); at += 8 {
		binary.LittleEndian.PutUint64(k.Mem[at:], uint64(at/FrameSize))
	}
	return m
}

// isLent: the pin's memory is not the region's.
func (p Pin) isLent() bool {
	b := p.Bytes()
	return unsafe.Pointer(&b[0]) != unsafe.Add(p.r.base, p.off)
}

// wantPin acquires n bytes at off, which must be the page's number all over.
func wantPin(t *testing.T, r *Region, off, n int64) Pin {
	t.Helper()
	pin, err := r.Acquire(context.Background(), off, n)
	if err != nil {
		t.Fatal(err)
	}
	checkPin(t, pin, n)
	return pin
}

func checkPin(t *testing.T, pin Pin, n int64) {
	t.Helper()
	b := pin.Bytes()
	if int64(len(b)) != n || int64(cap(b)) != n {
		t.Fatalf("a pin of %d bytes has %d, capacity %d", n, len(b), cap(b))
	}
	for i := int64(0); i < n; i++ {
		at := pin.off + i
		if want := byte(uint64(at/FrameSize) >> (at % 8 * 8)); b[i] != want {
			t.Fatalf("byte %d is %#x, want %#x", at, b[i], want)
		}
	}
}

// buffersOut is how many bytes of buffers are out.
func buffersOut() int64 {
	bufs.mu.Lock()
	defer bufs.mu.Unlock()
	return bufs.bytes.Load() - bufs.idle
}

// Who misses a page of a region that nobody can store to has the buffer that it was read
// to, as long as the pin is kept; the page is resident and pinned all the same. Who
// hits has the page, and so has everybody in a region that can be stored to.
func TestAMissThatPinsHasTheReadBuffer(t *testing.T) {
	for _, c := range []struct {
		what string
		o    RegionOptions
		lent bool
	}{
		{"read-only", RegionOptions{ReadOnly: true}, true},
		{"pages of 16 KiB", RegionOptions{ReadOnly: true, PageSize: loanBytes}, true},
		{"pages of 32 KiB", RegionOptions{ReadOnly: true, PageSize: 2 * loanBytes}, false},
		{"writable", RegionOptions{}, false},
		{"private", RegionOptions{Private: true}, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			if c.o.Private && !sp.wp {
				t.Skip("no write-protect faults")
			}
			m := numbered(128)
			c.o.Prefetch = prefetch.None()
			p, r := rawMap(t, Options{Budget: 1024 * FrameSize}, m, c.o)
			defer p.Close()
			out := buffersOut()
			size := int64(1) << r.shift
			for _, at := range []struct{ off, n int64 }{{0, size}, {size, 1}, {3*size - 1, 1}, {3*size + 100, size - 200}} {
				pin := wantPin(t, r, at.off, at.n)
				if pin.isLent() != c.lent {
					t.Errorf("%d bytes at %d, missed: the buffer: %v, want %v", at.n, at.off, !c.lent, c.lent)
				}
				if lent := buffersOut() > out; lent != c.lent {
					t.Errorf("%d bytes at %d: a buffer is out: %v, want %v", at.n, at.off, lent, c.lent)
				}
				again := wantPin(t, r, at.off, at.n)
				if again.isLent() {
					t.Errorf("%d bytes at %d, hit: not the page", at.n, at.off)
				}
				if r.Raw() == nil {
					checkPin(t, newPin(r, at.off, at.n, pinnedHere), at.n)
				}
				for stealOne(p.w, true, 0) {
				}
				again.Release()
				for stealOne(p.w, true, 0) {
				}
				if n, _ := r.Residency(at.off, 1); n == 0 {
					t.Errorf("the page at %d is pinned, and has left", at.off)
				}
				checkPin(t, pin, at.n)
				pin.Release()
				for stealOne(p.w, true, 0) {
				}
				if n, _ := r.Residency(at.off, 1); n != 0 {
					t.Errorf("the page at %d does not leave", at.off)
				}
				if n := buffersOut(); n != out {
					t.Errorf("%d bytes of buffers are out", n-out)
				}
			}
			pin := wantPin(t, r, 8*size-8, 16) // of two pages
			if pin.isLent() {
				t.Error("a pin of two pages is not of the region's memory")
			}
			pin.Release()
			if n := p.lent.bytes.Load(); n != 0 {
				t.Errorf("%d bytes count as lent", n)
			}
		})
	}
}

// The buffer may go to direct I/O, as pinned memory may.
func TestLentPinsAreAligned(t *testing.T) {
	m := numbered(8)
	p, r := rawMap(t, Options{Budget: 1024 * FrameSize}, m, RegionOptions{ReadOnly: true})
	defer p.Close()
	for page := range int64(8) {
		pin := wantPin(t, r, page*FrameSize, FrameSize)
		if at := uintptr(unsafe.Pointer(&pin.Bytes()[0])); at%FrameSize != 0 {
			t.Errorf("page %d at %#x", page, at)
		}
		pin.Release()
	}
}

// Who comes to a page that was read ahead has the buffer that it was read to, once.
func TestAcquireHasWhatIsOnTheShelf(t *testing.T) {
	m := numbered(256)
	p, r := rawMap(t, Options{Budget: 64 << 20}, m, RegionOptions{ReadOnly: true, Prefetch: ahead16})
	defer p.Close()
	wantPin(t, r, 0, FrameSize).Release()
	eventually(t, "what was read ahead is there", func() bool {
		n, _ := r.Residency(0, 17*FrameSize)
		return n == 17*FrameSize && p.aheadLoads.Load() == 0
	})
	var pins []Pin
	for page := int64(1); page <= 16; page++ {
		pin := wantPin(t, r, page*FrameSize, FrameSize)
		if !pin.isLent() {
			t.Errorf("page %d, first time: not the buffer", page)
		}
		again := wantPin(t, r, page*FrameSize, FrameSize)
		if again.isLent() {
			t.Errorf("page %d, second time: not the page", page)
		}
		again.Release()
		pins = append(pins, pin)
	}
	if n := p.shelf.n.Load(); n != 0 {
		t.Errorf("%d buffers are on the shelf, all of whose pages were taken", n)
	}
	for _, pin := range pins {
		checkPin(t, pin, FrameSize)
		pin.Release()
	}
	if s := p.Stats().Prefetch; s.Used != 16 {
		t.Errorf("%d pages that were read ahead count as used, want 16", s.Used)
	}
}

// AcquireV gives each pin of bytes of one page that was missed its buffer.
func TestAcquireVHasTheReadBuffers(t *testing.T) {
	s := store.NewFaulty(numbered(256), store.FaultyOptions{Seed: 1, Faults: []store.Fault{{Ops: store.OnRead, Off: 200 * FrameSize, Len: FrameSize, Err: unix.EIO}}})
	p, r := rawMap(t, Options{Budget: 16 << 20}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	out := buffersOut()
	wantPin(t, r, 3*FrameSize, 8).Release()
	rs := []Range{
		{Off: 7 * FrameSize, Len: FrameSize}, // missed
		{Off: 3 * FrameSize, Len: 10},        // a hit
		{},
		{Off: 20*FrameSize - 8, Len: 16},                     // missed, of two pages
		{Off: 7*FrameSize + 80, Len: 160},                    // the first again
		{Off: 90 * FrameSize, Len: 4 * FrameSize},            // missed, of four
		{Off: 2*FrameSize + FrameSize/2, Len: FrameSize / 2}, // missed
	}
	lent := []bool{true, false, false, false, true, false, true}
	pins := make([]Pin, len(rs))
	if err := r.AcquireV(t.Context(), rs, pins); err != nil {
		t.Fatal(err)
	}
	for i, pin := range pins {
		checkPin(t, pin, rs[i].Len)
		if rs[i].Len != 0 && pin.isLent() != lent[i] {
			t.Errorf("range %d: the buffer: %v, want %v", i, !lent[i], lent[i])
		}
	}
	for i, pin := range pins {
		for stealOne(p.w, true, 0) {
		}
		checkPin(t, pin, rs[i].Len)
		pin.Release()
	}
	if err := r.AcquireV(t.Context(), []Range{{Off: 150 * FrameSize, Len: 1}, {Off: 200 * FrameSize, Len: 1}}, pins[:2]); !errors.Is(err, unix.EIO) {
		t.Errorf("a page that cannot be read: %v", err)
	}
	if n := buffersOut(); n != out || p.lent.bytes.Load() != 0 {
		t.Errorf("%d bytes of buffers are out, %d count as lent", n-out, p.lent.bytes.Load())
	}
}

// However many pins are kept, they have few buffers; and a small part of a small budget.
func TestFewPinsAreLent(t *testing.T) {
	const pages = 1024
	for _, c := range []struct {
		budget int64
		lent   int
	}{{16 << 20, lentPinMost}, {4 << 20, 4 << 20 / lentPinShare / FrameSize}, {64 << 10, 1}, {32 << 10, 0}} {
		m := numbered(pages)
		p, r := rawMap(t, Options{Budget: c.budget}, m, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
		out := buffersOut()
		for range 2 {
			var pins []Pin
			lent := 0
			for page := int64(0); page < min(pages, c.budget/FrameSize/2); page++ {
				pin := wantPin(t, r, page*FrameSize, FrameSize)
				if pins = append(pins, pin); pin.isLent() {
					lent++
				}
			}
			if want := min(c.lent, len(pins)); lent != want {
				t.Errorf("budget %d: %d of %d pins have buffers, want %d", c.budget, lent, len(pins), want)
			}
			for _, i := range rand.Perm(len(pins)) {
				checkPin(t, pins[i], FrameSize)
				pins[i].Release()
			}
			for stealOne(p.w, true, 0) {
			}
		}
		if n := buffersOut(); n != out || p.lent.bytes.Load() != 0 {
			t.Errorf("budget %d: %d bytes of buffers are out, %d count as lent", c.budget, n-out, p.lent.bytes.Load())
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Releasing twice, and a look at what has been released, are found out, although somebody
// else has the buffer's place by then.
func TestLentPinIsReleasedOnce(t *testing.T) {
	m := numbered(8)
	p, r := rawMap(t, Options{Budget: 1024 * FrameSize}, m, RegionOptions{ReadOnly: true})
	defer p.Close()
	pin := wantPin(t, r, 0, FrameSize)
	if !pin.isLent() {
		t.Fatal("not the buffer")
	}
	pin.Release()
	other := wantPin(t, r, FrameSize, FrameSize)
	if !other.isLent() {
		t.Fatal("not the buffer")
	}
	for _, c := range []struct {
		what string
		do   func()
	}{{"released twice", func() { pin.Release() }}, {"used after Release", func() { pin.Bytes() }}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error(c.what)
				}
			}()
			c.do()
		}()
	}
	checkPin(t, other, FrameSize)
	other.Release()
}

// An AcquireV of many pages has no more buffers out than pins may have.
func TestAcquireVOfManyPagesIsLentFew(t *testing.T) {
	const pages = 4096
	p, r := rawMap(t, Options{Budget: 32 << 20, QueueDepth: 16}, numbered(2*pages), RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	out := buffersOut()
	var rs []Range
	for i := range int64(pages) {
		rs = append(rs, Range{2 * i * FrameSize, 8})
	}
	pins := make([]Pin, pages)
	if err := r.AcquireV(t.Context(), rs, pins); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last buffers are back", func() bool { return buffersOut()-out <= lentPinMost*FrameSize })
	lent := 0
	for i, pin := range pins {
		checkPin(t, pin, 8)
		if pin.isLent() {
			lent++
		}
		if i == 0 && lent == 0 {
			t.Error("the first has no buffer")
		}
		pin.Release()
	}
	if lent != lentPinMost {
		t.Errorf("%d pins have buffers, want %d", lent, lentPinMost)
	}
	if n := buffersOut(); n != out || p.lent.bytes.Load() != 0 {
		t.Errorf("%d bytes of buffers are out, %d count as lent", n-out, p.lent.bytes.Load())
	}
}

// Many who acquire, keep for a while, lose patience and meet errors, until the pager is
// closed: all see their pages, and all buffers come back.
func TestLentPinsComeBack(t *testing.T) {
	const pages = 512
	for _, procs := range []int{1, 2, 8} {
		m := numbered(pages)
		s := store.NewFaulty(m, store.FaultyOptions{Seed: 1, Faults: []store.Fault{{Ops: store.OnRead, Prob: 0.02, Err: unix.EIO}}})
		old := runtime.GOMAXPROCS(procs)
		out := buffersOut()
		p, r := rawMap(t, Options{Budget: 256 * FrameSize}, s, RegionOptions{ReadOnly: true})
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(i), 1))
				ctx := context.Background()
				for at := int64(0); ; at++ {
					if rnd.IntN(32) == 0 {
						at = rnd.Int64N(pages) // and scans from there
					}
					page := at % pages
					c, cancel := ctx, func() {}
					if rnd.IntN(4) == 0 {
						c, cancel = context.WithTimeout(ctx, time.Duration(rnd.IntN(200))*time.Microsecond)
					}
					var pin Pin
					var err error
					if at%5 != 0 {
						pin, err = r.Acquire(c, page*FrameSize, FrameSize)
					} else {
						var two [2]Pin
						other := rnd.Int64N(pages)
						err = r.AcquireV(c, []Range{{other * FrameSize, 8}, {page * FrameSize, FrameSize}}, two[:])
						if err == nil && binary.LittleEndian.Uint64(two[0].Bytes()) != uint64(other) {
							t.Errorf("page %d: wrong", other)
						}
						if pin = two[1]; err == nil {
							two[0].Release()
						}
					}
					cancel()
					switch {
					case errors.Is(err, ErrClosed):
						return
					case err != nil:
						continue
					}
					if rnd.IntN(2) == 0 {
						runtime.Gosched()
					}
					b := pin.Bytes()
					for i := 0; i < FrameSize; i += 8 {
						if got := binary.LittleEndian.Uint64(b[i:]); got != uint64(page) {
							t.Errorf("page %d, byte %d: of page %d", page, i, got)
							break
						}
					}
					pin.Release()
				}
			})
		}
		eventually(t, "many reads", func() bool { return p.Stats().Reads > 5_000 })
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		runtime.GOMAXPROCS(old)
		if n := buffersOut(); n != out || p.lent.bytes.Load() != 0 {
			t.Errorf("%d bytes of buffers are out, %d count as lent, and nobody is left to give them back", n-out, p.lent.bytes.Load())
		}
	}
}
