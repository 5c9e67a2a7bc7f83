package limits

import (
	"context"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// small makes stores of a few pages that cost no mapping and no descriptor
// each: all show the same memory.
type small struct{ memory store.Store }

type share struct {
	store.Store
	_ byte // a store of its own, with an address of its own
}

func (*share) Close() error   { return nil }
func (*share) Writable() bool { return false }

func (s small) store() store.Store { return &share{Store: s.memory} }

func newSmall(t testing.TB, pages int64) small {
	s := fixture.Memory(t, pages*page, 1)
	t.Cleanup(func() { _ = s.Close() })
	return small{s}
}

// readOnly is how they are mapped.
var readOnly = pager.RegionOptions{ReadOnly: true, Prefetch: prefetch.None()}

// TestManyRegions opens regions by the hundred thousand: they are carved out
// of few mappings, and all of them work.
func TestManyRegions(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2, Deadline: 5 * time.Minute}) {
		return
	}
	const n = 100_000
	p := fixture.Pager(t, pager.Options{Budget: 4 * mib})
	s := newSmall(t, 2)
	open := func() *pager.Region {
		r, err := p.Map(s.store(), readOnly)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	list := make([]*pager.Region, 0, n)
	for range 1000 {
		list = append(list, open())
	}
	fixture.NeedRaw(t, list[0])
	before := fixture.Measure(t)
	for len(list) < n {
		list = append(list, open())
	}
	after := fixture.Measure(t)
	// A mapping each would be 99,000 more. The heap needs some for itself.
	if after.Mappings > before.Mappings+200 || after.Descriptors != before.Descriptors || after.Goroutines > before.Goroutines+10 {
		t.Errorf("1,000 regions: %v; %d regions: %v", before, n, after)
	}
	if got := p.Stats().Regions; got != n {
		t.Errorf("Stats.Regions is %d, want %d", got, n)
	}
	for i := 0; i < n; i += 7 {
		off := int64(i % (2 * page))
		if got, want := list[i].Bytes()[off], fixture.Byte(off, 1); got != want {
			t.Fatalf("region %d at %d: %#x, want %#x", i, off, got, want)
		}
	}
	if m := fixture.Measure(t); m.Mappings > after.Mappings+200 {
		t.Errorf("after touching them: %v", m)
	}
	if s := p.Stats(); s.Resident > s.Budget || s.ReadBytes <= 10*s.Budget {
		t.Errorf("%d bytes resident, %d read under a budget of %d", s.Resident, s.ReadBytes, s.Budget)
	}
	start := time.Now()
	for _, r := range list {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v; Close of all took %v", after, time.Since(start))
	if got := p.Stats(); got.Regions != 0 || got.Resident != 0 {
		t.Errorf("after Close: %d regions, %d bytes resident", got.Regions, got.Resident)
	}
}

// TestOpenAndCloseLeaksNothing: round after round of everything that opens,
// works and closes.
func TestOpenAndCloseLeaksNothing(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2, Deadline: 5 * time.Minute}) {
		return
	}
	rounds := 3000
	if fixture.Torture() {
		rounds = 100_000
	}
	p := fixture.Pager(t, pager.Options{Budget: 1 * mib})
	path := fixture.File(t, 5*page+1, 1)
	s := newSmall(t, 3)
	ctx := context.Background()
	round := func(i int) {
		st := s.store()
		if i%4 == 0 {
			st = fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true})
		}
		r, err := p.Map(st, readOnly)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if i%3 != 0 {
			off := int64(i) % r.Len()
			pin, err := r.Acquire(ctx, off, 1)
			if err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			if pin.Bytes()[0] != fixture.Byte(off, 1) {
				t.Fatalf("round %d: the wrong byte at %d", i, off)
			}
			pin.Release()
		}
		if err := r.Close(); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	for i := range 300 {
		round(i)
	}
	before := fixture.Measure(t)
	rss := fixture.Status(t, "VmRSS")
	for i := range rounds {
		round(i)
	}
	before.NoGrowth(t, 8)
	if now := fixture.Status(t, "VmRSS"); now > rss+32*1024 {
		t.Errorf("memory grew from %d to %d KiB in %d rounds", rss, now, rounds)
	}
	if s := p.Stats(); s.Regions != 0 || s.Resident != 0 || s.Pinned != 0 {
		t.Errorf("left over: %d regions, %d bytes resident, %d pinned", s.Regions, s.Resident, s.Pinned)
	}
}

// TestPagersLeakNothing is the same for whole pagers.
func TestPagersLeakNothing(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2, Deadline: 3 * time.Minute}) {
		return
	}
	rounds := 200
	if fixture.Torture() {
		rounds = 2000 // tens of ms each: io_destroy waits until all processors have passed
	}
	s := newSmall(t, 100)
	round := func(i int) {
		p, err := pager.New(pager.Options{Budget: 16 * page})
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		r, err := p.Map(s.store(), pager.RegionOptions{ReadOnly: true})
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		b := make([]byte, 50*page)
		if _, err := r.ReadAt(b, 3); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := fixture.Check(b, 3, 1); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if i%2 == 0 { // Pager.Close closes what is open
			if err := r.Close(); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	for i := range 20 {
		round(i)
	}
	before := fixture.Measure(t)
	rss := fixture.Status(t, "VmRSS")
	for i := range rounds {
		round(i)
	}
	before.NoGrowth(t, 8)
	if now := fixture.Status(t, "VmRSS"); now > rss+32*1024 {
		t.Errorf("memory grew from %d to %d KiB in %d rounds", rss, now, rounds)
	}
}

// TestMapAndCloseIsCheap: 50 µs without I/O, of which BenchmarkMapClose shows a
// tenth. The machine may be busy, so the best of many counts.
func TestMapAndCloseIsCheap(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	best := time.Hour
	for try := 0; try < 50 && best > 50*time.Microsecond; try++ {
		const n = 100
		p := fixture.Pager(t, pager.Options{Budget: mib})
		s := newSmall(t, 2)
		start := time.Now()
		for range n {
			mapClose(t, p, s.store())
		}
		best = min(best, time.Since(start)/n)
	}
	t.Logf("%v", best)
	if best > 50*time.Microsecond && !child.Race {
		t.Errorf("Map and Close take %v at best", best)
	}
}

func mapClose(t testing.TB, p *pager.Pager, s store.Store) {
	r, err := p.Map(s, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkMapClose: the aim is 50 µs.
func BenchmarkMapClose(b *testing.B) {
	p := fixture.Pager(b, pager.Options{Budget: mib})
	s := newSmall(b, 2)
	for b.Loop() {
		mapClose(b, p, s.store())
	}
}

// BenchmarkMapCloseTerabyte: size must not matter.
func BenchmarkMapCloseTerabyte(b *testing.B) {
	p := fixture.Pager(b, pager.Options{Budget: mib})
	path := sparse(b, tib)
	for b.Loop() {
		mapClose(b, p, fixture.OpenFile(b, path, store.FileOptions{ReadOnly: true}))
	}
}
