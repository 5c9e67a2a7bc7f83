package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// slotSize is the grain of the model's locks. It divides no page evenly into
// operations: ranges start and end anywhere.
const slotSize = 512

// A chooser draws numbers: a seeded generator, or rapid, which can shrink them.
type chooser interface {
	// intn draws from [0, n), smaller meaning simpler.
	intn(n int, what string) int
}

// spec says what a world is made of.
type spec struct {
	budget, least int64 // bytes of each pager: at the beginning and the least SetBudget goes down to
	engine        aio.Kind
	pagers        int // 0: one
	regions       []regionSpec
	writes        bool
}

type regionSpec struct {
	kind     string // one of kinds
	page     int
	size     int64
	maxSize  int64 // 0: size
	evict    string
	prefetch string
	private  bool
	readOnly bool
	atomic   bool // Durability: Atomic
}

// kinds of stores: a file read directly, the same through the page cache,
// memory, memory that takes up to half a millisecond and finishes out of order,
// and an io.ReaderAt.
var kinds = []string{"file", "cached", "memory", "slow", "reader"}

// failing are kinds of stores that fail now and then, by the operation Inject:
// one that the fault server cannot read, and one that it can.
var failing = []string{"faulty", "faulty raw"}

func (s spec) String() string {
	out := fmt.Sprintf("%d pagers, budget %d to %d, engine %v, writes %v", max(s.pagers, 1), s.least, s.budget, s.engine, s.writes)
	for _, r := range s.regions {
		out += fmt.Sprintf("; %s page %d size %d (max %d) evict %s prefetch %s private %v read-only %v atomic %v",
			r.kind, r.page, r.size, r.maxSize, r.evict, r.prefetch, r.private, r.readOnly, r.atomic)
	}
	return out
}

// world is pagers, their regions, and what these should hold.
type world struct {
	spec    spec
	dir     string
	pagers  []*pager.Pager
	faults  bool // some store fails now and then
	regions []*region
	budget  sync.RWMutex // held for writing during SetBudget
	now     int64        // the budget
	pinRoom int64        // most bytes that one operation may pin
	hold    chan struct{}
	spoiled atomic.Bool // a change has ended half done, and the model does not know how far
}

// region is a region beside its model.
type region struct {
	regionSpec
	*pager.Region
	w        *world
	p        *pager.Pager
	index    int // among the world's
	writable bool
	faults   bool
	path     string // of a file store
	mem      []byte // of a memory store
	slow     *store.Faulty
	seed     uint64

	// size guards Len: Resize takes it for writing.
	size  sync.RWMutex
	model []byte
	slots []sync.RWMutex
}

func newPolicies(s regionSpec) (e evict.Policy, f prefetch.Policy) {
	switch s.evict {
	case "fifo":
		e = evict.NewFIFO()
	case "own s3fifo":
		e = evict.NewS3FIFO()
	}
	if s.prefetch == "next" {
		f = nextPages(3)
	}
	return e, f
}

// nextPages reads the n pages after every miss: more than anybody needs.
type nextPages int64

func (n nextPages) Observe(e prefetch.Event, plan *prefetch.Plan) {
	if e.Kind == prefetch.Miss {
		plan.Add(e.Page+1, min(int64(n), plan.Pages-e.Page-1))
	}
}

func newWorld(dir string, sp spec, seed uint64) (*world, error) {
	w := &world{spec: sp, dir: dir, now: sp.budget, hold: make(chan struct{}, 1)}
	for range max(sp.pagers, 1) {
		p, err := pager.New(pager.Options{Budget: sp.budget, Engine: sp.engine})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("New: %w", err), w.close())
		}
		w.pagers = append(w.pagers, p)
	}
	page := int64(0)
	for i, rs := range sp.regions {
		page = max(page, int64(rs.page))
		w.faults = w.faults || slices.Contains(failing, rs.kind)
		r, err := w.newRegion(i, rs, seed)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("region %d (%+v): %w", i, rs, err), w.close())
		}
		w.regions = append(w.regions, r)
	}
	// Half of the least budget can be pinned for certain (I4); one more page
	// may be held from operation to operation.
	w.pinRoom = max(sp.least/2-2*page, 0)
	return w, nil
}

func (w *world) newRegion(i int, rs regionSpec, seed uint64) (*region, error) {
	r := &region{regionSpec: rs, w: w, p: w.pagers[i%len(w.pagers)], index: i, seed: seed + uint64(i)}
	if r.maxSize == 0 {
		r.maxSize = r.regionSpec.size
	}
	r.model = make([]byte, r.maxSize)
	fixture.Fill(r.model[:r.regionSpec.size], 0, r.seed)
	r.slots = make([]sync.RWMutex, (r.maxSize+slotSize-1)/slotSize)
	r.writable = !rs.readOnly && (w.spec.writes && rs.kind != "reader" || rs.private)
	r.faults = slices.Contains(failing, rs.kind)
	s, err := r.open()
	if err != nil {
		return nil, err
	}
	if err := r.mapIt(s); err != nil {
		return nil, err
	}
	if n := r.Len(); n != r.regionSpec.size {
		return nil, fmt.Errorf("Len is %d, want %d", n, r.regionSpec.size)
	}
	return r, nil
}

// mapIt maps s, anew if there was a region before.
func (r *region) mapIt(s store.Store) (err error) {
	o := pager.RegionOptions{PageSize: r.page, ReadOnly: !r.writable, Private: r.private, MaxSize: r.maxSize}
	o.HugePages = o.ReadOnly && r.page == pager.MaxPageSize
	o.Evict, o.Prefetch = newPolicies(r.regionSpec)
	if r.atomic {
		o.Durability = pager.Atomic
		// What is not committed must not fill the journal: then writers get ErrBudget, and
		// raw stores wait for a Commit, which everybody here may be behind (docs/atomic.md).
		o.Journal.Limit = max(16<<20, r.maxSize/4, 5*r.w.spec.budget/2)
	}
	if r.private {
		o.SpillDir = r.w.dir
	}
	r.Region, err = r.p.Map(s, o)
	return err
}

// openFile opens the file of a file store.
func (r *region) openFile() (store.Store, error) {
	o := store.FileOptions{ReadOnly: !r.writable || r.private}
	if r.kind == "cached" {
		o.Direct = store.DirectOff
	}
	return store.OpenFile(r.path, o)
}

func (r *region) open() (store.Store, error) {
	size := r.regionSpec.size
	switch r.kind {
	case "file", "cached":
		r.path = filepath.Join(r.w.dir, fmt.Sprintf("region-%d", r.index))
		if err := os.WriteFile(r.path, r.model[:size], 0o600); err != nil {
			return nil, err
		}
		return r.openFile()
	case "memory", "slow", "faulty", "faulty raw":
		s := store.NewMemory(size)
		k, _ := s.Kernel()
		copy(k.Mem, r.model[:size])
		if r.maxSize == size {
			r.mem = k.Mem
		}
		if r.kind == "slow" {
			r.slow = store.NewFaulty(s, store.FaultyOptions{
				Seed: r.seed, Latency: 100 * time.Microsecond, Jitter: 400 * time.Microsecond, Reorder: 4, Check: true,
			})
			return r.slow, nil
		}
		if r.faults {
			r.slow = store.NewFaulty(s, store.FaultyOptions{Seed: r.seed, Check: true, Kernel: r.kind == "faulty raw"})
			return r.slow, nil
		}
		return s, nil
	case "reader":
		return store.FromReaderAt(bytes.NewReader(bytes.Clone(r.model[:size])), size), nil
	}
	return nil, fmt.Errorf("no store of kind %q", r.kind)
}

// lock locks the slots of the ranges, which are ascending and apart, and
// returns what unlocks them.
func (r *region) lock(write bool, rs ...pager.Range) func() {
	if !r.writable {
		return func() {}
	}
	each := func(f func(*sync.RWMutex)) {
		last := int64(-1)
		for _, g := range rs {
			for i := max(g.Off/slotSize, last+1); i <= (g.Off+g.Len-1)/slotSize; i++ {
				f(&r.slots[i])
				last = i
			}
		}
	}
	if write {
		each((*sync.RWMutex).Lock)
		return func() { each((*sync.RWMutex).Unlock) }
	}
	each((*sync.RWMutex).RLock)
	return func() { each((*sync.RWMutex).RUnlock) }
}

// sweep compares all of every region with the model, and what has been synced
// with the store. Nothing else runs meanwhile.
func (w *world) sweep() error {
	for i, r := range w.regions {
		if r.faults {
			r.slow.Clear() // the device is well again
		}
		buf := make([]byte, 64<<10+1)
		for off := int64(0); off < r.Len(); off += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), r.Len()-off)]
			if _, err := r.ReadAt(b, off); err != nil {
				return fmt.Errorf("region %d: ReadAt(%d): %w", i, off, err)
			}
			if err := fixture.Compare(b, r.model[off:off+int64(len(b))], off); err != nil {
				return fmt.Errorf("region %d: sweep: %w", i, err)
			}
		}
		if r.writable && !r.private {
			err := r.Sync(context.Background())
			if r.excuses(err) { // of a write that failed before; it is told once
				err = r.Sync(context.Background())
			}
			if err != nil {
				return fmt.Errorf("region %d: Sync: %w", i, err)
			}
			if err := r.checkStore(0, r.Len()); err != nil {
				return fmt.Errorf("region %d: %w", i, err)
			}
		}
	}
	errs := []error{w.checkBudget()}
	for _, p := range w.pagers {
		errs = append(errs, fixture.Quiet(p))
	}
	return errors.Join(errs...)
}

// injected are the errors that the operation Inject lets stores end with; what
// moves too few bytes ends with one of the last two.
var injected = []error{syscall.EIO, syscall.ENOSPC, io.ErrUnexpectedEOF, io.ErrShortWrite}

// excuses says whether err is what a failing store may have led to: its own
// errors on its region, and elsewhere that dirty pages could not be written to
// make room.
func (r *region) excuses(err error) bool {
	if r.faults && slices.ContainsFunc(injected, func(e error) bool { return errors.Is(err, e) }) {
		return true
	}
	return r.w.faults && errors.Is(err, pager.ErrBudget)
}

// checkStore compares what the store holds, seen from outside, with the model.
func (r *region) checkStore(off, n int64) error {
	want := r.model[off : off+n]
	switch {
	case r.atomic: // it is in the journal
	case r.path != "":
		f, err := os.Open(r.path)
		if err != nil {
			return err
		}
		defer f.Close()
		got := make([]byte, n)
		if _, err := f.ReadAt(got, off); err != nil {
			return fmt.Errorf("file at %d: %w", off, err)
		}
		if err := fixture.Compare(got, want, off); err != nil {
			return fmt.Errorf("the file after Sync: %w", err)
		}
	case r.mem != nil:
		if err := fixture.Compare(r.mem[off:off+n], want, off); err != nil {
			return fmt.Errorf("the memory store after Sync: %w", err)
		}
	}
	return nil
}

// checkBudget looks at I4 from outside.
func (w *world) checkBudget() error {
	w.budget.RLock()
	defer w.budget.RUnlock()
	for i, p := range w.pagers {
		s := p.Stats()
		switch {
		case i == 0 && s.Budget != w.now:
			return fmt.Errorf("the budget is %d, not the %d that was set", s.Budget, w.now)
		case s.Resident > s.Budget:
			return fmt.Errorf("%d bytes resident in a budget of %d", s.Resident, s.Budget)
		case s.PeakResident > w.spec.budget:
			return fmt.Errorf("at most %d bytes were resident, and the budget was never above %d", s.PeakResident, w.spec.budget)
		case !w.faults && (s.ReadErrors != 0 || s.WriteErrors != 0):
			return fmt.Errorf("%d read errors and %d write errors on healthy stores", s.ReadErrors, s.WriteErrors)
		}
	}
	return nil
}

// stats are those of all pagers, as text, and how much was read.
func (w *world) stats() (text string, read int64) {
	for i, p := range w.pagers {
		s := p.Stats()
		text += fmt.Sprintf("pager %d:\n%v", i, s)
		read += s.ReadBytes
	}
	return text, read
}

// allowHold lets one actor at a time hold a pin while it does other things, if
// there is room for that.
func (w *world) allowHold() {
	if w.pinRoom > 0 {
		w.hold <- struct{}{}
	}
}

// close closes everything and compares the stores with the model once more.
func (w *world) close() error {
	var errs []error
	for i, r := range w.regions {
		size := r.Len()
		if err := r.Close(); err != nil {
			errs = append(errs, fmt.Errorf("region %d: Close: %w", i, err))
			continue
		}
		if r.slow != nil {
			// I3, seen by the store.
			if c := r.slow.Counts(); c.Overlaps != 0 || c.Changed != 0 || c.InFlight != 0 {
				errs = append(errs, fmt.Errorf("region %d: %d writes overlapped, %d changed under way, %d transfers outlived Close", i, c.Overlaps, c.Changed, c.InFlight))
			}
		}
		if r.path == "" {
			continue
		}
		want := r.model[:size]
		if r.private {
			want = make([]byte, r.regionSpec.size)
			fixture.Fill(want, 0, r.seed)
		}
		got, err := os.ReadFile(r.path)
		if err == nil {
			err = fixture.Compare(got, want, 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("region %d: the file after Close: %w", i, err))
		}
	}
	for _, p := range w.pagers {
		if err := p.Close(); err != nil {
			errs = append(errs, fmt.Errorf("Pager.Close: %w", err))
		}
	}
	return errors.Join(errs...)
}

// writesSupported says whether histories may contain writes.
func writesSupported(t testing.TB) bool {
	if fixture.CanWrite(t) {
		return true
	}
	t.Log("no write side yet: histories only read")
	return false
}
