//go:build linux

package pager

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
)

// closings counts how often a store is closed.
type closings struct {
	store.Store
	n int
}

func (c *closings) Close() error { c.n++; return c.Store.Close() }

// What makes no sense is refused with the name of the option and what would do, and
// nothing is made or kept: both stores are closed, once.
func TestMapRefusesOptions(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	dir := t.TempDir()
	for want, o := range map[string]RegionOptions{
		"PageSize 5000 is not a power of two from 4096 to 2097152": {PageSize: 5000},
		"PageSize -1 ":                       {PageSize: -1},
		"MaxSize -1 is negative":             {MaxSize: -1},
		"MinResident -2 is negative":         {MinResident: -2},
		"MaxResident -3 is negative":         {MaxResident: -3},
		"SpillLimit -4 is negative":          {Private: true, SpillLimit: -4},
		"Writeback.Rate -5 is negative":      {Writeback: Writeback{Rate: -5}},
		"Writeback.DirtyShare 1.5 ":          {Writeback: Writeback{DirtyShare: 1.5}},
		"Writeback.DirtyShare NaN ":          {Writeback: Writeback{DirtyShare: math.NaN()}},
		"Durability 9 is neither":            {Durability: 9},
		"OnReadError 9 is neither":           {OnReadError: 9},
		"Retry.Pause -1 is negative":         {Retry: Retry{Pause: -1}},
		"Retry.MaxPause -1 is negative":      {Retry: Retry{MaxPause: -1}},
		"both Private and Atomic":            {Private: true, Durability: Atomic},
		"both Private and ReadOnly":          {Private: true, ReadOnly: true},
		"HugePages are for read-only":        {HugePages: true},
		"Journal.Limit -1 is negative":       {Durability: Atomic, Journal: JournalOptions{Path: filepath.Join(dir, "limit"), Limit: -1}},
		"Journal.ID has 129 bytes, more tha": {Durability: Atomic, Journal: JournalOptions{Path: filepath.Join(dir, "id"), ID: strings.Repeat("x", 129)}},
		"Journal.Path or Journal.Store, not": {Durability: Atomic, Journal: JournalOptions{Path: filepath.Join(dir, "both")}},
		"needs Journal.Path or Journal.Stor": {Durability: Atomic},
		"pages of 2097152 bytes need a budg": {PageSize: MaxPageSize, Durability: Atomic, Journal: JournalOptions{Path: filepath.Join(dir, "large"), ID: "x"}},
		"MaxResident 5 is less than four pa": {MaxResident: 5},
		"MinResident 40000 is more than Max": {MinResident: 40000, MaxResident: 20000},
		"MinResident 262144 is more than th": {MinResident: 64 * FrameSize},
	} {
		s := &closings{Store: store.NewMemory(8 * FrameSize)}
		j := &closings{Store: store.NewMemory(0)}
		withStore := !strings.HasPrefix(want, "needs") && o.Journal.ID == "" && o.Journal.Limit == 0
		if withStore {
			o.Journal.Store = j
		}
		_, err := p.Map(s, o)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "Map memory") {
			t.Errorf("%q: %v", want, err)
		}
		if s.n != 1 || withStore && j.n != 1 {
			t.Errorf("%q: the store was closed %d times, the journal's %d", want, s.n, j.n)
		}
	}
	if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
		t.Errorf("%v is left, %v", left, err)
	}
}

// A store cannot be its own journal.
func TestMapRefusesAStoreAsItsJournal(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	s := &closings{Store: store.NewMemory(8 * FrameSize)}
	_, err := p.Map(s, RegionOptions{Durability: Atomic, Journal: JournalOptions{Store: s}})
	if err == nil || !strings.Contains(err.Error(), "own store") || s.n != 1 {
		t.Errorf("%v; closed %d times", err, s.n)
	}
}

// Map owns the store also when the journal is somebody else's: the file can be opened
// again. A store that is mapped already is left alone.
func TestMapOwnsTheStoreWhoseJournalIsInUse(t *testing.T) {
	needProtection(t)
	p := newPager(t, Options{Budget: 64 * FrameSize})
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, make([]byte, 8*FrameSize), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := store.OpenFile(name+".journal", store.FileOptions{Create: true, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for range 2 {
		s, err := store.OpenFile(name, store.FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Map(s, RegionOptions{Durability: Atomic}); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), ".journal is locked") {
			t.Fatal(err)
		}
	}
	s := &closings{Store: store.NewMemory(8 * FrameSize)}
	r, err := p.Map(s, RegionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []RegionOptions{{}, {PageSize: 1}, {Durability: Atomic, Journal: JournalOptions{Store: s}}} {
		if _, err := p.Map(s, o); !errors.Is(err, ErrBusy) || s.n != 0 {
			t.Errorf("mapped twice: %v; closed %d times", err, s.n)
		}
	}
	if err := r.Close(); err != nil || s.n != 1 {
		t.Errorf("%v; closed %d times", err, s.n)
	}
}

// sharesNothing is a policy that cannot be compared: nobody can know it again.
type sharesNothing struct {
	evict.Policy
	notes []string
}

// A policy knows pages by their numbers, and is called by one region's pager at a
// time: one that a region has cannot be another's until that is closed.
func TestMapRefusesAPolicyThatIsInUse(t *testing.T) {
	p, q := newPager(t, Options{Budget: 64 * FrameSize}), newPager(t, Options{Budget: 64 * FrameSize})
	pol := evict.NewS3FIFO()
	r, err := p.Map(store.NewMemory(8*FrameSize), RegionOptions{Evict: pol})
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []*Pager{p, q} {
		s := &closings{Store: store.NewMemory(8 * FrameSize)}
		if _, err := other.Map(s, RegionOptions{Evict: pol}); !errors.Is(err, ErrBusy) || s.n != 1 {
			t.Errorf("a policy in two regions: %v; store closed %d times", err, s.n)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	// Nor does a Map that fails for something else keep it.
	if _, err := q.Map(store.NewMemory(0), RegionOptions{Evict: pol}); err == nil || errors.Is(err, ErrBusy) {
		t.Errorf("an empty store: %v", err)
	}
	if _, err := q.Map(store.NewMemory(8*FrameSize), RegionOptions{Evict: pol}); err != nil {
		t.Errorf("the policy is free: %v", err)
	}
	for range 2 {
		if _, err := p.Map(store.NewMemory(8*FrameSize), RegionOptions{Evict: sharesNothing{Policy: evict.NewFIFO()}}); err != nil {
			t.Errorf("a value of its own: %v", err)
		}
	}
}

// A context that is nil is an error, and leaves nothing behind that Close would wait for.
func TestNilContext(t *testing.T) {
	needProtection(t)
	p := newPager(t, Options{Budget: 64 * FrameSize})
	for name, o := range map[string]RegionOptions{
		"InPlace": {}, "ReadOnly": {ReadOnly: true}, "Atomic": {Durability: Atomic, Journal: JournalOptions{Store: store.NewMemory(0)}},
	} {
		r, err := p.Map(store.NewMemory(64*FrameSize), o)
		if err != nil {
			t.Fatal(err)
		}
		var none context.Context
		errs := map[string]error{
			"AcquireV":  r.AcquireV(none, []Range{{Off: 0, Len: 1}}, make([]Pin, 1)),
			"View":      r.View(none, func([]byte) error { return nil }),
			"a nil fn":  r.View(context.Background(), nil),
			"SyncRange": r.SyncRange(none, 0, 1),
		}
		_, errs["Acquire"] = r.Acquire(none, 0, 1)
		if !o.ReadOnly {
			_, errs["AcquireWrite"] = r.AcquireWrite(none, FrameSize, 1)
			errs["Update"] = r.Update(none, func([]byte) error { return nil })
			errs["Sync"] = r.Sync(none)
			errs["Resize"] = r.Resize(none, 5)
			errs["Discard"] = r.Discard(none, 0, 5)
			op, err := r.SyncEventfd(0, r.Len(), -1)
			if err != nil {
				t.Fatal(err)
			}
			errs["SyncOp.Wait"] = op.Wait(none)
		}
		if o.Durability == Atomic {
			errs["Commit"] = r.Commit(none)
			errs["Pager.Commit"] = p.Commit(none, r)
			errs["Commit of nil"] = p.Commit(context.Background(), nil)
		}
		l, err := r.LockEventfd(0, 1, -1)
		if err != nil {
			t.Fatal(err)
		}
		errs["Lock.Wait"] = l.Wait(none)
		l.Unlock()
		for what, err := range errs {
			if err == nil || !strings.Contains(err.Error(), "nil") && !errors.Is(err, ErrNotSupported) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The options of New are refused by name, too.
func TestNewRefusesOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"QueueDepth 40000 is not from 0 to 32768": {QueueDepth: 40000},
		"QueueDepth -1 is not":                    {QueueDepth: -1},
		"EvictBatch 257 is not from 0 to 256":     {EvictBatch: 257},
		"StallLimit -1s is negative":              {StallLimit: -time.Second},
		"budget of -1 bytes":                      {Budget: -1},
		"no engine":                               {Engine: aio.Kind(99)},
		"unknown park mode 99":                    {Park: 99},
	} {
		if p, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
			if err == nil {
				p.Close()
			}
		}
	}
}

// bySlice is a store that cannot be compared; the type of valued can, a value of it perhaps not.
type (
	bySlice []store.Store
	valued  struct{ store.Store }
)

func (b bySlice) Size() int64                       { return b[0].Size() }
func (b bySlice) BlockSize() int                    { return b[0].BlockSize() }
func (b bySlice) Writable() bool                    { return b[0].Writable() }
func (b bySlice) String() string                    { return b[0].String() }
func (b bySlice) Kernel() (store.Kernel, bool)      { return b[0].Kernel() }
func (b bySlice) Start(e aio.Engine, ops []*aio.Op) { b[0].Start(e, ops) }
func (b bySlice) Truncate(size int64) error         { return b[0].Truncate(size) }
func (b bySlice) Discard(off, n int64) error        { return b[0].Discard(off, n) }
func (b bySlice) Close() error                      { return b[0].Close() }

// A journal's store has one region, as the region's own has: two that write to one would
// each destroy what the other has acknowledged.
func TestJournalOfAnotherRegion(t *testing.T) {
	needProtection(t)
	p := newPager(t, Options{Budget: 64 * FrameSize})
	journal := &closings{Store: store.NewMemory(8192)}
	o := RegionOptions{Durability: Atomic, Journal: JournalOptions{Store: journal, ID: "x"}}
	r, err := p.Map(store.NewMemory(8*FrameSize), o)
	if err != nil {
		t.Fatal(err)
	}
	second := &closings{Store: store.NewMemory(8 * FrameSize)}
	if _, err := p.Map(second, o); !errors.Is(err, ErrBusy) {
		t.Errorf("Map with the journal of another region: %v", err)
	}
	if _, err := p.Map(journal, RegionOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("Map of another region's journal: %v", err)
	}
	if journal.n != 0 || second.n != 1 {
		t.Errorf("the journal was closed %d times, the second store %d times; want 0 and 1", journal.n, second.n)
	}
	fill(t, r, 1, 1)
	if err := r.Commit(context.Background()); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Map(journal, RegionOptions{Durability: 9}); errors.Is(err, ErrBusy) {
		t.Errorf("Map of a journal that was closed: %v", err)
	}
	r, err = p.Map(valued{bySlice{store.NewMemory(8 * FrameSize)}}, RegionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
