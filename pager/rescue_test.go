//go:build linux

package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// aRing is a ring whose completions wait or are taken as the test says.
type aRing struct{ head, tail uint32 }

func (a *aRing) ring() aio.Ring { return aio.Ring{Head: &a.head, Tail: &a.tail} }

// heldReads maps a memory store whose reads get their data and are not done,
// with a ring of the test's. The rescuer does not look by itself.
func heldReads(t *testing.T, o RegionOptions) (p *Pager, r *Region, s *store.Faulty, a *aRing) {
	t.Helper()
	m := store.NewMemory(64 * FrameSize)
	k, _ := m.Kernel()
	for i := range k.Mem {
		k.Mem[i] = byte(i/FrameSize) + 1
	}
	s = store.NewFaulty(m, store.FaultyOptions{Kernel: true})
	o.Prefetch = prefetch.None()
	p, r = rawMap(t, Options{Budget: 32 * FrameSize}, s, o)
	t.Cleanup(func() {
		s.Release()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if sp.rawErr != nil {
		t.Skip("no rescuer: ", sp.rawErr)
	}
	p.rescueNoMore()
	a = new(aRing)
	p.w.ring, p.w.inflight = a.ring(), new(uint32)
	s.HoldDone(store.OnRead)
	return p, r, s, a
}

// A page whose read nobody takes is mapped by the rescuer; who waits for it is
// told, and the read finds when it comes back that the page is not its own.
func TestRescue(t *testing.T) {
	p, r, s, a := heldReads(t, RegionOptions{})
	if r.Raw() != nil {
		t.Skip("only what the fault server can fill: ", r.Raw())
	}
	type result struct {
		pin Pin
		err error
	}
	got := make(chan result)
	go func() {
		pin, err := r.Acquire(context.Background(), 3*FrameSize, 2*FrameSize)
		got <- result{pin, err}
	}()
	eventually(t, "the read holds its data", func() bool { return s.Counts().Held == 1 })
	a.tail = 5
	p.w.look()
	if n, _ := r.Residency(3*FrameSize, 2*FrameSize); n != 0 {
		t.Fatal("rescued at the first look: it may have been done this very moment")
	}
	p.w.look()
	if n, _ := r.Residency(3*FrameSize, 2*FrameSize); n != 2*FrameSize {
		t.Fatalf("%d bytes of two pages are there after the second look", n)
	}
	res := <-got // the housekeeper has told it: the read is still held
	if res.err != nil {
		t.Fatal(res.err)
	}
	for i, b := range []byte{4, 5} {
		if page := res.pin.Bytes()[i*FrameSize:][:FrameSize]; !bytes.Equal(page, bytes.Repeat([]byte{b}, FrameSize)) {
			t.Errorf("page %d reads as % x…, want %d", 3+i, page[:4], b)
		}
	}
	st := p.Stats()
	if st.Rescued != 2 || st.Misses != 2 || st.Reads != 0 || st.Resident != 2*FrameSize || st.Pinned != 2*FrameSize {
		t.Errorf("%d rescued, %d misses, %d reads, %d resident, %d pinned", st.Rescued, st.Misses, st.Reads, st.Resident, st.Pinned)
	}
	s.Release()
	eventually(t, "the read has ended", func() bool { return p.inflight.Load() == 0 })
	res.pin.Release()
	if st := p.Stats(); st.Reads != 1 || st.Resident != 2*FrameSize || st.Pinned != 0 {
		t.Errorf("after its read: %d reads, %d resident, %d pinned", st.Reads, st.Resident, st.Pinned)
	}
	for i := range p.w.seats {
		if p.w.seats[i] != 0 {
			t.Error("a load has left its seat taken")
		}
	}
}

// Who is the first to wait for a page that was read ahead has it rescued, as one
// that was read for him.
func TestRescueOfWhatWasReadAhead(t *testing.T) {
	p, r, s, a := heldReads(t, RegionOptions{})
	if r.Raw() != nil {
		t.Skip("only what the fault server can fill: ", r.Raw())
	}
	if _, ok := r.TryAcquire(3*FrameSize, 2*FrameSize); ok {
		t.Fatal("resident before it was read")
	}
	eventually(t, "the read holds its data", func() bool { return s.Counts().Held == 1 })
	got := make(chan error, 3)
	for range cap(got) {
		go func() {
			_, err := r.ReadAt(make([]byte, 1), 4*FrameSize)
			got <- err
		}()
	}
	eventually(t, "all wait for it", func() bool { return p.Stats().Joined == int64(cap(got)) })
	if n := atomic.LoadUint64(&p.w.seatNext); n != 1 {
		t.Errorf("%d seats for one page", n)
	}
	a.tail = 5
	p.w.look()
	p.w.look()
	for i := range cap(got) {
		if i == 0 && p.Stats().Rescued != 1 {
			t.Errorf("%d pages were rescued, want 1", p.Stats().Rescued)
			s.Release()
		}
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	if n, _ := r.Residency(3*FrameSize, FrameSize); n != 0 && !t.Failed() {
		t.Error("a page was rescued that nobody waits for")
	}
	for _, seat := range p.w.seats {
		if seat != 0 {
			t.Error("who waited has left his seat taken")
		}
	}
}

// Whether anything has moved since the last look.
func TestWhatTheRescuerSees(t *testing.T) {
	p, r, _, a := heldReads(t, RegionOptions{})
	if r.Raw() != nil {
		t.Skip("there is nothing to rescue: ", r.Raw())
	}
	in := uint32(1)
	p.w.inflight = &in
	for _, c := range []struct {
		what string
		do   func()
		want int
	}{
		{"a read", func() { r.sit(0, 1, 1) }, ringBusy},
		{"the same", func() {}, ringStill},
		{"another miss", func() { r.sit(0, 2, 1) }, ringBusy},
		{"the same", func() {}, ringStill},
		{"a read that nobody waits for", func() { in++ }, ringBusy},
		{"the same", func() {}, ringStill},
		{"one was taken, another has begun", func() { a.head, a.tail = a.head+1, a.tail+1 }, ringBusy},
		{"the same", func() {}, ringStill},
		{"one is done", func() { a.tail++ }, ringWaits},
		{"and not taken", func() {}, ringWaits},
		{"but now", func() { a.head++; in-- }, ringBusy},
		{"somebody gathers", func() { p.gather.led.Store(true) }, ringWaits},
		{"and has gathered", func() { p.gather.led.Store(false); in-- }, ringIdle},
		{"one comes while nobody looks", func() { in++ }, ringBusy},
		{"and ends", func() { in-- }, ringIdle},
	} {
		c.do()
		if got := p.w.look(); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

// A read hangs: the rescuer does not look a hundred times a second whether it has
// come, and is there for the next one that needs it.
func TestTheRescuerRests(t *testing.T) {
	p, r, s, a := heldReads(t, RegionOptions{})
	if r.Raw() != nil {
		t.Skip("only what the fault server can fill: ", r.Raw())
	}
	if rescuer.timer <= 0 {
		t.Skip("the thread could not be started here")
	}
	p.w.inflight = (*uint32)(unsafe.Pointer(&p.inflight))
	p.rescueFrom()
	done := make(chan error)
	read := func(page int64) {
		held := s.Counts().Held + 1
		go func() {
			_, err := r.ReadAt(make([]byte, 1), page*FrameSize)
			done <- err
		}()
		eventually(t, "the read holds its data", func() bool { return s.Counts().Held == held })
	}
	looks, begun := atomic.LoadUint64(&rescuer.looks), time.Now()
	read(1)
	time.Sleep(500 * time.Millisecond)
	// Two looks each time: the second one is for who has come meanwhile.
	n, every := atomic.LoadUint64(&rescuer.looks)-looks, time.Since(begun)/time.Duration(rescueFirst)
	if n < 4 || n > uint64(every)/2 {
		t.Errorf("%d looks at a read that hangs, in the time of %d", n, every)
	}
	eventually(t, "the rescuer sleeps until a miss wakes it", func() bool { return atomic.LoadUint32(&rescuer.armed) == 0 })
	atomic.StoreUint32(&a.tail, 1)
	read(2)
	for range 2 {
		if !within(t, 10*time.Second, "the rescue", func() {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}) {
			s.Release()
		}
	}
	if n := p.Stats().Rescued; n != 2 {
		t.Errorf("%d pages were rescued, want 2", n)
	}
}

// A read that is kept back while others are let run is rescued as well.
func TestRescueOfGatheredReads(t *testing.T) {
	p, r, s, _ := heldReads(t, RegionOptions{})
	if r.Raw() != nil {
		t.Skip("only what the fault server can fill: ", r.Raw())
	}
	done := make(chan error)
	go func() {
		_, err := r.ReadAt(make([]byte, 1), 0)
		done <- err
	}()
	eventually(t, "the read holds its data", func() bool { return s.Counts().Held == 1 })
	p.w.look()
	for range 4 { // others, each of whom comes back
		p.gather.led.Store(true)
		p.gather.turn.Add(1)
		p.w.look()
		p.gather.led.Store(false)
	}
	if n := p.Stats().Rescued; n != 0 {
		t.Errorf("%d pages were rescued although whoever gathers comes back", n)
	}
	p.gather.led.Store(true)
	p.gather.turn.Add(1)
	p.w.look()
	p.w.look()
	p.gather.led.Store(false)
	if n := p.Stats().Rescued; n != 1 {
		t.Errorf("%d pages were rescued, want 1", n)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A store that is slow is left alone, and so is a page that only Go can fill,
// or that nobody waits for.
func TestNoRescue(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    RegionOptions
		wait bool
		look func(p *Pager, a *aRing)
	}{
		{"the ring is empty", RegionOptions{}, true, func(p *Pager, a *aRing) { p.w.look() }},
		{"completions are taken", RegionOptions{}, true, func(p *Pager, a *aRing) {
			a.head, a.tail = a.head+1, a.tail+1
			if a.head == a.tail {
				a.tail++
			}
			p.w.look()
		}},
		{"nobody waits", RegionOptions{}, false, func(p *Pager, a *aRing) { a.tail = 1; p.w.look() }},
		{"a hook", RegionOptions{Verify: func(int64, []byte) error { return nil }}, true, func(p *Pager, a *aRing) { a.tail = 1; p.w.look() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, r, s, a := heldReads(t, tt.o)
			if tt.wait {
				done := make(chan struct{})
				go func() {
					defer close(done)
					if _, err := r.ReadAt(make([]byte, 1), 0); err != nil {
						t.Error(err)
					}
				}()
				defer func() { s.Release(); <-done }()
			} else if _, ok := r.TryAcquire(0, 1); ok {
				t.Fatal("resident before it was read")
			}
			eventually(t, "the read holds its data", func() bool { return s.Counts().Held == 1 })
			for range 5 {
				tt.look(p, a)
			}
			if n, _ := r.Residency(0, FrameSize); n != 0 || p.Stats().Rescued != 0 {
				t.Errorf("%d bytes are there, %d pages were rescued", n, p.Stats().Rescued)
			}
			time.Sleep(time.Millisecond)
			if n := s.Counts().Reads; n != 1 {
				t.Errorf("read %d times", n)
			}
		})
	}
}

// The rescuer, told all the time that nobody takes completions, races with those
// who do, with eviction, writers and Close.
func TestRescueAmongAll(t *testing.T) {
	if coro.Supported() != nil {
		t.Skip("no thread without a P here")
	}
	if p, _ := rawMap(t, Options{Budget: 16 * FrameSize}, store.NewMemory(FrameSize), RegionOptions{}); p.Close() != nil || rescuer.timer <= 0 {
		t.Skip("the thread could not be started here")
	}
	rescued := int64(0)
	for round := range 4 {
		const pages = 200
		s := store.NewFaulty(store.NewMemory(pages*FrameSize), store.FaultyOptions{Kernel: true, Latency: 3 * time.Millisecond, Jitter: 6 * time.Millisecond, Seed: uint64(round)})
		p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{})
		if r.Raw() != nil {
			t.Skip("only what the fault server can fill: ", r.Raw())
		}
		p.rescueNoMore()
		a := &aRing{tail: 1}
		p.w.ring = a.ring()
		p.rescueFrom()
		var next [pages]atomic.Uint64 // what a page says is never less
		var wg sync.WaitGroup
		end := time.Now().Add(400 * time.Millisecond)
		for w := range 16 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(round), uint64(w)))
				b := make([]byte, 8)
				for time.Now().Before(end) {
					// One writer for each page, so that what it says only grows.
					page := rng.IntN(pages/16)*16 + w
					if page >= pages || rng.IntN(3) > 0 {
						page = rng.IntN(pages)
						least := next[page].Load()
						if _, err := r.ReadAt(b, int64(page)*FrameSize); err != nil {
							t.Error(err)
							return
						}
						if v := binary.NativeEndian.Uint64(b); v < least {
							t.Errorf("page %d says %d after %d", page, v, least)
						}
						continue
					}
					v := next[page].Load() + 1
					binary.NativeEndian.PutUint64(b, v)
					if _, err := r.WriteAt(b, int64(page)*FrameSize); err != nil {
						t.Error(err)
						return
					}
					next[page].Store(v)
				}
			})
		}
		wg.Wait()
		// Close comes while some are waiting.
		for w := range 16 {
			wg.Go(func() {
				for i := range 8 {
					if _, err := r.ReadAt(make([]byte, 1), int64((i*16+w)%pages)*FrameSize); err != nil && !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
				}
			})
		}
		time.Sleep(2 * time.Millisecond)
		st := p.Stats()
		if st.Resident > st.Budget || st.PeakResident > st.Budget {
			t.Errorf("%d resident (at most %d) of a budget of %d", st.Resident, st.PeakResident, st.Budget)
		}
		rescued += st.Rescued
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if load64(&p.w.free) != 64 {
			t.Errorf("%d of 64 frames are free after Close", load64(&p.w.free))
		}
	}
	if rescued == 0 {
		t.Error("nothing was rescued")
	}
	t.Logf("%d pages were rescued", rescued)
}

// The page of a parked goroutine that nobody starts the read of is loaded for
// it, once, within the budget, and only if it takes no Go code.
func TestRescueOfParked(t *testing.T) {
	p, r, s, _ := heldReads(t, RegionOptions{})
	if r.Raw() != nil {
		t.Skip("only what the fault server can fill: ", r.Raw())
	}
	addr := func(r *Region, page int64) uintptr { return r.d.base + uintptr(page*FrameSize) + 17 }
	rescueParked(addr(r, 7))
	if n, _ := r.Residency(7*FrameSize, FrameSize); n != FrameSize {
		t.Fatal("the page did not come")
	}
	eventually(t, "the policy hears of it", func() bool {
		p.lockEvict()
		defer p.evictMu.Unlock()
		return r.domain.policy.Len() == 1
	})
	rescueParked(addr(r, 7))
	if st := p.Stats(); st.Rescued != 1 || st.Misses != 1 || st.Reads != 1 || st.Resident != FrameSize || s.Counts().Reads != 0 {
		t.Errorf("%d rescued, %d misses, %d reads, %d bytes resident; the store was asked %d times", st.Rescued, st.Misses, st.Reads, st.Resident, s.Counts().Reads)
	}
	var b [1]byte
	if _, err := r.ReadAt(b[:], 7*FrameSize); err != nil || b[0] != 8 {
		t.Errorf("it reads as %d, want 8 (%v)", b[0], err)
	}
	for page := range int64(64) {
		rescueParked(addr(r, page))
	}
	// (Eviction is under way meanwhile, so that there may be more.)
	if st := p.Stats(); st.PeakResident > st.Budget-load64(&p.w.serverFrames)*FrameSize || st.Rescued < 20 {
		t.Errorf("%d rescued, %d bytes of %d were resident: the last %d frames are the fault server's", st.Rescued, st.PeakResident, st.Budget, load64(&p.w.serverFrames))
	}
	// What cannot be had is let be.
	rescueParked(addr(r, 64)) // past the end
	rescueParked(1)           // nobody's
	hooked, err := p.Map(store.NewMemory(FrameSize), RegionOptions{Verify: func(int64, []byte) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	rescueParked(addr(hooked, 0))
	if n, _ := hooked.Residency(0, FrameSize); n != 0 {
		t.Error("loaded past its hook")
	}
	gone := addr(hooked, 0)
	if err := hooked.Close(); err != nil {
		t.Fatal(err)
	}
	rescueParked(gone)
}
