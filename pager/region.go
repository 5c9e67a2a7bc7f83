//go:build linux

package pager

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
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

// Region is memory over a store. Its methods may be called from any goroutine.
// A Region that is not closed stays open: the collector never closes it.
type Region struct {
	p      *Pager
	d      *desc
	at     addrRange
	base   unsafe.Pointer
	dir    unsafe.Pointer // d.dir, without the indirection
	scarce *uint32        // the pager's
	lends  bool           // read buffers to pins (lentpins.go) …
	posts  bool           // … and pages that are written whole to the store (posted.go)
	shift  uint32
	fpp    int64 // frames per page
	name   string
	store  store.Store
	opt    RegionOptions

	domain    *domain
	maxFrames int64 // MaxResident
	rawErr    error
	mapSize   int64 // when it was mapped
	begun     time.Time

	closing  atomic.Bool // no new calls
	gone     atomic.Bool // not even completions may touch it any more
	released atomic.Bool // the descriptor is not ours any more
	lastLen  int64       // for Len from then on
	draining atomic.Bool // no new faults either: the last View has ended

	// Hits read what is above: every miss writes here.
	_      [64]byte
	active atomic.Int64 // operations under way that are not hits
	_      [56]byte

	closeMu sync.Mutex
	closed  bool
	closeE  error
	done    chan struct{} // closed when Close has finished

	restarts atomic.Int64
	keeps    atomic.Bool // there has been a page whose frame is a buffer, see unmapped.go
	ahead    regionAhead
	copies   atomic.Int32 // misses in a row that were only ReadAt's and WriteAt's, up to unmappedAfter
	views    viewCounter
	write    writeState
	atomic   *atomicState     // nil: not Atomic, or read-only
	journal  *journal.Journal // of an Atomic region, or one that is read through it
}

var errRange = errors.New("out of range")

// enterFault is enter for faults, which are served as long as a View runs.
func (r *Region) enterFault() bool {
	r.active.Add(1)
	if r.draining.Load() {
		r.leave()
		return false
	}
	return true
}

// enterAlways is enter for what must be done as long as the region has pages.
func (r *Region) enterAlways() bool {
	r.active.Add(1)
	if r.gone.Load() {
		r.leave()
		return false
	}
	return true
}

// enter counts an operation that Close waits for. false: the region is closed.
func (r *Region) enter() bool {
	r.active.Add(1)
	if r.closing.Load() {
		r.leave()
		return false
	}
	return true
}

func (r *Region) leave() {
	r.active.Add(-1)
}

// Len is the size in bytes.
func (r *Region) Len() int64 {
	if r.released.Load() {
		return r.lastLen // the descriptor may be another region's by now
	}
	return int64(atomic.LoadUint64(&r.d.length))
}

// PageSize is the unit of paging in bytes.
func (r *Region) PageSize() int { return 1 << r.shift }

// Direct reports whether the store is read and written with O_DIRECT.
func (r *Region) Direct() bool {
	k, ok := r.store.Kernel()
	return ok && k.FD >= 0 && k.Direct
}

func (r *Region) pageCount() uint64 {
	return (uint64(r.Len()) + 1<<r.shift - 1) >> r.shift
}

// Bytes is the region's memory: len = cap = Len. It may be used by any
// goroutine at any time until Close, if Raw is nil. A touch of an absent page
// parks the goroutine in place where that works and blocks its thread
// elsewhere; a page that cannot be read is a Go fault (see Guard). Where there
// is no raw access at all (Raw says why), Bytes is nil if a touch could not
// even be noticed.
func (r *Region) Bytes() []byte {
	if sp.fd < 0 {
		return nil
	}
	n := r.Len()
	return unsafe.Slice((*byte)(r.base), n)[:n:n]
}

// Raw is nil if Bytes may be used by any code; else it says why not.
func (r *Region) Raw() error { return r.rawErr }

// fault wraps an error of a page.
func (r *Region) fault(op string, page uint64, err error) error {
	if errors.Is(err, ErrClosed) {
		return err
	}
	return &FaultError{Op: op, Store: r.name, Offset: int64(page << r.shift), Err: err}
}

// verify calls the hook.
func (r *Region) verify(page uint64, data []byte) (err error) {
	r.p.hook("RegionOptions.Verify", r, page, 1, func() { err = r.opt.Verify(int64(page), data) })
	return err
}

// seal calls the other one.
func (r *Region) seal(page uint64, data []byte) (err error) {
	r.p.hook("RegionOptions.Seal", r, page, 1, func() { err = r.opt.Seal(int64(page), data) })
	return err
}

// Map maps a store. It owns the store from then on, also when it fails.
// Mapping costs no I/O and no memory in proportion to the store.
func (p *Pager) Map(s store.Store, o RegionOptions) (*Region, error) {
	if s == nil {
		return nil, errors.New("pager: Map: the store is nil")
	}
	r, err := p.mapStore(s, o)
	if err != nil {
		if errors.Is(err, ErrBusy) {
			return nil, err // the store is somebody else's already
		}
		return nil, errors.Join(err, s.Close())
	}
	return r, nil
}

func (p *Pager) mapStore(s store.Store, o RegionOptions) (*Region, error) {
	ps := o.PageSize
	if ps == 0 {
		ps = FrameSize
	}
	if ps < FrameSize || ps > MaxPageSize || ps&(ps-1) != 0 {
		return nil, fmt.Errorf("pager: Map %s: page size %d is not a power of two from %d to %d", s, ps, FrameSize, MaxPageSize)
	}
	if bs := s.BlockSize(); bs > ps {
		return nil, fmt.Errorf("pager: Map %s: pages of %d bytes are smaller than the store's blocks of %d", s, ps, bs)
	}
	if err := checkWrite(s, &o); err != nil {
		return nil, err
	}
	if o.HugePages && (!o.ReadOnly || ps != MaxPageSize) {
		return nil, fmt.Errorf("pager: Map %s: HugePages are for read-only regions with pages of %d bytes", s, MaxPageSize)
	}
	j, remove, err := p.openJournal(s, &o, ps)
	if err != nil {
		return nil, err
	}
	r, err := p.mapRegion(s, o, ps, j, remove)
	if err != nil && j != nil {
		err = errors.Join(err, j.Close(context.Background()))
	}
	return r, err
}

// mapRegion makes the region, when its store is as it was left.
func (p *Pager) mapRegion(s store.Store, o RegionOptions, ps int, j *journal.Journal, remove string) (*Region, error) {
	size := s.Size()
	if j != nil && o.ReadOnly {
		size = j.Overlay().Length
	}
	if o.MaxSize < 0 || o.MinResident < 0 || o.MaxResident < 0 || o.SpillLimit < 0 {
		return nil, fmt.Errorf("pager: Map %s: negative size in options", s)
	}
	if o.MaxSize != 0 && o.MaxSize < size {
		return nil, fmt.Errorf("pager: Map %s: MaxSize %d is less than the size %d", s, o.MaxSize, size)
	}
	if o.Writeback.Rate < 0 || o.Writeback.DirtyShare < 0 || o.Writeback.DirtyShare > 1 {
		return nil, fmt.Errorf("pager: Map %s: Writeback.Rate %d or DirtyShare %v is out of range", s, o.Writeback.Rate, o.Writeback.DirtyShare)
	}
	if o.Durability > Atomic || o.OnReadError > Wait {
		return nil, fmt.Errorf("pager: Map %s: unknown Durability or OnReadError", s)
	}
	if size == 0 && o.MaxSize == 0 {
		return nil, fmt.Errorf("pager: Map %s: the store is empty, and MaxSize does not let it grow", s)
	}
	shift := uint32(0)
	for 1<<shift < ps {
		shift++
	}
	fpp := int64(1) << (shift - frameShift)
	if p.budget.Load() < 4*fpp {
		return nil, fmt.Errorf("%w: pages of %d bytes need a budget of %d", ErrBudget, ps, 4*ps)
	}
	r := &Region{p: p, shift: shift, fpp: fpp, name: s.String(), store: s, opt: o, mapSize: size, begun: time.Now(), done: make(chan struct{})}
	if o.MaxResident > 0 {
		if r.maxFrames = o.MaxResident >> frameShift; r.maxFrames < 4*fpp {
			return nil, fmt.Errorf("%w: MaxResident %d is less than four pages of %d", ErrBudget, o.MaxResident, ps)
		}
	}
	if o.MinResident > 0 && (o.MinResident>>frameShift > p.pinnable.Load() || o.MaxResident > 0 && o.MinResident > o.MaxResident) {
		return nil, fmt.Errorf("%w: MinResident %d is more than the budget leaves or MaxResident allows", ErrBudget, o.MinResident)
	}
	reach := max(size, o.MaxSize)
	if err := sp.open(r, reach, shift, p.opt.Park); err != nil {
		return nil, err
	}
	d := r.d
	r.base, r.dir, r.scarce = bare.Ptr(d.base), d.dir, &p.w.scarce
	d.pages = (uint64(reach) + 1<<shift - 1) >> shift
	d.length, d.stored = uint64(size), uint64(s.Size())
	if err := r.openWrite(reach, j, remove); err != nil {
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
		p.evictMu.Lock()
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
		return nil, errors.Join(ErrClosed, r.closeWrite())
	}
	p.regions[r] = struct{}{}
	p.mu.Unlock()
	p.setLargestPage(fpp)
	sp.regions.Store(d.index, r)
	atomic.StoreUint32(&d.state, descLive)
	return r, nil
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

// Close refuses new work, syncs a writable region, waits for pins and for
// running View and Update, ends every other wait with ErrClosed, and releases
// everything. Later touches of Bytes fault. A second Close waits for the first
// and returns its error.
func (r *Region) Close() error {
	r.closeMu.Lock()
	if r.closed {
		r.closeMu.Unlock()
		<-r.done
		return r.closeE
	}
	r.closed = true
	r.closeMu.Unlock()
	r.closeE = r.close()
	close(r.done)
	return r.closeE
}

func (r *Region) close() error {
	p, d := r.p, r.d
	syncErr := r.syncForClose()
	r.closing.Store(true)
	// Who waits for a page that cannot be read (OnReadError Wait) is told now.
	atomic.AndUint32(&d.flags, ^uint32(descWaitError))
	if a := r.atomic; a != nil {
		a.gate.end()
		a.wakeUp()
	}
	// No view may still run: it may fault, and its faults must be served.
	r.views.wait()
	if r.atomic != nil {
		r.atomic.stopAtomic()
	}
	r.draining.Store(true)
	p.dropJobs(r)
	p.drain(func() bool {
		if r.active.Load() == 0 {
			return true // nobody who waits: looking for them costs more than all the rest
		}
		p.emptyLine(r, ErrClosed)
		p.abandonAll(r, ErrClosed)
		return r.active.Load() == 0
	})
	p.drain(func() bool {
		p.dropHolds(0)
		return !r.pinned()
	})
	// Raw accesses from here on are faults.
	atomic.StoreUint32(&d.state, descClosing)
	p.drain(func() bool { return atomic.LoadUint32(&d.users) == 0 })
	// Nobody writes any more: what is dirty now is the last there is.
	if err := r.syncForClose(); err != nil && syncErr == nil {
		syncErr = err
	}
	r.evictAll()
	r.gone.Store(true)
	p.giveUpMarkers(r, math.MaxInt64) // that the fault server had taken over
	if r.keeps.Load() {
		p.unmapped.purge(d)
	}
	p.drain(func() bool { return r.active.Load() == 0 })
	p.shelf.drop(r)
	p.drops.forget(r)
	p.evictMu.Lock() // an eviction may still be giving spans back, or cooling
	p.evictMu.Unlock()
	p.forget(r)
	err := errors.Join(syncErr, r.closeJournal(), r.closeWrite(), r.store.Close())
	r.lastLen = r.Len()
	r.released.Store(true)
	sp.release(r)
	return err
}

// pinned: some page has pins.
func (r *Region) pinned() (yes bool) {
	if load64(&r.d.resident) > 0 {
		r.eachPage(func(_ uint64, w word) { yes = yes || w&pinMask != 0 })
	}
	return yes
}

// drain waits until done says so, for things that end soon or are the user's.
func (p *Pager) drain(done func() bool) {
	for turn := 0; !done(); turn++ {
		if turn < 64 {
			runtime.Gosched()
		} else {
			time.Sleep(min(time.Duration(turn)*time.Microsecond, time.Millisecond))
		}
		p.reapSome(64)
	}
}

// eachPage calls fn for every page that has a claimed word.
func (r *Region) eachPage(fn func(page uint64, w word)) {
	groups := (uint64(r.at.n)<<granuleShift>>r.shift + leafPages - 1) >> leafShift
	for g := uint64(0); g < groups; g++ {
		if atomic.LoadUint64(r.d.dirEntry(g<<leafShift)) == 0 {
			continue
		}
		for i := uint64(0); i < leafPages; i++ {
			if pw, w := r.d.look(g<<leafShift + i); pw != nil && w&stateMask != stMissing {
				fn(g<<leafShift+i, w)
			}
		}
	}
}

// evictAll drops every page of a region that is being closed. Dirty pages are
// those that Close could not write, and says so, or that are Private.
func (r *Region) evictAll() {
	p := r.p
	batch := make([]zapEntry, 0, maxEvictBatch)
	flush := func() {
		if len(batch) == 0 {
			return
		}
		p.evictMu.Lock()
		for _, e := range batch {
			r.domain.policy.Remove(pageKey(e.d, e.page))
		}
		frames, _ := zapBatch(&batch[0], len(batch), &p.ev.ranges[0], nil)
		p.evictMu.Unlock()
		p.unreserve(frames)
		batch = batch[:0]
	}
	for first := true; load64(&r.d.resident) > 0; first = false {
		if !first {
			time.Sleep(100 * time.Microsecond)
			p.reapSome(64)
		}
		p.giveUpMarkers(r, math.MaxInt64)
		p.unreserve(r.dropUnmapped(pageRange{0, r.d.pages}))
		r.eachPage(func(page uint64, w word) {
			r.forceClean(page)
			_, w = r.d.look(page)
			if w&stateMask == stResident && w&pinMask == 0 {
				if batch = append(batch, zapEntry{d: r.d, page: page, seen: w}); len(batch) == maxEvictBatch {
					flush()
				}
			} else if w&stateMask == stFailed {
				p.settleFailed(r, page)
			}
		})
		flush()
	}
}

// forget takes r out of the pager's lists.
func (p *Pager) forget(r *Region) {
	p.mu.Lock()
	delete(p.regions, r)
	largest := int64(0)
	if r.fpp > 1 { // else nothing changes, and there may be many regions
		for o := range p.regions {
			largest = max(largest, o.fpp)
		}
		largest = max(largest, 1)
	}
	p.mu.Unlock()
	if largest > 0 {
		p.shrinkLargestPage(largest)
	}
	if r.domain.region == r {
		p.evictMu.Lock()
		for i, dm := range p.domains {
			if dm == r.domain {
				p.domains = append(p.domains[:i], p.domains[i+1:]...)
				break
			}
		}
		p.evictMu.Unlock()
	}
}

// setLargestPage notes that a region with pages of n frames is mapped: what
// cannot be pinned is counted in pages of the largest size.
func (p *Pager) setLargestPage(n int64) {
	if n <= p.largestPage.Load() {
		return
	}
	p.budgetMu.Lock()
	p.largestPage.Store(max(n, p.largestPage.Load()))
	p.resize(p.budget.Load())
	p.budgetMu.Unlock()
}

func (p *Pager) shrinkLargestPage(n int64) {
	p.budgetMu.Lock()
	p.largestPage.Store(n)
	p.resize(p.budget.Load())
	p.budgetMu.Unlock()
}

func (p *Pager) regionList() []*Region {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := make([]*Region, 0, len(p.regions))
	for r := range p.regions {
		l = append(l, r)
	}
	return l
}

// Residency says how many bytes of [off, off+n) are resident, and how many of
// these are dirty. The range is cut to the region.
func (r *Region) Residency(off, n int64) (resident, dirty int64) {
	if off < 0 || n <= 0 || off >= r.Len() || !r.enter() {
		return 0, 0
	}
	defer r.leave()
	n = min(n, r.Len()-off)
	pr := r.pageRange(off, n)
	for page := pr.first; page < pr.first+pr.n; page++ {
		if page&(leafPages-1) == 0 && atomic.LoadUint64(r.d.dirEntry(page)) == 0 {
			page += leafPages - 1
			continue
		}
		_, w := r.d.look(page)
		if !present(w) && !unclean(w) && !r.unmapped(page, w) {
			continue
		}
		lo, hi := max(off, int64(page<<r.shift)), min(off+n, int64((page+1)<<r.shift))
		resident += hi - lo
		if unclean(w) {
			dirty += hi - lo
		}
	}
	return resident, dirty
}
