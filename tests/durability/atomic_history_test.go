package durability

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const frame = pager.FrameSize

// attempt is a commit that was tried.
type attempt struct {
	region []byte // what it makes of the region
	begun  int    // tick from which a crash may leave it
	ack    int    // tick from which every crash must; 0: never
}

// history drives one Atomic region over recording stores of one clock, and
// notes what the region is at every commit. One goroutine writes, so that each
// commit is known to the byte.
type history struct {
	t    *testing.T
	rng  *rand.Rand
	rec  *store.Recorder
	data *store.Recording
	sums *store.Recording // nil: no checksums
	js   *store.Recording
	path string // of the journal, if it is a file
	opt  pager.RegionOptions

	pages int64         // of the region, at most
	wide  *store.Faulty // the journal's store, whose writes fail now and then; nil: they do not

	p     *pager.Pager
	r     *pager.Region
	raw   bool
	model []byte
	tried []attempt
	steps map[string]int

	unseen bool // a commit has an image that was not recorded
}

const (
	historyPages = 24  // of a region: more than the budget has
	widePages    = 400 // of one whose commits are several transfers
)

// lasting is a store that outlives its region.
type lasting struct{ store.Store }

func (lasting) Close() error { return nil }

// newHistory maps a region, of every third seed with a journal that is a file. With slow, transfers take their time and overtake
// one another, and then there is no raw access. With summed the data store has
// checksums.
func newHistory(t *testing.T, seed uint64, slow, summed bool) *history {
	t.Helper()
	p := fixture.Pager(t, pager.Options{Budget: int64(12+seed%8) * frame})
	return newHistoryOf(t, p, new(store.Recorder), seed, historyPages, slow, summed)
}

// newWideHistory maps a region whose commits are of hundreds of pages, and whose journal
// now and then says of a write that it has failed.
func newWideHistory(t *testing.T, seed uint64, slow bool) *history {
	t.Helper()
	p := fixture.Pager(t, pager.Options{Budget: 2 * widePages * frame})
	h := newHistoryOf(t, p, new(store.Recorder), seed, widePages, slow, false)
	h.fail(true)
	return h
}

// fail begins or ends the errors of a wide history.
func (h *history) fail(yes bool) {
	if h.wide == nil {
		return
	}
	if h.wide.Clear(); yes {
		// What is written is there: nobody knows that of a write that has failed, and the
		// record knows what is there.
		h.wide.Inject(store.Fault{Ops: store.OnWrite, Prob: 0.25, Err: unix.EIO, Short: 1 << 30})
	}
}

// newHistoryOf is newHistory of one region among several of a pager, whose
// stores lose power together.
func newHistoryOf(t *testing.T, p *pager.Pager, rec *store.Recorder, seed uint64, pages int64, slow, summed bool) *history {
	t.Helper()
	h := &history{t: t, rng: rand.New(rand.NewPCG(seed, 5)), p: p, rec: rec, steps: map[string]int{}, pages: pages}
	wrap := func(s store.Store) *store.Recording {
		if slow {
			s = store.NewFaulty(s, store.FaultyOptions{Seed: seed, Latency: 20 * time.Microsecond, Jitter: 50 * time.Microsecond, Reorder: 4})
		}
		r, err := store.NewRecording(s, h.rec)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	data := fixture.Memory(t, pages*frame, seed)
	if summed {
		sums := store.NewMemory(store.SumsSize(pages * frame))
		c, err := store.NewChecksummed(lasting{data}, lasting{sums}, store.ChecksumOptions{Create: true})
		if err == nil {
			err = c.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		h.sums = wrap(sums)
	}
	h.data = wrap(data)
	var journal store.Store = store.NewMemory(256 << 10)
	if seed%3 == 0 {
		// Through an engine, some of it in place: memory needs none.
		h.path = filepath.Join(t.TempDir(), "journal")
		journal = fixture.OpenFile(t, h.path, store.FileOptions{Create: true, Size: 256 << 10})
	}
	limit := int64(256 << 10)
	if pages > historyPages {
		limit = 8 << 20
		h.wide = store.NewFaulty(journal, store.FaultyOptions{Seed: seed, Kernel: true, Check: true})
		journal = h.wide
	}
	h.js = wrap(journal)
	t.Cleanup(func() { h.js.Close() })
	h.opt = pager.RegionOptions{
		Durability: pager.Atomic,
		MaxSize:    pages * frame,
		PageSize:   frame << h.rng.IntN(2),
		Journal:    pager.JournalOptions{Limit: limit, Interval: time.Duration(1+h.rng.IntN(10)) * time.Millisecond},
		Writeback:  pager.Writeback{DirtyShare: 0.3, Age: time.Duration(1+h.rng.IntN(5)) * time.Millisecond},
	}
	if pages > historyPages {
		h.opt.PageSize, h.opt.Writeback = frame, pager.Writeback{NoSteal: true}
		h.opt.Retry.Times = -1
	}
	h.open()
	h.raw = h.r.Raw() == nil
	h.model = make([]byte, pages*frame)
	fixture.Fill(h.model, 0, seed)
	h.tried = []attempt{{region: bytes.Clone(h.model), ack: h.rec.Now()}}
	return h
}

func (h *history) open() {
	h.t.Helper()
	o := h.opt
	o.Journal.Store = lasting{h.js}
	var s store.Store = lasting{h.data}
	if h.sums != nil {
		c, err := store.NewChecksummed(s, lasting{h.sums}, store.ChecksumOptions{})
		if err != nil {
			h.t.Fatalf("NewChecksummed: %v", err)
		}
		s = c
	}
	r, err := h.p.Map(s, o)
	if err != nil {
		h.t.Fatalf("Map: %v", err)
	}
	h.r = r
}

// run takes so many steps and closes the region.
func (h *history) run(steps int) {
	h.t.Helper()
	for i := range steps {
		name, err := h.step(uint64(i))
		if err != nil {
			h.t.Fatalf("step %d, %s: %v", i, name, err)
		}
		h.steps[name]++
	}
	h.fail(false)
	if err := h.r.Close(); err != nil {
		h.t.Fatalf("Close: %v", err)
	}
	if h.wide != nil && h.wide.Counts().Changed > 0 {
		h.t.Error("images changed on their way to the journal")
	}
}

func (h *history) step(i uint64) (string, error) {
	ctx := context.Background()
	size := int64(len(h.model))
	off := h.rng.Int64N(size)
	most := h.pages / 8 * frame
	if h.wide != nil {
		most *= 4
	}
	n := min(1+h.rng.Int64N(most), size-off)
	b := make([]byte, n)
	fixture.Fill(b, off, i+1)
	switch x := h.rng.IntN(100); {
	case x < 20:
		copy(h.model[off:], b)
		_, err := h.r.WriteAt(b, off)
		return "WriteAt", err
	case x < 40:
		pin, err := h.r.AcquireWrite(ctx, off, n)
		if err == nil {
			copy(h.model[off:], b)
			copy(pin.Bytes(), b)
			pin.Release()
		}
		return "AcquireWrite", err
	case x < 52 && h.raw:
		places := make([]int64, 1+h.rng.IntN(6))
		for k := range places {
			places[k] = h.rng.Int64N(size)
			h.model[places[k]] = byte(i)
		}
		return "Update", h.r.Update(ctx, func(mem []byte) error {
			for _, at := range places {
				mem[at] = byte(i)
			}
			return nil
		})
	case x < 60 && h.raw:
		h.model[off] ^= 0x55
		return "Bytes", pager.Guard(func() error { h.r.Bytes()[off] ^= 0x55; return nil })
	case x < 66:
		got := make([]byte, n)
		if _, err := h.r.ReadAt(got, off); err != nil {
			return "ReadAt", err
		}
		return "ReadAt", fixture.Compare(got, h.model[off:off+n], off)
	case x < 72:
		size = 1 + h.rng.Int64N(h.pages*frame)
		if err := h.r.Resize(ctx, size); err != nil {
			return "Resize", err
		}
		if size < int64(len(h.model)) {
			h.model = h.model[:size]
		} else {
			h.model = append(h.model, make([]byte, size-int64(len(h.model)))...)
		}
		return "Resize", nil
	case x < 76:
		n = min(4*n, size-off) // whole pages, as a rule
		clear(h.model[off : off+n])
		return "Discard", h.r.Discard(ctx, off, n)
	case x < 79:
		// Let the clock of the checkpoint go on.
		time.Sleep(time.Duration(h.rng.IntN(3)) * time.Millisecond)
		return "pause", nil
	case x < 81:
		h.fail(false)
		if err := h.r.Close(); err != nil {
			return "Close", err
		}
		h.open()
		h.model = bytes.Clone(h.acknowledged().region)
		// A commit that had failed is gone for good.
		h.tried = append(h.tried, attempt{region: bytes.Clone(h.model), begun: h.rec.Now(), ack: h.rec.Now()})
		h.fail(true)
		return "Close", h.compare(h.r, h.model)
	}
	err := commit(func() error {
		may, cancel := context.WithCancel(ctx) // another way than for who stays to the end
		defer cancel()
		return h.r.Commit(may)
	}, h)
	if h.wide != nil && errors.Is(err, unix.EIO) {
		return "Commit that failed", nil
	}
	return "Commit", err
}

// acknowledged is the last commit that was.
func (h *history) acknowledged() attempt {
	i := len(h.tried) - 1
	for h.tried[i].ack == 0 {
		i--
	}
	return h.tried[i]
}

// commit notes an attempt of all of the histories, which fn makes.
func commit(fn func() error, hs ...*history) error {
	for _, h := range hs {
		h.tried = append(h.tried, attempt{region: bytes.Clone(h.model), begun: h.rec.Now()})
	}
	err := fn()
	for _, h := range hs {
		if err == nil {
			h.tried[len(h.tried)-1].ack = h.rec.Now()
			h.unseen = h.unseen || !h.recordedSoon()
		}
	}
	return err
}

// compare reads a region as a whole.
func (h *history) compare(r *pager.Region, want []byte) error {
	if r.Len() != int64(len(want)) {
		return fmt.Errorf("the region has %d bytes, want %d", r.Len(), len(want))
	}
	got := make([]byte, len(want))
	if _, err := r.ReadAt(got, 0); err != nil {
		return err
	}
	return fixture.Compare(got, want, 0)
}

// recordedSoon is recorded while transfers may be under way: as soon as none of
// them is. What a commit has must be looked for when it is made, for later a slot may
// have been written again.
func (h *history) recordedSoon() bool {
	for range 100 {
		if h.recordedNow() {
			return true
		}
		time.Sleep(100 * time.Microsecond)
	}
	return false
}

// recorded reports whether the records have all that the journal's store has had: a
// thread without a P writes to a store's memory itself, which no Recording sees. It
// does so for a fault that is blocked, and where stores wait for credits.
func (h *history) recorded() bool { return !h.unseen && h.recordedNow() }

func (h *history) recordedNow() bool {
	k, ok := h.js.Kernel()
	has := k.Mem
	if h.path != "" {
		var err error
		if has, err = os.ReadFile(h.path); err != nil {
			h.t.Fatal(err)
		}
	} else if !ok || has == nil {
		return true
	}
	return bytes.Equal(has[:h.js.Size()], h.js.Image(h.rec.Now(), store.Everything))
}

// nearest says where the region differs from the attempt most like it.
func nearest(tried []attempt, got []byte) error {
	best, which := -1, 0
	var pages []int
	for i, a := range tried {
		if len(a.region) != len(got) {
			continue
		}
		var differ []int
		for off := 0; off < len(got); off += frame {
			end := min(off+frame, len(got))
			if !bytes.Equal(a.region[off:end], got[off:end]) {
				differ = append(differ, off/frame)
			}
		}
		if best < 0 || len(differ) < best {
			best, which, pages = len(differ), i, differ
		}
	}
	return fmt.Errorf("commit %d differs in pages %v", which, pages)
}
