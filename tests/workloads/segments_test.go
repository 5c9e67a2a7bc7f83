package workloads

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestManySegments is a store as databases build it: records are appended to a
// segment, a full one is sealed and mapped read-only, readers look records up
// in all of them, and now and then some are merged into a new one and removed.
// Hundreds of regions come and go under one budget while others are read.
func TestManySegments(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	if child.Isolate(t, child.Options{Procs: 2, Deadline: 30 * time.Minute}) {
		return
	}
	merges := 16
	if fixture.Torture() {
		merges = 20000
	}
	before := fixture.Measure(t)
	p, err := pager.New(pager.Options{Budget: 96 * page})
	if err != nil {
		t.Fatal(err)
	}
	s := &segmented{dir: t.TempDir(), p: p, where: map[uint64]place{}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 5)
	for i := range 4 {
		wg.Go(func() {
			g := rand.New(rand.NewPCG(seed, uint64(i)))
			for ctx.Err() == nil && errs[i] == nil {
				errs[i] = s.lookUp(g)
			}
			cancel() // the first to fail ends it
		})
	}
	wg.Go(func() {
		g := rand.New(rand.NewPCG(seed, 99))
		for s.merged < merges && ctx.Err() == nil && errs[4] == nil { // only this goroutine changes it
			errs[4] = s.fill(g)
			if len(s.list()) > 2*mergeSegments && errs[4] == nil {
				errs[4] = s.merge(g)
			}
		}
		cancel()
	})
	wg.Wait()
	stats := p.Stats()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("seed %d: %v\n%v", seed, err, stats)
	}
	t.Logf("%d records in %d segments, %d opened and %d merged away; %d reads, %d evictions", len(s.where), len(s.list()), s.opened, s.merged, stats.Reads, stats.Evictions)
	if stats.PeakResident > 96*page || s.merged < merges {
		t.Errorf("%d bytes resident at most, %d segments merged", stats.PeakResident, s.merged)
	}
	for _, seg := range s.list() {
		if err := seg.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	before.NoGrowth(t, 12)
}

const (
	recordSize    = 100 // not a divisor of a page
	segmentSize   = 8 * page
	perSegment    = segmentSize / recordSize
	mergeSegments = 8
)

// segmented is the store.
type segmented struct {
	dir            string
	p              *pager.Pager
	mu             sync.RWMutex // guards what follows
	segments       []*segment
	where          map[uint64]place // of each key, the newest record
	next           uint64
	opened, merged int
}

type segment struct {
	*pager.Region
	name string
	refs sync.RWMutex // readers keep it from being closed
	gone bool
}

type place struct {
	s   *segment
	off int64
}

func (s *segmented) list() []*segment {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return append([]*segment(nil), s.segments...)
}

// record fills b with the record of a key.
func record(b []byte, key uint64) {
	fixture.Fill(b, 0, key)
	binary.LittleEndian.PutUint64(b, key)
}

// create makes a segment of the keys, syncs and seals it.
func (s *segmented) create(keys []uint64) (*segment, error) {
	s.mu.Lock()
	s.opened++
	name := filepath.Join(s.dir, fmt.Sprintf("segment-%d", s.opened))
	s.mu.Unlock()
	f, err := store.OpenFile(name, store.FileOptions{Create: true, Size: segmentSize})
	if err != nil {
		return nil, err
	}
	w, err := s.p.Map(f, pager.RegionOptions{})
	if err != nil {
		return nil, err
	}
	b := make([]byte, recordSize)
	for i, key := range keys {
		record(b, key)
		if i%3 == 0 && w.Raw() == nil {
			err = pager.Guard(func() error { copy(w.Bytes()[i*recordSize:], b); return nil })
		} else {
			_, err = w.WriteAt(b, int64(i*recordSize))
		}
		if err != nil {
			return nil, err
		}
	}
	if err := w.Sync(context.Background()); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if f, err = store.OpenFile(name, store.FileOptions{ReadOnly: true}); err != nil {
		return nil, err
	}
	r, err := s.p.Map(f, pager.RegionOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	seg := &segment{Region: r, name: name}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments = append(s.segments, seg)
	for i, key := range keys {
		s.where[key] = place{seg, int64(i * recordSize)}
	}
	return seg, nil
}

// fill appends a segment of new records, some of them of keys that are there.
func (s *segmented) fill(g *rand.Rand) error {
	keys := make([]uint64, perSegment)
	s.mu.Lock()
	for i := range keys {
		if s.next > 0 && g.IntN(4) == 0 {
			keys[i] = g.Uint64N(s.next)
		} else {
			keys[i] = s.next
			s.next++
		}
	}
	s.mu.Unlock()
	_, err := s.create(keys)
	return err
}

// merge moves what is live in some segments to new ones and removes them.
func (s *segmented) merge(g *rand.Rand) error {
	all := s.list()
	first := g.IntN(len(all) - mergeSegments)
	old := map[*segment]bool{}
	for _, seg := range all[first : first+mergeSegments] {
		old[seg] = true
	}
	var live []uint64
	s.mu.RLock()
	for key, at := range s.where {
		if old[at.s] {
			live = append(live, key)
		}
	}
	s.mu.RUnlock()
	for len(live) > 0 {
		n := min(len(live), perSegment)
		for _, key := range live[:n] { // as a real one would: read before it is written anew
			if err := s.check(key); err != nil {
				return err
			}
		}
		if _, err := s.create(live[:n]); err != nil {
			return err
		}
		live = live[n:]
	}
	s.mu.Lock()
	kept := s.segments[:0]
	for _, seg := range s.segments {
		if !old[seg] {
			kept = append(kept, seg)
		}
	}
	s.segments = kept
	s.merged += len(old)
	s.mu.Unlock()
	for seg := range old {
		seg.refs.Lock()
		seg.gone = true
		err := seg.Close()
		seg.refs.Unlock()
		if err := errors.Join(err, os.Remove(seg.name)); err != nil {
			return err
		}
	}
	return nil
}

// lookUp reads a few records, in one of the ways in.
func (s *segmented) lookUp(g *rand.Rand) error {
	s.mu.RLock()
	n := s.next
	if len(s.where) == 0 {
		n = 0
	}
	s.mu.RUnlock()
	if n == 0 {
		time.Sleep(time.Millisecond)
		return nil
	}
	for range 20 {
		if err := s.check(min(g.Uint64N(n), g.Uint64N(n))); err != nil { // old keys are asked for more
			return err
		}
	}
	return nil
}

// check reads the record of a key and compares it.
func (s *segmented) check(key uint64) error {
	for {
		s.mu.RLock()
		at, ok := s.where[key]
		s.mu.RUnlock()
		if !ok {
			return nil // its segment is being written
		}
		at.s.refs.RLock()
		if at.s.gone { // merged away; it is elsewhere by now
			at.s.refs.RUnlock()
			continue
		}
		err := at.s.compare(key, at.off)
		at.s.refs.RUnlock()
		return err
	}
}

func (seg *segment) compare(key uint64, off int64) error {
	want := make([]byte, recordSize)
	record(want, key)
	ctx := context.Background()
	var err error
	switch how := (key + uint64(off)) % 4; {
	case how == 0 && seg.Raw() == nil:
		err = pager.Guard(func() error { return fixture.Compare(seg.Bytes()[off:off+recordSize], want, off) })
	case how == 1:
		var pin pager.Pin
		if pin, err = seg.Acquire(ctx, off, recordSize); err == nil {
			err = fixture.Compare(pin.Bytes(), want, off)
			pin.Release()
		}
	case how == 2 && seg.Raw() == nil:
		err = seg.View(ctx, func(mem []byte) error { return fixture.Compare(mem[off:off+recordSize], want, off) })
	default:
		b := make([]byte, recordSize)
		if _, err = seg.ReadAt(b, off); err == nil {
			err = fixture.Compare(b, want, off)
		}
	}
	if err != nil {
		return fmt.Errorf("key %d in %s: %w", key, filepath.Base(seg.name), err)
	}
	return nil
}
