//go:build linux

package pager

import (
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/uffd"
)

// Pages that are moved
//
// A page of 2 MiB of a read-only region need not be copied to where it belongs: the
// memory that it was read to becomes the page (UFFDIO_MOVE), and the buffer is left
// without. When the page leaves, its memory goes the other way, to a buffer that has
// none. Nothing is copied, and no memory is given back to the kernel, which would
// clear it before the next read; and if the kernel had a huge page for the buffer, one
// entry of the page table maps all of it instead of 512, and one entry of the TLB.
// Whatever cannot be moved (the kernel has the frame pinned, or a child shares it) is
// copied, or thrown away.
//
// The kernel's word on what it has not moved cannot be trusted. If somebody touches the
// page just then, which gives it a page table, Linux 6.18 moves all of it frame by frame,
// forgets that it has, tries again and says EEXIST: to copy from the buffer then would make
// the page one of zeros. So whenever something else is said than that it is done, that the
// frame is busy, or that such memory is never moved, the page is read again, and copied.
//
// Only there, because a page arrives writable, whatever the region's protection, and
// is protected with a second call. A store in between would not be noticed: in a
// writable region it would be lost with the next eviction. In a read-only one it is
// the program's error; that it does not fault then is said in docs/limits.md. The page is
// Installing meanwhile, which keeps everybody away but who has the raw slice.
//
// Only pages of the very size of a huge page, because smaller ones share it, and moving
// one of them breaks it up.

const hugeBytes = MaxPageSize

// moveFrom is the first kernel whose UFFDIO_MOVE is used. Before, it could crash when the
// huge page was just being migrated (compaction), which nobody finds out by trying.
var moveFrom = [2]int{6, 17}

// movesSafely: the kernel's UFFDIO_MOVE, if it has one, is to be trusted.
func movesSafely() bool {
	var u unix.Utsname
	return unix.Uname(&u) == nil && atLeast(unix.ByteSliceToString(u.Release[:]), moveFrom)
}

// atLeast compares a kernel's release, as "6.18.5-generic", with major and minor.
func atLeast(release string, want [2]int) bool {
	part := strings.SplitN(release, ".", 3)
	if len(part) < 2 {
		return false
	}
	if end := strings.IndexFunc(part[1], func(c rune) bool { return c < '0' || c > '9' }); end >= 0 {
		part[1] = part[1][:end]
	}
	major, err1 := strconv.Atoi(part[0])
	minor, err2 := strconv.Atoi(part[1])
	return err1 == nil && err2 == nil && (major > want[0] || major == want[0] && minor >= want[1])
}

// moves: the region's pages are moved, not copied.
func (r *Region) moves() bool { return r.d.flags&descMoves != 0 }

// moves: what l has read is moved to its place, and not in its buffer any more when
// that is over. So not if a policy wants to see it there.
func (l *load) moves() bool {
	return l.r.moves() && !l.stays && len(l.buf.mem) == hugeBytes && !l.r.ahead.wants.Load()
}

// moveTurns bounds how often a frame is tried that the kernel has pinned: it lets go of
// one a moment after the read from the device is complete.
const moveTurns = 100

// moveFrames moves n bytes at src to dst. Otherwise it says how many bytes were moved, from
// the beginning, and errno is EBUSY or EINVAL if that is to be believed.
//
//go:nosplit
//go:norace
//go:nocheckptr
func moveFrames(dst, src, n uintptr, turns int) (at, errno uintptr) {
	for turn := 0; turn < turns; turn++ {
		var done int64
		done, errno = moveVia(sp.fd, dst+at, src+at, n-at, 0)
		if at += uintptr(done); at == n {
			return n, 0
		}
		if errno != uintptr(syscall.EAGAIN) && errno != uintptr(syscall.EBUSY) {
			break
		}
		relax(turn)
	}
	return at, errno
}

// moveVia is uffd.RawMove where it may fail; see cleanVia.
var moveVia = uffd.RawMove

// moveIn makes n bytes at dst present, write-protected, with the frames of src: as many
// as can be moved, from the beginning, and says how many. The rest is still in src. After
// an error all of dst is missing, and src may have lost its bytes: certainly with
// errnoReadAgain.
//
//go:nosplit
//go:norace
//go:nocheckptr
func moveIn(dst, src, n uintptr) (at, errno uintptr) {
	// A fault has left a page table there, for which the kernel would break the
	// huge page up.
	unmapVia(dst, n)
	at, errno = moveFrames(dst, src, n, moveTurns)
	if errno != 0 && errno != uintptr(syscall.EBUSY) && errno != uintptr(syscall.EINVAL) {
		unmapVia(dst, n)
		return 0, errnoReadAgain
	}
	errno = 0
	if at > 0 {
		if errno = protectVia(dst, at, true); errno != 0 {
			unmapVia(dst, n)
		}
	}
	return at, errno
}

// moveOut makes a page missing whose memory goes to an empty buffer, all of it or none.
// In the second case the page is as it was, or missing in part.
//
//go:nosplit
//go:norace
//go:nocheckptr
func moveOut(buf, page, n uintptr) bool {
	_, errno := moveFrames(buf, page, n, 1)
	if errno != 0 {
		unmapVia(buf, n)
	}
	return errno == 0
}

// spares are empty buffers for the memory of pages that leave.
type spares struct {
	bufs [bufferKeep / hugeBytes]*buffer
	n    int
	used int // have got memory, the first ones
}

// at is the address of the i-th.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (s *spares) at(i int) uintptr {
	b := *(**buffer)(unsafe.Add(unsafe.Pointer(&s.bufs), uintptr(i)*unsafe.Sizeof(s.bufs[0])))
	return uintptr(unsafe.Pointer(unsafe.SliceData(b.mem)))
}

// take takes as many as may be idle and have memory.
func (s *spares) take(bp *bufferPool) {
	bp.mu.Lock()
	for s.n < len(s.bufs) && bp.large+int64(s.n+1)*hugeBytes <= bufferKeep {
		b := bp.getEmpty()
		if b == nil {
			break
		}
		s.bufs[s.n] = b
		s.n++
	}
	bp.mu.Unlock()
}

// give gives them back.
func (s *spares) give(bp *bufferPool) {
	for i, b := range s.bufs[:s.n] {
		if i < s.used {
			bp.bytes.Add(hugeBytes)
			bp.put(b)
			continue
		}
		bp.mu.Lock()
		bp.putEmpty(b)
		bp.mu.Unlock()
	}
	s.n, s.used = 0, 0
}

// getEmpty takes out a buffer of hugeBytes without memory, nil if there is none.
// mu is held.
func (bp *bufferPool) getEmpty() *buffer {
	b := bp.empty
	if b != nil {
		bp.empty, b.next = b.next, nil
	}
	return b
}

// putEmpty puts back a buffer of hugeBytes without memory. mu is held.
func (bp *bufferPool) putEmpty(b *buffer) {
	b.next, bp.empty = bp.empty, b
}

// mapHuge maps a buffer that may be one huge page. It gets memory when it is first
// written to.
func mapHuge() []byte {
	m, err := unix.MmapPtr(-1, 0, nil, 2*hugeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		noBuffer(err)
	}
	skip := -uintptr(m) & (hugeBytes - 1)
	mem := unsafe.Add(m, skip)
	if skip > 0 {
		_ = unix.MunmapPtr(m, skip)
	}
	_ = unix.MunmapPtr(unsafe.Add(mem, hugeBytes), hugeBytes-skip)
	b := unsafe.Slice((*byte)(mem), hugeBytes)
	// Without the first it is many small pages; what a child shares cannot be moved; and
	// pages are moved only to where this userfaultfd is told of something, which for
	// memory that is never protected is nothing. If one of them fails, pages are copied.
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	_ = unix.Madvise(b, unix.MADV_DONTFORK)
	if sp.moves {
		_ = sp.uffd.Register(uintptr(mem), hugeBytes, uffd.RegisterWP)
	}
	return b
}
