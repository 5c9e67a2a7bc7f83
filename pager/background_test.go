//go:build linux

package pager

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/pager/writeback"
	"github.com/uffdpager/uffdpager/prefetch"
)

// mapMemory maps a store over memory that counts, and lets the test hold and
// fail its transfers.
func mapMemory(t testing.TB, pages int64, po Options, fo store.FaultyOptions, ro RegionOptions) (*Pager, *Region, *store.Faulty) {
	t.Helper()
	p, err := New(po)
	if err != nil {
		t.Fatal(err)
	}
	s := store.NewFaulty(store.NewMemory(pages*FrameSize), fo)
	if ro.Prefetch == nil {
		ro.Prefetch = prefetch.None()
	}
	r, err := p.Map(s, ro)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Release()
		s.Clear()
		_ = p.Close()
	})
	return p, r, s
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// touchPages makes pages dirty and waits until that is known.
func touchPages(t testing.TB, r *Region, pages ...int64) {
	t.Helper()
	b := make([]byte, FrameSize)
	for _, pg := range pages {
		binary.LittleEndian.PutUint64(b, uint64(pg)+1)
		if _, err := r.WriteAt(b, pg*FrameSize); err != nil {
			t.Fatal(err)
		}
	}
}

// A policy is told of what becomes dirty and clean, and what it plans is
// written, nothing else.
func TestWritebackPolicy(t *testing.T) {
	var mu sync.Mutex
	dirty := map[int64]bool{}
	var want []writeback.Run
	ticks := 0
	pol := writeback.Func(func(e writeback.Event, plan *writeback.Plan) {
		mu.Lock()
		defer mu.Unlock()
		switch e.Kind {
		case writeback.Dirty:
			if dirty[e.Page] {
				t.Errorf("page %d became dirty twice", e.Page)
			}
			dirty[e.Page] = true
		case writeback.Clean:
			if !dirty[e.Page] {
				t.Errorf("page %d became clean and was not dirty", e.Page)
			}
			delete(dirty, e.Page)
		case writeback.Tick:
			ticks++
			if plan.Dirty-plan.Writing != int64(len(dirty)) {
				t.Errorf("%d pages dirty, %d of them being written; told of %d", plan.Dirty, plan.Writing, len(dirty))
			}
			plan.Runs = append(plan.Runs, want...)
			want = nil
		}
	})
	_, r, s := mapMemory(t, 1000, Options{Budget: 256 * FrameSize}, store.FaultyOptions{}, RegionOptions{Writeback: Writeback{Policy: pol, Age: time.Nanosecond}})
	known := func(n int) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return len(dirty) == n }
	}
	plan := func(runs ...writeback.Run) {
		mu.Lock()
		want = runs
		mu.Unlock()
	}
	touchPages(t, r, 3, 4, 5, 70, 700)
	eventually(t, "five pages known to be dirty", known(5))
	if c := s.Counts(); c.Writes != 0 {
		t.Errorf("%d writes that no policy has asked for", c.Writes)
	}
	plan(writeback.Run{First: 4, N: 100}, writeback.Run{First: -5, N: 2}, writeback.Run{First: 5000, N: 10})
	eventually(t, "the planned pages written", known(2))
	if c := s.Counts(); c.WriteBytes != 3*FrameSize {
		t.Errorf("%d bytes written, want pages 4, 5 and 70", c.WriteBytes)
	}
	mu.Lock()
	if !dirty[3] || !dirty[700] {
		t.Errorf("dirty are %v, want 3 and 700", dirty)
	}
	mu.Unlock()
	// Written from elsewhere, and written to again.
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Sync known to the policy", known(0))
	touchPages(t, r, 4)
	eventually(t, "dirty again", known(1))
	mu.Lock()
	seen := ticks
	mu.Unlock()
	if seen == 0 {
		t.Error("no clock")
	}
}

// NoSteal keeps everything in memory until Sync.
func TestNoStealWritesNothing(t *testing.T) {
	_, r, s := mapMemory(t, 1000, Options{Budget: 64 * FrameSize}, store.FaultyOptions{},
		RegionOptions{Writeback: Writeback{NoSteal: true, Age: time.Nanosecond, DirtyShare: 0.01}})
	touchPages(t, r, 1, 2, 3, 500, 501)
	for pg := range int64(900) { // press them out
		if _, err := r.ReadAt(make([]byte, 8), pg*FrameSize); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(3 * tick)
	if c := s.Counts(); c.Writes != 0 {
		t.Errorf("%d writes before Sync", c.Writes)
	}
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	if c := s.Counts(); c.WriteBytes != 5*FrameSize {
		t.Errorf("Sync wrote %d bytes, want five pages", c.WriteBytes)
	}
}

// Writing in the background keeps within its rate, and gets there.
func TestWritebackRate(t *testing.T) {
	const rate = 200 * FrameSize
	_, r, s := mapMemory(t, 400, Options{Budget: 512 * FrameSize}, store.FaultyOptions{},
		RegionOptions{Writeback: Writeback{Rate: rate, Age: time.Nanosecond}})
	pages := make([]int64, 150)
	for i := range pages {
		pages[i] = int64(i)
	}
	begun := time.Now()
	touchPages(t, r, pages...)
	for {
		n := s.Counts().WriteBytes
		most := int64(float64(rate)*time.Since(begun).Seconds()) + rate/4
		if n > most {
			t.Fatalf("%d pages written after %v, more than the %d that its rate allows", n/FrameSize, time.Since(begun), most/FrameSize)
		}
		if n >= 150*FrameSize {
			return
		}
		if time.Since(begun) > 30*time.Second {
			t.Fatalf("%d pages written in 30 s", n/FrameSize)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// While reads wait for the device nothing is written in the background, unless
// it is overdue.
func TestReadsComeFirst(t *testing.T) {
	p, r, s := mapMemory(t, 1000, Options{Budget: 256 * FrameSize, QueueDepth: 2}, store.FaultyOptions{},
		RegionOptions{Writeback: Writeback{Age: -1}})
	touchPages(t, r, 900, 901)
	if _, n := p.backgroundRoom(false); n == 0 {
		t.Fatal("nothing may be written although nothing is read")
	}
	s.Hold(store.OnRead)
	defer s.Release()
	var wg sync.WaitGroup
	for i := range int64(5) {
		wg.Go(func() {
			if _, err := r.ReadAt(make([]byte, 1), i*10*FrameSize); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "reads in the queue", func() bool { return p.queue.n.Load() == 3 })
	if _, n := p.backgroundRoom(false); n != 0 {
		t.Errorf("%d frames may be written while reads wait", n)
	}
	if _, n := p.backgroundRoom(true); n == 0 {
		t.Error("what is overdue may not be written")
	}
	s.Release()
	wg.Wait()
	if _, n := p.backgroundRoom(false); n == 0 {
		t.Error("nothing may be written although no read waits any more")
	}
}

// walLog is a write-ahead log: records get numbers, and become durable some
// time later.
type walLog struct{ appended, durable atomic.Uint64 }

// No page reaches the store with a change whose log record is not durable, by
// whatever way it is written, although the pages change all the while.
func TestBeforeWriteKeepsTheOrder(t *testing.T) {
	const pages = 200
	var log walLog
	lsn := func(page []byte) uint64 { return binary.LittleEndian.Uint64(page) }
	var refused atomic.Int64
	opts := RegionOptions{Writeback: Writeback{
		Age: time.Millisecond, DirtyShare: 0.1,
		BeforeWrite: func(run PageRun) bool {
			if int(run.N)*FrameSize != len(run.Data) {
				t.Errorf("%d pages with %d bytes", run.N, len(run.Data))
			}
			for i := range run.N {
				if lsn(run.Data[i*FrameSize:]) > log.durable.Load() {
					refused.Add(1)
					return false
				}
			}
			return true
		},
	}}
	p, err := New(Options{Budget: 64 * FrameSize})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := &spyStore{Store: store.NewMemory(pages * FrameSize)}
	s.onWrite = func(off int64, b []byte) {
		for i := 0; i < len(b); i += FrameSize {
			if n := lsn(b[i:]); n > log.durable.Load() {
				t.Errorf("page %d reaches the store with record %d, and the log is durable up to %d", (off+int64(i))/FrameSize, n, log.durable.Load())
			}
		}
	}
	r, err := p.Map(s, opts)
	if err != nil {
		t.Fatal(err)
	}
	hasRaw(t, r)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { // the log
		for ctx.Err() == nil {
			n := log.appended.Load()
			time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
			log.durable.Store(n)
		}
		log.durable.Store(1 << 60)
	})
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 3))
			for i := 0; ctx.Err() == nil; i++ {
				off := (rnd.Int64N(pages/4)*4 + int64(w)) * FrameSize
				pin, err := r.AcquireWrite(ctx, off, 8)
				if err == nil {
					binary.LittleEndian.PutUint64(pin.Bytes(), log.appended.Add(1))
					pin.Release()
				} else if ctx.Err() == nil {
					t.Errorf("AcquireWrite: %v", err)
				}
				if i%100 == 0 {
					if err := r.Sync(ctx); err != nil && ctx.Err() == nil {
						t.Errorf("Sync: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := r.Sync(context.Background()); err != nil {
		t.Error(err)
	}
	if s.writes.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d writes, %d refused: nothing was tested", s.writes.Load(), refused.Load())
	}
	t.Logf("%d records, %d writes, %d times not yet", log.appended.Load(), s.writes.Load(), refused.Load())
}

// A hook that never says yes ends neither Sync, nor reading, nor Close in a
// hang; what it refused never reached the store.
func TestBeforeWriteThatNeverAgrees(t *testing.T) {
	_, r, s := mapMemory(t, 500, Options{Budget: 64 * FrameSize, StallLimit: 100 * time.Millisecond}, store.FaultyOptions{},
		RegionOptions{Writeback: Writeback{Age: time.Nanosecond, BeforeWrite: func(PageRun) bool { return false }}})
	touchPages(t, r, 1, 2, 3, 77)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := r.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Sync: %v", err)
	}
	for pg := range int64(400) {
		if _, err := r.ReadAt(make([]byte, 8), pg*FrameSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); !errors.Is(err, ErrBusy) {
		t.Errorf("Close: %v, want ErrBusy", err)
	}
	if n := s.Counts().Writes; n != 0 {
		t.Errorf("%d writes", n)
	}
}

// A page larger than the share of the queue depth, counted in frames, is written in its
// time all the same.
func TestLargePagesAreWrittenInTheBackground(t *testing.T) {
	const size = MaxPageSize
	_, r, s := mapMemory(t, 8*size/FrameSize, Options{Budget: 16 * size, QueueDepth: 4}, store.FaultyOptions{},
		RegionOptions{PageSize: size, Writeback: Writeback{Age: time.Millisecond}})
	touchPages(t, r, 0, 2*size/FrameSize)
	eventually(t, "both pages written", func() bool { return s.Counts().Writes == 2 })
}

// Pages of an Atomic region go to the journal together, however far apart they are.
func TestPagesApartAreOneWriteToTheJournal(t *testing.T) {
	needProtection(t)
	p, err := New(Options{Budget: 1024 * FrameSize, QueueDepth: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	o := RegionOptions{Durability: Atomic, Prefetch: prefetch.None(), Writeback: Writeback{Age: 100 * time.Millisecond}}
	js := store.NewFaulty(store.NewMemory(4<<20), store.FaultyOptions{})
	o.Journal.Store = js
	r, err := p.Map(store.NewMemory(1000*FrameSize), o)
	if err != nil {
		t.Fatal(err)
	}
	before := js.Counts().Writes
	const pages = 128
	for i := range int64(pages) {
		touchPages(t, r, 5*i)
	}
	eventually(t, "all written", func() bool { return load64(&r.d.dirty) == 0 })
	// A sweep may begin among the stores, and each has one write more, for the rest.
	if n := js.Counts().Writes - before; n > pages/8 {
		t.Errorf("%d writes of %d pages", n, pages)
	}
}
