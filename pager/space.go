//go:build linux

package pager

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/uffd"
)

// The address space
//
// All regions of all pagers of the process live in arenas: terabytes of
// reserved addresses, each one mapping registered with one userfaultfd, so
// that opening a region costs no system call and no VMA. A region is a range
// of 2 MiB granules of an arena. An address that belongs to no open region
// faults like any bad address does: arenas are never unmapped, and a closed
// region's addresses go to the end of the queue of free ones.
const (
	granuleShift  = spanShift
	granule       = 1 << granuleShift
	guardGranules = 1 // between regions: an overrun faults instead of reading a neighbour
	arenaGranules = 4 << 40 >> granuleShift
	maxArenas     = 32
	maxDescs      = 1 << 20 // regions open at once
)

// arena is one reservation. Its tables are zero until used, so they cost
// address space only.
type arena struct {
	lo, hi uintptr
	owner  unsafe.Pointer // *[granules]uint32: descriptor index, 0 none
	spans  unsafe.Pointer // *[granules]uint32: see desc.spans
	dirs   unsafe.Pointer // *[granules*8]uint64: room for the directory of whatever region lies there
	next   uintptr        // granules below have been used once
	mode   coro.Mode      // how faults in it wait
}

// space is the process's. sp's plain fields are set before the first region
// exists and constant afterwards, but for the free list and the arena count.
type space struct {
	mu     sync.Mutex
	ready  bool
	err    error
	uffd   *uffd.FD
	fd     int   // its descriptor, -1: none
	trap   bool  // faults come to decide
	rawErr error // why there is no raw access, nil if there is
	wp     bool  // write-protect faults are to be had
	moves  bool  // pages may be moved in, see move.go

	leaves   unsafe.Pointer
	leafMeta unsafe.Pointer
	leafFree uint64 // tag | leaf
	leafUsed uint32

	descs     unsafe.Pointer
	descUsed  uint32
	descFree  []uint32
	regions   sync.Map // descriptor index → *Region, live ones
	arenas    [maxArenas]arena
	numArenas atomic.Int32
	quarant   []addrRange // freed ranges, oldest first
}

type addrRange struct {
	arena int
	at, n uintptr // granules
}

var sp = space{fd: -1}

// reserve maps n bytes of address space that cost memory only where touched.
func reserve(n uintptr) (unsafe.Pointer, error) {
	p, err := unix.MmapPtr(-1, 0, nil, n, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("pager: reserving %d bytes of address space: %w", n, err)
	}
	// After mlockall(MCL_FUTURE) memory that is accessible when it is mapped
	// is populated, all of it: make it accessible when it is unlocked.
	b := unsafe.Slice((*byte)(p), n)
	_ = unix.Munlock(b)
	if err := unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, errors.Join(fmt.Errorf("pager: tables: %w", err), unix.MunmapPtr(p, n))
	}
	return p, nil
}

// setup opens the userfaultfd, installs the trap and makes the tables. It is
// called by New and does its work once.
func (s *space) setup() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready {
		return s.err
	}
	s.ready = true
	s.err = s.setupLocked()
	return s.err
}

func (s *space) setupLocked() error {
	if os.Getpagesize() != FrameSize {
		return unsupported("the kernel's pages are %d bytes, not %d", os.Getpagesize(), FrameSize)
	}
	if err := uffd.MaskError(); err != nil {
		return err
	}
	var err error
	for _, t := range []struct {
		p *unsafe.Pointer
		n uintptr
	}{{&s.leaves, maxLeaves * leafBytes}, {&s.leafMeta, maxLeaves * unsafe.Sizeof(leafMeta{})}, {&s.descs, maxDescs * unsafe.Sizeof(desc{})}, {&srvMem, serverBuffers * MaxPageSize}} {
		if *t.p, err = reserve(t.n); err != nil {
			return err
		}
	}
	s.rawErr = s.openUffd()
	return nil
}

// openUffd makes raw access possible, or says why it is not.
func (s *space) openUffd() error {
	f, err := uffd.Open(uffd.APISigbus, uffd.APIWriteProtect|uffd.APIMove)
	if err != nil {
		return unsupported("no userfaultfd: %v", err)
	}
	s.wp = f.API()&uffd.APIWriteProtect != 0
	s.moves = s.wp && f.API()&uffd.APIMove != 0 && movesSafely()
	if err := coro.Supported(); err != nil {
		// Faults come as Go faults only: View can restart, Bytes cannot wait.
		s.uffd, s.fd = f, f.Fd()
		return unsupported("raw access needs the SIGBUS trap: %v", err)
	}
	if err := coro.Install(); err != nil {
		f.Close()
		return unsupported("SIGBUS trap: %v", err)
	}
	s.uffd, s.fd, s.trap = f, f.Fd(), true
	return nil
}

// addArena reserves at least n granules more.
func (s *space) addArena(n uintptr, mode coro.Mode) (int, error) {
	i := int(s.numArenas.Load())
	if i == maxArenas {
		return 0, fmt.Errorf("pager: %d arenas of address space are in use: %w", maxArenas, unix.ENOMEM)
	}
	var p unsafe.Pointer
	var err error
	size := max(n, arenaGranules)
	for {
		p, err = mapArena(size << granuleShift)
		if err == nil || size == n {
			break
		}
		size = max(n, size/2) // a limit on address space (RLIMIT_AS, overcommit): take less
	}
	if err != nil {
		return 0, err
	}
	a := &s.arenas[i]
	a.mode = mode
	a.lo, a.hi = uintptr(p), uintptr(p)+size<<granuleShift
	for _, t := range []struct {
		p *unsafe.Pointer
		n uintptr
	}{{&a.owner, size * 4}, {&a.spans, size * 4}, {&a.dirs, size << (granuleShift - frameShift - leafShift) * 8}} {
		if *t.p, err = reserve(t.n); err != nil {
			return 0, err
		}
	}
	if s.fd >= 0 {
		reg := uffd.RegisterMissing
		if s.wp {
			reg |= uffd.RegisterWP
		}
		if err := s.uffd.Register(a.lo, a.hi-a.lo, reg); err != nil {
			return 0, err
		}
	}
	// After registering, so that a process under mlockall(MCL_FUTURE) does not
	// populate the mapping first.
	if err := unix.Mprotect(unsafe.Slice((*byte)(p), a.hi-a.lo), unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return 0, fmt.Errorf("pager: making an arena accessible: %w", err)
	}
	s.numArenas.Store(int32(i + 1))
	if s.trap {
		if err := coro.AddArena(coro.ArenaConfig{Lo: a.lo, Hi: a.hi, Mode: mode, Decide: decide, Serve: serve, Inline: true}); err != nil {
			return 0, err
		}
	}
	return i, nil
}

// mapArena reserves size bytes, aligned to granules, inaccessible, unlocked,
// without huge pages, not inherited by a child (which would see zeros).
func mapArena(size uintptr) (unsafe.Pointer, error) {
	p, err := unix.MmapPtr(-1, 0, nil, size+granule, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("pager: reserving %d GiB of address space: %w", size>>30, err)
	}
	if r := uintptr(p) & (granule - 1); r != 0 {
		p = unsafe.Add(p, granule-r)
	}
	b := unsafe.Slice((*byte)(p), size)
	for _, adv := range []int{unix.MADV_NOHUGEPAGE, unix.MADV_DONTFORK, unix.MADV_DONTDUMP} {
		_ = unix.Madvise(b, adv) // refused only by kernels built without the feature, which then need no advice
	}
	if err := unix.Munlock(b); err != nil {
		return nil, fmt.Errorf("pager: munlock: %w", err)
	}
	return p, nil
}

// place finds addresses for a region of n granules (its guard included).
func (s *space) place(n uintptr, mode coro.Mode) (addrRange, error) {
	for i := int(s.numArenas.Load()) - 1; i >= 0; i-- {
		a := &s.arenas[i]
		if a.mode == mode && (a.hi-a.lo)>>granuleShift-a.next >= n {
			r := addrRange{i, a.next, n}
			a.next += n
			return r, nil
		}
	}
	if r, ok := s.reuse(n, mode); ok {
		return r, nil
	}
	s.mergeFree()
	if r, ok := s.reuse(n, mode); ok {
		return r, nil
	}
	i, err := s.addArena(n, mode)
	if err != nil {
		return addrRange{}, err
	}
	s.arenas[i].next = n
	return addrRange{i, 0, n}, nil
}

// reuse takes the oldest freed range that is large enough.
func (s *space) reuse(n uintptr, mode coro.Mode) (addrRange, bool) {
	for i, f := range s.quarant {
		if f.n < n || s.arenas[f.arena].mode != mode {
			continue
		}
		if f.n == n {
			s.quarant = slices.Delete(s.quarant, i, i+1)
		} else {
			s.quarant[i] = addrRange{f.arena, f.at + n, f.n - n}
		}
		return addrRange{f.arena, f.at, n}, true
	}
	return addrRange{}, false
}

func (s *space) mergeFree() {
	q := slices.Clone(s.quarant)
	slices.SortFunc(q, func(a, b addrRange) int {
		if a.arena != b.arena {
			return a.arena - b.arena
		}
		return int(a.at) - int(b.at)
	})
	out := q[:0]
	for _, r := range q {
		if k := len(out) - 1; k >= 0 && out[k].arena == r.arena && out[k].at+out[k].n == r.at {
			out[k].n += r.n
		} else {
			out = append(out, r)
		}
	}
	s.quarant = out
}

func descAt(i uint32) *desc {
	return (*desc)(unsafe.Add(sp.descs, uintptr(i)*unsafe.Sizeof(desc{})))
}

// open gives r a descriptor and addresses for reach bytes. The descriptor is
// not live yet.
func (s *space) open(r *Region, reach int64, shift uint32, mode coro.Mode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := (uintptr(reach)+granule-1)>>granuleShift + guardGranules
	if n > 64<<40>>granuleShift {
		return fmt.Errorf("pager: a region of %d bytes does not fit the address space: %w", reach, unix.ENOMEM)
	}
	at, err := s.place(n, mode)
	if err != nil {
		return err
	}
	var i uint32
	if k := len(s.descFree); k > 0 {
		i, s.descFree = s.descFree[0], s.descFree[1:]
	} else if s.descUsed+1 < maxDescs {
		s.descUsed++
		i = s.descUsed
	} else {
		s.quarant = append(s.quarant, at)
		return fmt.Errorf("pager: %d regions are open: %w", maxDescs, unix.ENOMEM)
	}
	d := descAt(i)
	a := &s.arenas[at.arena]
	d.reset()
	d.index, d.shift, d.fd = i, shift, -1
	d.base = a.lo + at.at<<granuleShift
	d.dir = unsafe.Add(a.dirs, at.at<<(granuleShift-frameShift-leafShift)*8)
	d.spans = unsafe.Add(a.spans, at.at*4)
	own := unsafe.Slice((*uint32)(unsafe.Add(a.owner, at.at*4)), at.n)
	for k := range own {
		atomic.StoreUint32(&own[k], i)
	}
	r.d, r.at = d, at
	return nil
}

// release gives r's addresses and descriptor back. All its pages are Missing
// and no server uses it.
func (s *space) release(r *Region) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &s.arenas[r.at.arena]
	own := unsafe.Slice((*uint32)(unsafe.Add(a.owner, r.at.at*4)), r.at.n)
	for k := range own {
		atomic.StoreUint32(&own[k], 0)
	}
	// The directory of a large region is worth giving back.
	lo, hi := uintptr(r.d.dir), uintptr(r.d.dir)+r.at.n<<(granuleShift-frameShift-leafShift)*8
	lo, hi = (lo+FrameSize-1)&^(FrameSize-1), hi&^(FrameSize-1)
	if hi > lo && hi-lo >= 16*FrameSize {
		_ = unix.Madvise(unsafe.Slice((*byte)(bare.Ptr(lo)), hi-lo), unix.MADV_DONTNEED)
	}
	s.regions.Delete(r.d.index)
	atomic.StoreUint32(&r.d.state, descFree)
	s.descFree = append(s.descFree, r.d.index)
	s.quarant = append(s.quarant, r.at)
}

// descOf finds the region of an address, nil if it is nobody's. Lock-free;
// the caller checks the state.
//
//go:nosplit
//go:norace
//go:nocheckptr
func descOf(addr uintptr) *desc {
	n := sp.numArenasBare()
	for i := uintptr(0); i < n; i++ {
		a := (*arena)(unsafe.Add(unsafe.Pointer(&sp.arenas), i*unsafe.Sizeof(arena{})))
		if addr-a.lo < a.hi-a.lo {
			k := bare.Load32((*uint32)(unsafe.Add(a.owner, (addr-a.lo)>>granuleShift*4)))
			if k == 0 {
				return nil
			}
			return (*desc)(unsafe.Add(sp.descs, uintptr(k)*unsafe.Sizeof(desc{})))
		}
	}
	return nil
}

//go:nosplit
//go:norace
//go:nocheckptr
func (s *space) numArenasBare() uintptr {
	return uintptr(bare.Load32((*uint32)(unsafe.Pointer(&s.numArenas))))
}

// enterServer keeps the region of addr from being closed under the server's feet,
// until leave; nil if it is nobody's.
//
//go:nosplit
//go:norace
//go:nocheckptr
func enterServer(addr uintptr) *desc {
	d := descOf(addr)
	if d == nil {
		return nil
	}
	bare.Add32(&d.users, 1)
	if bare.Load32(&d.state) != descLive || descOf(addr) != d {
		d.leave()
		return nil
	}
	return d
}

// enterDesc is enterServer for another region of the same pager; nil if it is not live.
//
//go:nosplit
//go:norace
//go:nocheckptr
func enterDesc(i uint32, words *pagerWords) *desc {
	d := (*desc)(unsafe.Add(sp.descs, uintptr(i)*unsafe.Sizeof(desc{})))
	bare.Add32(&d.users, 1)
	if bare.Load32(&d.state) != descLive || d.words != words {
		d.leave()
		return nil
	}
	return d
}

// enterLeaf is enterDesc for the region that has the words of leaf h.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) enterLeaf(h uint32) (*desc, *leafMeta) {
	m := metaOf(h)
	if i := bare.Load32(&m.desc); i != 0 {
		return enterDesc(i, w), m
	}
	return nil, m
}

// leave ends what enterServer, enterDesc or enterLeaf has begun.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) leave() { bare.Add32(&d.users, ^uint32(0)) }

// regionAt is descOf for ordinary code.
func regionAt(addr uintptr) *Region {
	d := descOf(addr)
	if d == nil {
		return nil
	}
	if r, ok := sp.regions.Load(d.index); ok {
		return r.(*Region)
	}
	return nil
}
