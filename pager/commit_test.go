//go:build linux

package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
)

// twin is a store in memory and a way to see its bytes.
func memoryStore(b []byte) (store.Store, func() []byte) {
	s := store.NewMemoryOf(b)
	return s, func() []byte {
		k, _ := s.Kernel()
		return bytes.Clone(k.Mem)
	}
}

// atomicRegion is an Atomic region over memory, with its journal in memory, and
// a model of what it should hold.
type atomicRegion struct {
	*Region
	data, journal    func() []byte
	model, committed []byte
	// images are all committed contents of each page: what the store may hold.
	images map[uint64][][]byte
	ps     int64
}

func mapAtomic(t testing.TB, p *Pager, data, journal []byte, o RegionOptions) *atomicRegion {
	t.Helper()
	needProtection(t)
	a, err := tryMapAtomic(p, data, journal, o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func tryMapAtomic(p *Pager, data, journal []byte, o RegionOptions) (*atomicRegion, error) {
	a := &atomicRegion{images: map[uint64][][]byte{}}
	s, d := memoryStore(data)
	js, j := memoryStore(journal)
	o.Durability, o.Journal.Store = Atomic, js
	r, err := p.Map(s, o)
	if err != nil {
		return nil, err
	}
	a.Region, a.data, a.journal, a.ps = r, d, j, int64(r.PageSize())
	a.model = bytes.Clone(data)
	a.noteCommit()
	return a, nil
}

// noteCommit: the model has been committed.
func (a *atomicRegion) noteCommit() {
	old := a.committed
	a.committed = bytes.Clone(a.model)
	for off := int64(0); off < int64(len(a.model)); off += a.ps {
		end := min(off+a.ps, int64(len(a.model)))
		if old == nil || end > int64(len(old)) || !bytes.Equal(old[off:end], a.model[off:end]) {
			a.images[uint64(off/a.ps)] = append(a.images[uint64(off/a.ps)], bytes.Clone(a.model[off:end]))
		}
	}
}

// crash is what a crash would leave now: copies of both stores. Nothing is being
// checkpointed meanwhile.
func (a *atomicRegion) crash() (data, journal []byte) {
	a.atomic.keep.Lock()
	defer a.atomic.keep.Unlock()
	return a.data(), a.journal()
}

// checkStore: J1, all that the store holds was committed once.
func (a *atomicRegion) checkStore(data []byte) error {
	for off := int64(0); off < int64(len(data)); off += a.ps {
		b := data[off:min(off+a.ps, int64(len(data)))]
		ok := false
		for _, image := range a.images[uint64(off/a.ps)] {
			n := min(len(image), len(b))
			ok = ok || bytes.Equal(image[:n], b[:n])
		}
		if !ok {
			return fmt.Errorf("page %d of the store is nothing that was ever committed", off/a.ps)
		}
	}
	return nil
}

func checkBytes(r *Region, want []byte) error {
	if n := r.Len(); n != int64(len(want)) {
		return fmt.Errorf("Len is %d, want %d", n, len(want))
	}
	got := make([]byte, len(want))
	if _, err := r.ReadAt(got, 0); err != nil {
		return fmt.Errorf("ReadAt: %w", err)
	}
	ps := r.PageSize()
	for off := 0; off < len(want); off += ps {
		end := min(off+ps, len(want))
		if !bytes.Equal(got[off:end], want[off:end]) {
			return fmt.Errorf("page %d differs: %x…, want %x…", off/ps, got[off:off+8], want[off:off+8])
		}
	}
	return nil
}

// The same where every fault is served without a P, by the thread that waits,
// and with one P for everybody: raw stores then write dirty pages to slots by
// themselves.
func TestAtomicHistoryOfBlockedThreads(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for seed := range uint64(longer(2)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { atomicHistory(t, 100+seed, 200, Options{Park: coro.Block}) })
	}
}

// A history of writes in every way there is, commits, resizes and discards,
// under a budget of a few pages. What is read is what was written; the store
// holds committed pages only (J1); a crash at any time leaves what was committed
// last (J2), also when the recovery crashes and is run again.
func TestAtomicHistory(t *testing.T) {
	for seed := range uint64(longer(3)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { atomicHistory(t, seed, 200, Options{}) })
	}
}

func atomicHistory(t *testing.T, seed uint64, steps int, po Options) {
	rnd := rand.New(rand.NewPCG(seed, 5))
	ps := []int{4096, 4096, 16384}[seed%3]
	const pages, most = 96, 160
	po.Budget = int64(24 * ps)
	p := newPager(t, po)
	o := RegionOptions{PageSize: ps, MaxSize: int64(most * ps), Journal: JournalOptions{Limit: int64(400 * ps), Interval: 5 * time.Millisecond}}
	data := make([]byte, pages*ps)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	a := mapAtomic(t, p, data, nil, o)
	raw := a.Raw() == nil
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	byServer := 0
	for step := range steps {
		for s := range a.d.slotCount {
			if atomic.LoadUint64(a.d.slotWord(s))&slotRaw != 0 {
				byServer++
			}
		}
		off := rnd.Int64N(a.Len())
		n := min(1+rnd.Int64N(int64(2*ps)), a.Len()-off)
		b := bytes.Repeat([]byte{byte(step), byte(rnd.Uint32())}, int(n+1)/2)[:n]
		what, err := "", error(nil)
		switch k := rnd.IntN(100); {
		case k < 15:
			what = "WriteAt"
			_, err = a.WriteAt(b, off)
			copy(a.model[off:], b)
		case k < 25:
			what = "WriteAt page"
			off -= off % a.ps
			n = min(a.ps, a.Len()-off)
			b = bytes.Repeat([]byte{byte(step)}, int(n))
			_, err = a.WriteAt(b, off)
			copy(a.model[off:], b)
		case k < 35 && raw:
			what = "Update"
			err = a.Update(ctx, func(mem []byte) error { copy(mem[off:], b); return nil })
			copy(a.model[off:], b)
		case k < 45:
			what = "AcquireWrite"
			var pin Pin
			if pin, err = a.AcquireWrite(ctx, off, n); err == nil {
				copy(pin.Bytes(), b)
				pin.Release()
			}
			copy(a.model[off:], b)
		case k < 60 && raw:
			what = "Bytes"
			if rnd.IntN(2) == 0 { // all over
				for off := off % 512; off < a.Len(); off += 3 * a.ps {
					a.Bytes()[off] = byte(step)
					a.model[off] = byte(step)
				}
			}
			copy(a.Bytes()[off:], b)
			copy(a.model[off:], b)
		case k < 75:
			what = "ReadAt"
			got := make([]byte, n)
			if _, err = a.ReadAt(got, off); err == nil && !bytes.Equal(got, a.model[off:off+n]) {
				err = fmt.Errorf("wrong bytes at %d", off)
			}
		case k < 85:
			what = "Commit"
			if err = a.Commit(ctx); err == nil {
				a.noteCommit()
			}
		case k < 88:
			what = "Resize"
			size := 1 + rnd.Int64N(int64(most*ps))
			if err = a.Resize(ctx, size); err == nil {
				if size < int64(len(a.model)) {
					a.model = a.model[:size:size]
				} else {
					a.model = append(a.model, make([]byte, size-int64(len(a.model)))...)
				}
			}
		case k < 91:
			what = "Discard"
			n = min(n*3, a.Len()-off)
			err = a.Discard(ctx, off, n)
			clear(a.model[off : off+n])
		case k < 93:
			what = "checkpoint"
			err = a.atomic.checkpoint(ctx)
		default:
			what = "crash"
			data, journal := a.crash()
			if err = a.checkStore(data); err != nil {
				break
			}
			var c *atomicRegion
			if c, err = tryMapAtomic(p, data, journal, o); err != nil {
				break
			}
			err = checkBytes(c.Region, a.committed)
			err = errors.Join(err, c.Close())
		}
		if err != nil {
			t.Fatalf("step %d, %s [%d, +%d) of %d: %v", step, what, off, n, a.Len(), err)
		}
	}
	if err := checkBytes(a.Region, a.model); err != nil {
		t.Fatalf("at the end: %v", err)
	}
	if raw && po.Park == coro.Block && byServer == 0 {
		t.Error("no page went to a slot without a P")
	}
	t.Logf("%d commits, %d checkpoints, %d KiB to the journal", p.Stats().Commits, p.Stats().Checkpoints, p.Stats().JournalBytes>>10)
	if s := p.Stats(); s.Commits == 0 || s.Checkpoints == 0 || s.JournalBytes == 0 {
		t.Errorf("the history was too tame: %v", s)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}

// Writers keep the same counter in pairs of pages, in every kind of passage,
// while commits run one after the other: in what each leaves the two of a pair
// are equal (J5), and not older than what was acknowledged (J2).
func TestCutTearsNoPassage(t *testing.T) {
	const pairs, writers = 40, 4
	p := newPager(t, Options{Budget: 64 * FrameSize})
	o := RegionOptions{Journal: JournalOptions{Limit: 4 << 20, Interval: 3 * time.Millisecond}}
	a := mapAtomic(t, p, make([]byte, 2*pairs*FrameSize), nil, o)
	ctx := context.Background()
	var wg sync.WaitGroup
	var stop atomic.Bool
	var written [pairs]atomic.Uint64
	for w := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 9))
			for v := uint64(1); !stop.Load(); v++ {
				i := rnd.IntN(pairs/writers)*writers + w
				if err := putPair(ctx, a.Region, i, v, int(v)%4); err != nil {
					t.Errorf("pair %d: %v", i, err)
					return
				}
				written[i].Store(v)
			}
		})
	}
	for round := range longer(15) {
		var before [pairs]uint64
		for i := range before {
			before[i] = written[i].Load()
		}
		if err := a.Commit(ctx); err != nil {
			t.Errorf("Commit: %v", err)
			break
		}
		data, journal := a.frozen()
		c, err := tryMapAtomic(p, data, journal, o)
		if err != nil {
			t.Errorf("round %d: Map after the crash: %v", round, err)
			break
		}
		got := make([]byte, len(data))
		if _, err := c.ReadAt(got, 0); err != nil {
			t.Errorf("ReadAt: %v", err)
		}
		for i := range pairs {
			x, y := getPair(got, i)
			if x != y || x < before[i] {
				t.Errorf("round %d: pair %d is %d and %d, and %d was written before", round, i, x, y, before[i])
			}
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if t.Failed() {
			break
		}
	}
	stop.Store(true)
	wg.Wait()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// frozen is crash while others write and commit.
func (a *atomicRegion) frozen() (data, journal []byte) {
	a.atomic.turn <- struct{}{}
	defer func() { <-a.atomic.turn }()
	a.atomic.cutting.Store(true) // no eviction uses a slot that a header just freed
	defer a.atomic.cutting.Store(false)
	return a.crash()
}

// putPair stores v in both pages of pair i, in one passage of kind how.
func putPair(ctx context.Context, r *Region, i int, v uint64, how int) error {
	off := int64(2 * i * FrameSize)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	switch {
	case how == 0 || r.Raw() != nil:
		pin, err := r.AcquireWrite(ctx, off, 2*FrameSize)
		if err != nil {
			return err
		}
		copy(pin.Bytes(), b[:])
		runtime.Gosched()
		copy(pin.Bytes()[FrameSize+64:], b[:])
		pin.Release()
	case how == 1: // nested: one passage within another
		return r.Update(ctx, func(mem []byte) error {
			copy(mem[off:], b[:])
			_, err := r.WriteAt(b[:], off+FrameSize+64)
			return err
		})
	case how == 2:
		buf := make([]byte, FrameSize+72)
		if _, err := r.ReadAt(buf, off); err != nil {
			return err
		}
		copy(buf, b[:])
		copy(buf[FrameSize+64:], b[:])
		_, err := r.WriteAt(buf, off)
		return err
	default:
		return r.Update(ctx, func(mem []byte) error {
			copy(mem[off:], b[:])
			runtime.Gosched()
			copy(mem[off+FrameSize+64:], b[:])
			return nil
		})
	}
	return nil
}

func getPair(mem []byte, i int) (x, y uint64) {
	return binary.LittleEndian.Uint64(mem[2*i*FrameSize:]), binary.LittleEndian.Uint64(mem[(2*i+1)*FrameSize+64:])
}

// longer is n, and much more with UFFDPAGER_TORTURE=1.
func longer(n int) int {
	if os.Getenv("UFFDPAGER_TORTURE") == "1" {
		return 40 * n
	}
	return n
}

func newPager(t testing.TB, o Options) *Pager {
	t.Helper()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Pager.Close: %v", err)
		}
	})
	return p
}

// noCollections keeps the collector away until the test ends. A thread that waits
// without being parked keeps its P, and a stop of the world that begins meanwhile waits
// for it: where it is the test that ends the wait, neither would go on.
func noCollections(t testing.TB) {
	t.Helper()
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	// SetGCPercent waits for the marking of one that is under way, and then every P is
	// asked once more (to flush its caches). Until that is over nobody stops the world.
	runtime.ReadMemStats(new(runtime.MemStats))
}
