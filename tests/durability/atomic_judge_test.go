package durability

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
)

// images is what a loss of power leaves of the stores of a history.
type images struct {
	data, sums, js []byte // sums is nil without checksums
}

func (h *history) images(tick int, survives store.Survives) images {
	m := images{data: h.data.Image(tick, survives), js: h.js.Image(tick, survives)}
	if h.sums != nil {
		m.sums = h.sums.Image(tick, survives)
	}
	return m
}

func (m images) clone() images {
	return images{slices.Clone(m.data), slices.Clone(m.sums), slices.Clone(m.js)}
}

// mapped is a region over images, which it changes.
type mapped struct {
	*pager.Region
	data, sums, js *store.Slice
}

// mapImages maps them. With rec, what is done to them is recorded, and the
// recordings are returned in the order data, sums (if any), journal.
func (h *history) mapImages(p *pager.Pager, m images, readOnly bool, rec *store.Recorder) (mapped, []*store.Recording, error) {
	slice := store.NewSlice
	if readOnly {
		slice = store.NewReadOnlySlice
	}
	r := mapped{data: slice(m.data), js: slice(m.js)}
	var recorded []*store.Recording
	wrap := func(s *store.Slice) (store.Store, error) {
		if rec == nil {
			return s, nil
		}
		r, err := store.NewRecording(s, rec)
		recorded = append(recorded, r)
		return r, err
	}
	s, err := wrap(r.data)
	if err == nil && m.sums != nil {
		r.sums = slice(m.sums)
		var sums store.Store
		if sums, err = wrap(r.sums); err == nil {
			s, err = store.NewChecksummed(s, sums, store.ChecksumOptions{})
		}
	}
	if err != nil {
		return r, nil, err
	}
	o := h.opt
	if o.Journal.Store, err = wrap(r.js); err != nil {
		return r, nil, err
	}
	if o.ReadOnly = readOnly; readOnly {
		o.MaxSize = 0
	}
	r.Region, err = p.Map(s, o)
	return r, recorded, err
}

// read reads all of a region and closes it.
func (r mapped) read() ([]byte, error) {
	b := make([]byte, r.Len())
	_, err := r.ReadAt(b, 0)
	return b, errors.Join(err, r.Close())
}

// judge maps what a loss of power at the tick has left, and says what is wrong
// with it, and the last of the attempts that it may be. It changes m.
func (h *history) judge(p *pager.Pager, m images, tick int, readOnly bool) (seen int, err error) {
	var view []byte
	if readOnly {
		r, _, err := h.mapImages(p, m.clone(), true, nil)
		switch {
		case err == nil:
			view, err = r.read()
		case errors.Is(err, pager.ErrJournal): // cut in the middle of a page: says so
			err = nil
		}
		if err != nil {
			return 0, fmt.Errorf("read-only: %w", err)
		}
	}
	r, _, err := h.mapImages(p, m, false, nil)
	if err != nil {
		return 0, fmt.Errorf("Map: %w", err)
	}
	got, err := r.read()
	if err != nil {
		return 0, err
	}
	if view != nil && !bytes.Equal(view, got) {
		return 0, errors.New("a read-only Map shows something else than a writable one")
	}
	if r.sums != nil {
		if err := r.settled(p, got); err != nil {
			return 0, fmt.Errorf("after recovery: %w", err)
		}
	}
	last := 0
	seen = -1
	for i, a := range h.tried {
		if a.ack > 0 && a.ack <= tick || i == 0 {
			last = i
		}
		if a.begun <= tick && bytes.Equal(a.region, got) {
			seen = i
		}
	}
	switch {
	case seen < 0:
		return 0, fmt.Errorf("what is there (%d bytes) was never committed; acknowledged were %d commits; %w", len(got), last, nearest(h.tried, got))
	case seen < last:
		return 0, fmt.Errorf("commit %d is there, and %d was acknowledged", seen, last)
	}
	return seen, nil
}

// settled: once the region is closed, the data and their sums agree without the
// journal, and no block is open or torn.
func (r mapped) settled(p *pager.Pager, want []byte) error {
	c, err := store.NewChecksummed(store.NewReadOnlySlice(r.data.Bytes()), store.NewReadOnlySlice(r.sums.Bytes()), store.ChecksumOptions{})
	if err != nil {
		return err
	}
	if w := c.Wrong(); len(w) > 0 {
		return errors.Join(fmt.Errorf("the blocks at %v are wrong", w), c.Close())
	}
	plain, err := p.Map(c, pager.RegionOptions{})
	if err != nil {
		return err
	}
	got, err := mapped{Region: plain}.read()
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("the data store alone shows something else")
	}
	return err
}

// judgeAgain lets the power go once more, while the region recovers from m, and
// judges some of what that leaves. It says how many images it has looked at.
func (h *history) judgeAgain(p *pager.Pager, m images, tick int, rng *rand.Rand) (n int, err error) {
	rec := new(store.Recorder)
	r, stores, err := h.mapImages(p, m, false, rec)
	if err != nil {
		return 0, fmt.Errorf("Map: %w", err)
	}
	// Something new, so that the first commit after recovery is among it.
	_, err = r.WriteAt([]byte{byte(rng.Uint32())}, 0)
	if err == nil {
		err = r.Commit(context.Background())
	}
	acknowledged := rec.Now()
	now := make([]byte, r.Len())
	if err == nil {
		_, err = r.ReadAt(now, 0)
	}
	if err := errors.Join(err, r.Close()); err != nil {
		return 0, err
	}
	was := h.tried
	defer func() { h.tried = was }()
	for range 6 {
		at := rng.IntN(rec.Now() + 1)
		var survives store.Survives
		if rng.IntN(3) > 0 {
			survives = store.AtRandom(rng.Uint64())
		}
		again := images{data: stores[0].Image(at, survives), js: stores[len(stores)-1].Image(at, survives)}
		if m.sums != nil {
			again.sums = stores[1].Image(at, survives)
		}
		n++
		h.tried = []attempt{{region: now}}
		if at < acknowledged {
			h.tried = append(slices.Clone(was), h.tried...)
		}
		if _, err := h.judge(p, again, tick, at%2 == 0); err != nil {
			return n, fmt.Errorf("power lost again, at tick %d of %d after it came back: %w", at, rec.Now(), err)
		}
	}
	return n, nil
}
