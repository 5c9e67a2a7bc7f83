//go:build linux

package pager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

var _ = fmt.Sprint
var _ = rand.IntN
var raceSink atomic.Int32

func within(t *testing.T, d time.Duration, what string, fn func()) bool {
	t.Helper()
	c := make(chan struct{})
	go func() {
		defer close(c) // fn may skip or fail the test, which ends this goroutine
		fn()
	}()
	select {
	case <-c:
		return true
	case <-time.After(d):
		t.Errorf("%s: not done after %v", what, d)
		return false
	}
}

func rawMap(t *testing.T, po Options, s store.Store, ro RegionOptions) (*Pager, *Region) {
	t.Helper()
	if ro.Private {
		needProtection(t)
	}
	p, err := New(po)
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Map(s, ro)
	if err != nil {
		t.Fatal(err)
	}
	return p, r
}

// What is written to pinned memory while Close waits for the pin is in the store.
func TestCloseKeepsWhatWasWrittenUnderAPin(t *testing.T) {
	name, _ := stampFile(t, 16*FrameSize)
	s, err := store.OpenFile(name, store.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{})
	defer p.Close()
	pin, err := r.AcquireWrite(context.Background(), 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- r.Close() }()
	time.Sleep(100 * time.Millisecond)
	copy(pin.Bytes(), "written!")
	pin.Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(name)
	if !bytes.HasPrefix(b, []byte("written!")) {
		t.Errorf("Close returned nil, the file has %q", b[:8])
	}
}

// Readers and writers of several pages get through over a store whose transfers end before
// Start returns.
func TestLineOverMemoryStore(t *testing.T) {
	p, r := rawMap(t, Options{Budget: 32 * FrameSize, StallLimit: 200 * time.Millisecond}, store.NewMemory(512*FrameSize), RegionOptions{Prefetch: prefetch.None()})
	if !within(t, time.Minute, "readers and writers", func() {
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(g), 7))
				buf := make([]byte, 3*FrameSize)
				for range 2000 {
					off := rnd.Int64N(500) * FrameSize
					if rnd.IntN(2) == 0 {
						r.WriteAt(buf[:100], off+5)
					} else if pin, err := r.Acquire(context.Background(), off, 3*FrameSize); err == nil {
						pin.Release()
					}
				}
			})
		}
		wg.Wait()
	}) {
		return
	}
	p.Close()
}

// Who wants more than pins leave is told after StallLimit, also if the housekeeper has gone
// to sleep meanwhile.
func TestStallLimit(t *testing.T) {
	name, _ := stampFile(t, 256*FrameSize)
	s, _ := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	p, r := rawMap(t, Options{Budget: 64 * FrameSize, StallLimit: 100 * time.Millisecond}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	n := p.Stats().Pinnable
	a, err := r.Acquire(context.Background(), 0, n-FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // the housekeeper goes to sleep
	within(t, 5*time.Second, "Acquire beyond Pinnable", func() {
		if _, err := r.Acquire(context.Background(), 200*FrameSize, 2*FrameSize); !errors.Is(err, ErrBudget) {
			t.Error(err)
		}
	})
	a.Release()
}

// Reads, which need frames only, pass one who waits for credits.
func TestReadsPassAWaiterForCredits(t *testing.T) {
	name, _ := stampFile(t, 256*FrameSize)
	s, _ := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	p, r := rawMap(t, Options{Budget: 64 * FrameSize, StallLimit: 100 * time.Millisecond}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	n := p.Stats().Pinnable
	ctx := context.Background()
	a, err := r.Acquire(ctx, 0, n-2*FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	h, _ := r.Acquire(ctx, 250*FrameSize, 1)
	h.Release()
	var stop atomic.Bool
	go func() { // somebody's hits
		for !stop.Load() {
			if pin, ok := r.TryAcquire(250*FrameSize, 1); ok {
				pin.Release()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	go r.Acquire(ctx, 200*FrameSize, 8*FrameSize)
	time.Sleep(50 * time.Millisecond)
	within(t, 5*time.Second, "ReadAt of absent pages", func() {
		var b [10]byte
		for i := range 5 {
			r.ReadAt(b[:], int64(220+i)*FrameSize)
		}
	})
	stop.Store(true)
}

// A store that waits for a credit goes on when pins are released.
func TestParkedWriterGoesOnWhenPinsAreReleased(t *testing.T) {
	name, _ := stampFile(t, 256*FrameSize)
	s, _ := store.OpenFile(name, store.FileOptions{})
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{Prefetch: prefetch.None()})
	t.Log(p.Stats().Park)
	needRaw(t, r)
	ctx := context.Background()
	m := r.Bytes()
	sink += m[200*FrameSize]
	n := p.Stats().Pinnable
	var pins []Pin
	for i := int64(0); i < n/FrameSize; i++ {
		pin, err := r.Acquire(ctx, i*FrameSize, 1)
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, pin)
	}
	sink += m[200*FrameSize]
	c := make(chan struct{})
	go func() { m[200*FrameSize] = 1; close(c) }()
	time.Sleep(200 * time.Millisecond)
	select {
	case <-c:
		t.Log("did not have to wait")
	default:
	}
	for _, pin := range pins {
		pin.Release()
	}
	within(t, 5*time.Second, "store after all pins are gone", func() { <-c })
}

// A private region may grow beyond its file.
func TestPrivateGrows(t *testing.T) {
	name, _ := stampFile(t, 16*FrameSize)
	s, _ := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	p, r := rawMap(t, Options{Budget: 32 * FrameSize}, s, RegionOptions{Private: true, MaxSize: 512 * FrameSize, Prefetch: prefetch.None()})
	defer p.Close()
	if err := r.Resize(context.Background(), 512*FrameSize); err != nil {
		t.Fatal(err)
	}
	for i := int64(200); i < 300; i++ {
		if _, err := r.WriteAt([]byte("x"), i*FrameSize); err != nil {
			t.Fatal(err)
		}
	}
	var b [10]byte
	for i := int64(20); i < 200; i++ {
		if _, err := r.ReadAt(b[:], i*FrameSize); err != nil {
			t.Fatalf("page %d: %v", i, err)
		}
	}
}

// slowStore delays reads until told.
type slowStore struct {
	store.Store
	hold  atomic.Bool
	mu    sync.Mutex
	later []func()
	what  aio.Code
	park  atomic.Int32
}

func (s *slowStore) Kernel() (store.Kernel, bool) { return store.Kernel{FD: -1}, false }
func (s *slowStore) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		if s.hold.Load() && op.Code == s.what {
			done := op.Done
			op := op
			op.Done = func(o *aio.Op) {
				s.mu.Lock()
				s.later = append(s.later, func() { o.Done = done; done(o) })
				s.mu.Unlock()
				s.park.Add(1)
			}
		}
		s.Store.Start(e, []*aio.Op{op})
	}
}
func (s *slowStore) let() {
	s.hold.Store(false)
	s.mu.Lock()
	l := s.later
	s.later = nil
	s.mu.Unlock()
	for _, f := range l {
		f()
	}
}

// 58.3
func TestReadUnderWayWhileTheRegionGrows(t *testing.T) {
	s := &slowStore{Store: store.NewMemory(100), what: aio.Read}
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{MaxSize: 64 * FrameSize, Prefetch: prefetch.None()})
	defer p.Close()
	s.hold.Store(true)
	c := make(chan error, 1)
	go func() { var b [10]byte; _, err := r.ReadAt(b[:], 0); c <- err }()
	for s.park.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := r.Resize(context.Background(), 32*FrameSize); err != nil {
		t.Fatal(err)
	}
	if _, err := r.WriteAt(make([]byte, FrameSize), 10*FrameSize); err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.let()
	if err := <-c; err != nil {
		t.Error(err)
	}
}

// 58.1
type slowWrite struct {
	store.Store
	gate chan struct{}
	on   atomic.Bool
	n    atomic.Int32
}

func (s *slowWrite) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		if s.on.Load() && op.Code == aio.Write {
			s.n.Add(1)
			size := s.Store.Size()
			go func() { // submitted with this size, lands later
				<-s.gate
				if s.Store.Size() < size {
					s.Store.Truncate(size) // what a late direct write past the cut does to a file
				}
				s.Store.Start(e, []*aio.Op{op})
			}()
			continue
		}
		s.Store.Start(e, []*aio.Op{op})
	}
}

func TestShrinkWaitsForTheWriteOfTheTail(t *testing.T) {
	s := &slowWrite{Store: store.NewMemory(8000), gate: make(chan struct{})}
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{Prefetch: prefetch.None()})
	defer p.Close()
	b := bytes.Repeat([]byte{0xee}, 3000)
	if _, err := r.WriteAt(b, 4500); err != nil {
		t.Fatal(err)
	}
	s.on.Store(true)
	go r.Sync(context.Background())
	for s.n.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	c := make(chan error, 1)
	go func() { c <- r.Resize(context.Background(), 5000) }()
	select {
	case err := <-c:
		t.Errorf("Resize returned (%v) while a write of the tail page is under way", err)
		s.on.Store(false)
		close(s.gate)
		time.Sleep(50 * time.Millisecond)
		t.Logf("the store's size is now %d, stored %d", s.Store.Size(), r.d.stored)
	case <-time.After(500 * time.Millisecond):
		s.on.Store(false)
		close(s.gate)
		if err := <-c; err != nil {
			t.Fatal(err)
		}
	}
}

// 57.1: the fault server's write, in slow motion.
func TestSyncOfAPageTheServerWrites(t *testing.T) {
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, store.NewMemory(16*FrameSize), RegionOptions{Prefetch: prefetch.None()})
	if _, err := r.WriteAt([]byte("a"), 0); err != nil {
		t.Fatal(err)
	}
	buf := bufs.get(FrameSize)
	defer bufs.put(buf)
	if copyOut(r.d, 0, 1, ptrOf(buf)) != 1 {
		t.Fatal("not dirty")
	}
	if _, err := r.WriteAt([]byte("b"), 0); err != nil { // redirtied
		t.Fatal(err)
	}
	op, err := r.SyncEventfd(0, r.Len(), -1)
	if err != nil {
		t.Fatal(err)
	}
	if clean, _ := endWrite(r.d, 0, true); clean {
		t.Fatal("clean")
	}
	p.w.notify(noticeWritten, r.d.index, 0, true)
	within(t, 3*time.Second, "Sync", func() { op.Wait(context.Background()) })
}

// 5A
func TestManyWriters(t *testing.T) {
	name, _ := stampFile(t, 4096*FrameSize)
	s, _ := store.OpenFile(name, store.FileOptions{})
	p, r := rawMap(t, Options{Budget: 64 * FrameSize, StallLimit: 300 * time.Millisecond}, s, RegionOptions{Prefetch: prefetch.None()})
	var failed atomic.Int32
	within(t, 30*time.Second, "writers", func() {
		var wg sync.WaitGroup
		for g := range 500 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(g), 9))
				for range 5 {
					pin, err := r.AcquireWrite(context.Background(), rnd.Int64N(4096)*FrameSize, 8)
					if err != nil {
						failed.Add(1)
						continue
					}
					pin.Bytes()[0]++
					pin.Release()
				}
			})
		}
		wg.Wait()
	})
	if failed.Load() > 0 {
		t.Errorf("%d of 2500 AcquireWrites failed though nobody keeps a pin", failed.Load())
	}
	p.Close()
}

// A region is closed while others evict its pages.
func TestCloseAgainstEviction(t *testing.T) {
	p, err := New(Options{Budget: 64 * FrameSize})
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	big, err := p.Map(store.NewMemory(64<<20), RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	if err != nil {
		t.Fatal(err)
	}
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 3))
			var b [8]byte
			for !stop.Load() {
				big.ReadAt(b[:], rnd.Int64N(64<<20-8))
			}
		})
	}
	for g := range 4 {
		wg.Go(func() {
			_ = g
			for !stop.Load() {
				r, err := p.Map(store.NewMemory(32<<20), RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
				if err != nil {
					t.Error(err)
					return
				}
				var b [8]byte
				for i := int64(0); i < 8; i++ {
					r.ReadAt(b[:], i<<21)
				}
				r.Close()
			}
		})
	}
	time.Sleep(8 * time.Second)
	stop.Store(true)
	within(t, 20*time.Second, "end", wg.Wait)
	p.Close()
}

func creditsWhole(t *testing.T, p *Pager, what string) {
	t.Helper()
	for range 100 { // writebacks under way
		if p.credits.left()+load64(&p.w.dirty)+load64(&p.w.kept) == p.pinnable.Load() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s: %d credits left + %d dirty frames, of %d", what, p.credits.left(), load64(&p.w.dirty), p.pinnable.Load())
}

// 5H
func TestCreditsOfFailedWrites(t *testing.T) {
	s := &slowStore{Store: store.NewMemory(64 * FrameSize), what: aio.Read}
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{Prefetch: prefetch.None()})
	for i := range 20 {
		s.hold.Store(true)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		if _, err := r.AcquireWrite(ctx, int64(i)*FrameSize, 8); err == nil {
			t.Fatal("no error")
		}
		cancel()
		s.let()
	}
	creditsWhole(t, p, "after 20 cancelled AcquireWrites")
}

// 5G
func TestFramesOfTheServer(t *testing.T) {
	t.Setenv("UFFDPAGER_PARK", "block")
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, store.NewMemory(4096*FrameSize), RegionOptions{Prefetch: prefetch.None(), ReadOnly: true})
	needRaw(t, r)
	m := r.Bytes()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 5))
			var b [8]byte
			for i := range 600 {
				if g%2 == 0 {
					b[0] += m[rnd.IntN(4096)*FrameSize]
				} else {
					r.ReadAt(b[:], rnd.Int64N(4096)*FrameSize)
				}
				_ = i
			}
		})
	}
	if !within(t, 30*time.Second, "readers", wg.Wait) {
		t.Logf("free %d resident %d budget %d", load64(&p.w.free), load64(&r.d.resident), p.budget.Load())
		return
	}
	time.Sleep(100 * time.Millisecond)
	if f, d := load64(&p.w.free), load64(&r.d.resident); f+d != p.budget.Load() {
		t.Errorf("%d free + %d resident frames, of %d", f, d, p.budget.Load())
	}
	creditsWhole(t, p, "reads")
}

// 5I
func TestStaleLeavesAndReusedDescriptors(t *testing.T) {
	t.Setenv("UFFDPAGER_PARK", "block")
	o := RegionOptions{Prefetch: prefetch.None(), ReadOnly: true}
	p1, a := rawMap(t, Options{Budget: 1024 * FrameSize}, store.NewMemory(128<<20), o)
	defer p1.Close()
	needRaw(t, a)
	var b8 [8]byte
	for i := int64(0); i < 512; i++ {
		a.ReadAt(b8[:], i<<18)
	}
	index := a.d.index
	a.Close()
	p1.Close()
	p2, b := rawMap(t, Options{Budget: 64 * FrameSize}, store.NewMemory(16*FrameSize), o)
	if b.d.index != index {
		t.Skip("descriptor not reused")
	}
	p3, err := New(Options{Budget: 64 * FrameSize})
	if err != nil {
		t.Fatal(err)
	}
	_ = p3
	c, err := p2.Map(store.NewMemory(128<<20), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("B at %#x, C at %#x", b.d.base, c.d.base)
	m := c.Bytes()

	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 5))
			var s byte
			for range 600 {
				s += m[rnd.IntN(128<<20)]
			}
			raceSink.Add(int32(s))
		})
	}
	within(t, 30*time.Second, "readers", wg.Wait)
	t.Logf("stolen %d", p2.Stats().Stolen)
	if n := load64(&b.d.resident); n != 0 {
		t.Errorf("region B, never touched, has %d frames resident; C %d, of a budget of 64", n, load64(&c.d.resident))
	}
	within(t, 5*time.Second, "Close", func() { c.Close() })
}
