//go:build linux

package pager

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/journal"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// Map maps a store, and owns it from then on, also when it fails. It takes no
// memory in proportion to the store, and no I/O, but where there is a journal: that
// of an Atomic region is made, or what a crash has left in it is brought to the
// store, which Map waits for.
//
// Errors: ErrBusy if the store, or Journal.Store, is another region's (then that is left
// alone), or RegionOptions.Evict is, or the journal's file is in use; ErrJournal, see there; ErrBudget for pages or a MinResident that the
// budget does not hold, or a MaxResident of less than four pages; ErrNotSupported for
// what this machine cannot do; ErrClosed; options that make no sense, by name.
func (p *Pager) Map(s store.Store, o RegionOptions) (*Region, error) {
	if s == nil {
		return nil, errors.Join(errors.New("pager: Map: the store is nil"), closeIf(o.Journal.Store))
	}
	j := o.Journal.Store
	if same(s, j) {
		j = nil // one store, to be taken once
	}
	if !take(s) {
		err := fmt.Errorf("pager: Map %s: the store is mapped already: %w", s, ErrBusy)
		if j != nil && take(j) {
			err = errors.Join(err, j.Close())
			letGo(j)
		}
		return nil, err
	}
	if j != nil && !take(j) {
		err := errors.Join(fmt.Errorf("pager: Map %s: Journal.Store is another region's already: %w", s, ErrBusy), s.Close())
		letGo(s)
		return nil, err
	}
	r, err := p.mapStore(s, o)
	if err != nil {
		err = errors.Join(err, s.Close())
		letGo(s)
		letGo(j)
		return nil, err
	}
	return r, nil
}

// mapped holds the stores, and the journals' stores, of all open regions: a region owns
// them, so one store has one region.
var mapped sync.Map

// take puts a store into mapped; false: it is there. A store that cannot be compared
// cannot be known again.
func take(s store.Store) bool {
	if !reflect.ValueOf(s).Comparable() {
		return true
	}
	_, taken := mapped.LoadOrStore(s, true)
	return !taken
}

// letGo undoes take, when the store is closed. s may be nil.
func letGo(s store.Store) {
	if s != nil && reflect.ValueOf(s).Comparable() {
		mapped.Delete(s)
	}
}

// policies holds the eviction policies of all open regions: calls of a policy are one
// after the other within a region's pager only, and it knows a page by its number.
var policies sync.Map

// takePolicy puts a policy into policies; false: it is there. What is not a pointer may
// be a value that has nothing of its own, and be equal to others by chance.
func takePolicy(e evict.Policy) bool {
	if !isPointer(e) {
		return true
	}
	_, taken := policies.LoadOrStore(e, true)
	return !taken
}

// letGoPolicy undoes takePolicy. e may be nil.
func letGoPolicy(e evict.Policy) {
	if isPointer(e) {
		policies.Delete(e)
	}
}

// isPointer: e is a pointer to something, so that another that is equal is the same.
func isPointer(e evict.Policy) bool {
	t := reflect.TypeOf(e)
	return t != nil && t.Kind() == reflect.Pointer && t.Elem().Size() > 0
}

// same: two stores are one. t may be nil.
func same(s, t store.Store) bool {
	return t != nil && reflect.ValueOf(s).Comparable() && reflect.ValueOf(t).Comparable() && s == t
}

func closeIf(s store.Store) error {
	if s == nil {
		return nil
	}
	return s.Close()
}

func (p *Pager) mapStore(s store.Store, o RegionOptions) (r *Region, err error) {
	if o.PageSize == 0 {
		o.PageSize = FrameSize
	}
	err = checkOptions(s, &o)
	if err == nil {
		err = checkWrite(s, &o)
	}
	if err == nil && o.HugePages && (!o.ReadOnly || o.PageSize != MaxPageSize) {
		err = fmt.Errorf("HugePages are for read-only regions with pages of %d bytes", MaxPageSize)
	}
	if err == nil {
		err = p.checkFits(&o)
	}
	if err == nil && p.closed.Load() {
		err = ErrClosed
	}
	if err == nil && !takePolicy(o.Evict) {
		err = fmt.Errorf("RegionOptions.Evict is another region's: %w", ErrBusy)
	}
	if err != nil {
		err = fmt.Errorf("pager: Map %s: %w", s, err)
		if !same(s, o.Journal.Store) {
			err = errors.Join(err, closeIf(o.Journal.Store))
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			letGoPolicy(o.Evict)
		}
	}()
	j, remove, made, err := p.openJournal(s, &o, o.PageSize)
	if err != nil {
		return nil, err
	}
	r, err = p.mapRegion(s, o, o.PageSize, j, remove)
	if err != nil && j != nil {
		err = errors.Join(err, closeEmpty(j, cmp.Or(remove, made))) // what was in it has been replayed
	}
	return r, err
}

// checkOptions finds what makes no sense whatever the machine, before anything is
// made or changed.
func checkOptions(s store.Store, o *RegionOptions) error {
	ps, w, jo := o.PageSize, &o.Writeback, &o.Journal
	switch {
	case ps < FrameSize || ps > MaxPageSize || ps&(ps-1) != 0:
		return fmt.Errorf("PageSize %d is not a power of two from %d to %d", ps, FrameSize, MaxPageSize)
	case s.BlockSize() > ps:
		return fmt.Errorf("pages of %d bytes are smaller than the store's blocks of %d", ps, s.BlockSize())
	case o.Durability > Atomic:
		return fmt.Errorf("Durability %d is neither InPlace nor Atomic", o.Durability)
	case o.OnReadError > Wait:
		return fmt.Errorf("OnReadError %d is neither Fault nor Wait", o.OnReadError)
	case !(w.DirtyShare >= 0 && w.DirtyShare <= 1): // also NaN
		return fmt.Errorf("Writeback.DirtyShare %v is not from 0 to 1", w.DirtyShare)
	case jo.Path != "" && jo.Store != nil:
		return errors.New("the journal is either at Journal.Path or Journal.Store, not both")
	case same(s, jo.Store):
		return errors.New("Journal.Store is the region's own store")
	case len(jo.ID) > journal.MaxID:
		return fmt.Errorf("Journal.ID has %d bytes, more than %d", len(jo.ID), journal.MaxID)
	}
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"MaxSize", o.MaxSize}, {"MinResident", o.MinResident}, {"MaxResident", o.MaxResident}, {"SpillLimit", o.SpillLimit},
		{"Writeback.Rate", w.Rate}, {"Journal.Limit", jo.Limit}, {"Retry.Pause", int64(o.Retry.Pause)}, {"Retry.MaxPause", int64(o.Retry.MaxPause)},
	} {
		if n.value < 0 {
			return fmt.Errorf("%s %d is negative", n.name, n.value)
		}
	}
	return nil
}

// checkWrite settles whether the region is writable.
func checkWrite(s store.Store, o *RegionOptions) error {
	switch {
	case o.Durability == Atomic && o.Private:
		return errors.New("a region cannot be both Private and Atomic")
	case o.Durability == Atomic && o.Writeback.BeforeWrite != nil:
		return errors.New("BeforeWrite is for a log of one's own, an Atomic region has its own")
	case o.Private:
		if o.ReadOnly {
			return errors.New("a region cannot be both Private and ReadOnly")
		}
		if sp.fd >= 0 && !sp.wp {
			return unsupported("private regions need write-protect faults")
		}
	case !s.Writable():
		o.ReadOnly = true
	}
	if o.Durability == Atomic && !o.ReadOnly && sp.fd >= 0 && !sp.wp {
		return unsupported("atomic regions need write-protect faults")
	}
	return nil
}

// checkFits settles whether the budget has room for such a region.
func (p *Pager) checkFits(o *RegionOptions) error {
	ps, budget := int64(o.PageSize), p.budget.Load()<<frameShift
	switch {
	case budget < 4*ps:
		return fmt.Errorf("%w: pages of %d bytes need a budget of %d", ErrBudget, ps, 4*ps)
	case o.MaxResident > 0 && o.MaxResident < 4*ps:
		return fmt.Errorf("%w: MaxResident %d is less than four pages of %d", ErrBudget, o.MaxResident, ps)
	case o.MaxResident > 0 && o.MinResident > o.MaxResident:
		return fmt.Errorf("%w: MinResident %d is more than MaxResident %d", ErrBudget, o.MinResident, o.MaxResident)
	case o.MinResident > p.pinnable.Load()<<frameShift:
		return fmt.Errorf("%w: MinResident %d is more than the %d that the budget can keep for one", ErrBudget, o.MinResident, p.pinnable.Load()<<frameShift)
	}
	return nil
}

// mapRegion makes the region, when its store is as it was left.
func (p *Pager) mapRegion(s store.Store, o RegionOptions, ps int, j *journal.Journal, remove string) (*Region, error) {
	size := s.Size()
	if j != nil && o.ReadOnly {
		size = j.Overlay().Length
	}
	if o.MaxSize != 0 && o.MaxSize < size {
		return nil, fmt.Errorf("pager: Map %s: MaxSize %d is less than the size %d", s, o.MaxSize, size)
	}
	if size == 0 && o.MaxSize == 0 {
		return nil, fmt.Errorf("pager: Map %s: the store is empty, and MaxSize does not let it grow", s)
	}
	shift := uint32(0)
	for 1<<shift < ps {
		shift++
	}
	fpp := int64(1) << (shift - frameShift)
	r := &Region{p: p, shift: shift, fpp: fpp, name: s.String(), store: s, opt: o, mapSize: size, begun: time.Now(), done: make(chan struct{})}
	r.maxFrames = o.MaxResident >> frameShift
	reach := max(size, o.MaxSize)
	if err := sp.open(r, reach, shift, p.opt.Park); err != nil {
		return nil, err
	}
	d := r.d
	r.base, r.dir, r.scarce = bare.Ptr(d.base), d.dir, &p.w.scarce
	d.pages = (uint64(reach) + 1<<shift - 1) >> shift
	d.length, d.stored = uint64(size), uint64(s.Size())
	if err := r.openSides(reach, j, remove); err != nil {
		sp.release(r)
		return nil, err
	}
	d.words = p.w
	d.setRetry(o.Retry)
	d.minResident = o.MinResident >> frameShift
	r.rawErr, r.posts = r.setFlags(o), r.mayPost()
	pol := o.Prefetch
	if pol == nil {
		pol = prefetch.Readahead(prefetch.ReadaheadOptions{})
	}
	r.setPolicy(pol)
	r.domain = p.shared
	if o.Evict != nil || r.maxFrames > 0 || fpp != 1 {
		r.domain = &domain{policy: o.Evict, region: r}
		if o.Evict == nil {
			r.domain.policy = evict.NewS3FIFO()
		} else if p.opt.WedgeLimit > 0 {
			r.domain.policy = &watchedEvict{o.Evict, r}
		}
		r.domain.policy.SetCapacity(p.capacityOf(r.domain))
		p.lockEvict()
		p.domains = append(p.domains, r.domain)
		p.evictMu.Unlock()
	}
	p.mu.Lock()
	if p.closed.Load() {
		p.mu.Unlock()
		p.forget(r)
		if r.atomic != nil {
			r.atomic.stopAtomic()
		}
		sp.release(r)
		return nil, errors.Join(ErrClosed, r.closeSide(r.d.pages))
	}
	p.regions[r] = struct{}{}
	p.mu.Unlock()
	p.setLargestPage(fpp)
	sp.regions.Store(d.index, r)
	atomic.StoreUint32(&d.state, descLive)
	return r, nil
}

// openSides opens the store beside the region's own, if it has one: the journal, or a
// spill file.
func (r *Region) openSides(reach int64, j *journal.Journal, remove string) (err error) {
	r.journal = j
	switch {
	case r.opt.Private:
		err = r.openSpill(reach)
	case j != nil:
		err = r.openSide(j, remove)
	}
	if err != nil {
		return errors.Join(err, r.closeSide(r.d.pages))
	}
	return nil
}

// setFlags tells the handler what kind of region it is; the result is Raw's.
func (r *Region) setFlags(o RegionOptions) error {
	d := r.d
	if o.ReadOnly {
		d.flags |= descReadOnly
		r.lends = r.fpp<<frameShift <= loanBytes
		if sp.moves && o.HugePages {
			d.flags |= descMoves
			r.p.moves.Store(true)
		}
	}
	if r.opt.Prefetch != prefetch.None() {
		d.flags |= descNotices
	}
	if o.OnReadError == Wait {
		d.flags |= descWaitError
	}
	if r.p.opt.Park == coro.Restart {
		d.flags |= descRestart
	}
	if sp.rawErr != nil {
		return sp.rawErr
	}
	if !sp.wp && !o.ReadOnly {
		return unsupported("raw access to a writable region needs write-protect faults")
	}
	if r.p.opt.Park == coro.Restart {
		return unsupported("raw access is off: faults restart closures (park mode restart)")
	}
	k, ok := r.store.Kernel()
	if !ok {
		return fmt.Errorf("%w: store %s has no kernel form", ErrCannotPark, r.name)
	}
	if o.Verify != nil || o.Seal != nil {
		return fmt.Errorf("%w: the region has hooks on the way of its pages", ErrCannotPark)
	}
	if k.FD >= 0 {
		d.fd, d.fdOff = int32(k.FD), uint64(k.Off)
	} else {
		d.mem = unsafe.Pointer(unsafe.SliceData(k.Mem))
	}
	if r.journal != nil {
		k, ok := r.write.side.Kernel()
		if !ok {
			return fmt.Errorf("%w: journal %s has no kernel form", ErrCannotPark, r.write.side)
		}
		if k.FD >= 0 {
			d.sideFD = int32(k.FD)
			d.sideOff += uint64(k.Off)
		} else {
			d.sideMem = unsafe.Pointer(unsafe.SliceData(k.Mem))
		}
	}
	if k.Sums != nil {
		d.sums = unsafe.Pointer(unsafe.SliceData(k.Sums))
	}
	d.flags |= descRaw
	// BeforeWrite, and the writing of checksums, are Go code on the way out
	// only: without a P pages can still be read, but not written.
	if !o.ReadOnly && !o.Writeback.NoSteal && o.Writeback.BeforeWrite == nil && (d.sums == nil || d.sideMap != nil) {
		d.flags |= descServeDirty
	}
	return nil
}
