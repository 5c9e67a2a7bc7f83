//go:build linux

package pager

import (
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/pager/journal"
	"github.com/uffdpager/uffdpager/pager/store"
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
	maxFrames int64 // MaxResident; see full.go
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

	full     fullRegion
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

// Close refuses new work, syncs a writable region (of an Atomic one, brings what is
// committed to the store and drops the rest), waits for pins and for running View and Update, ends every other wait with ErrClosed, and releases
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
	p.lockEvict() // an eviction may still be giving spans back, or cooling
	p.evictMu.Unlock()
	p.forget(r)
	err := errors.Join(syncErr, r.closeJournal(), r.closeSide(d.pages), r.store.Close())
	letGo(r.store)
	letGo(r.opt.Journal.Store)
	letGoPolicy(r.opt.Evict)
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
	out := r.evictor(func(uint64) {})
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
			if w&stateMask == stFailed {
				p.settleFailed(r, page)
			}
			out.add(page, w)
		})
		out.flush()
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
		p.lockEvict()
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
