//go:build linux

package pager

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/uffd"
)

// buffer is memory for one I/O: off the heap, page aligned, faulted in.
type buffer struct {
	mem   []byte
	kept  unmappedEntry
	lent  atomic.Int32 // holders beside the one who got it; each calls put
	next  *buffer
	shelf int32 // pages of it that singles.go keeps
	spent bool  // its memory is a page now, see move.go
} // What a hit looks at (see unmapped.go) is in one cache line.

// bufferPool hands out I/O buffers of powers of two. The queue depths of the
// pagers bound how many are out, and what shelf.go, lentpins.go and unmapped.go keep.
// Small ones share mappings, and give their memory back when they are idle beyond
// bufferKeep bytes, so many at a time: each call costs a flush of the TLBs. Large ones are unmapped beyond
// that, but only when they have not been needed for a while: while much is
// read ahead at once, as many come back as go out, in bursts, and to map one anew
// costs more than what it is for.
type bufferPool struct {
	mu    sync.Mutex
	free  [10]*buffer // 4 KiB … 2 MiB
	cold  [10]*buffer // those without memory, which are taken last: else each that comes back beyond bufferKeep would lose it, and be the next to be taken
	idle  int64       // bytes on the free lists
	large int64       // of these, in large ones
	low   int64       // the least that large was since the last trim
	armed bool        // there will be another
	empty *buffer     // idle ones of hugeBytes whose memory has become pages
	timer *time.Timer
	bytes atomic.Int64
	kept  atomic.Int64 // of these, in frames of pages; see unmapped.go
}

// bufs serves all pagers of the process.
var bufs bufferPool

const (
	bufferKeep  = 8 << 20
	bufferMost  = 28 << 20 // bytes of all there are, beyond which large ones are not kept in bursts either
	bufferLarge = 64 << 10 // bytes of one
	trimEvery   = 250 * time.Millisecond
	coolBytes   = 1 << 20 // of small ones, that give back their memory together
)

// keepSmall is how many bytes of small buffers are kept idle: less where they are the
// frames of pages, which come and go in batches of one eviction.
func (bp *bufferPool) keepSmall() int64 {
	if bp.kept.Load() > bufferKeep {
		return bufferKeep / 4
	}
	return bufferKeep
}

func bufferClass(n int) int { return max(0, bits.Len(uint(n-1))-frameShift) }

func (bp *bufferPool) get(n int) *buffer {
	c := bufferClass(n)
	bp.mu.Lock()
	if b := bp.free[c]; b != nil {
		bp.free[c] = b.next
		bp.idle -= int64(len(b.mem))
		if len(b.mem) >= bufferLarge {
			bp.large -= int64(len(b.mem))
			bp.low = min(bp.low, bp.large)
		}
		bp.mu.Unlock()
		return b
	}
	if b := bp.cold[c]; b != nil {
		bp.cold[c] = b.next
		bp.bytes.Add(int64(len(b.mem)))
		bp.mu.Unlock()
		return b
	}
	size := FrameSize << c
	if size == hugeBytes {
		b := bp.getEmpty()
		bp.mu.Unlock()
		if b == nil {
			b = &buffer{mem: mapHuge()}
		}
		bp.bytes.Add(hugeBytes)
		return b
	}
	bp.mu.Unlock()
	// Small ones come sixteen to a mapping, of which there may not be many.
	count := max(1, 64<<10/size)
	m, err := unix.MmapPtr(-1, 0, nil, uintptr(size*count), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		noBuffer(err)
	}
	bp.bytes.Add(int64(size * count))
	var first *buffer
	all := make([]buffer, count)
	for i := count - 1; i >= 0; i-- {
		b := &all[i]
		b.mem = unsafe.Slice((*byte)(unsafe.Add(m, i*size)), size)
		if i == 0 {
			first = b
		} else {
			bp.put(b)
		}
	}
	return first
}

// noBuffer: there is no address space or no memory for a few KiB, and nothing in this
// process will work any more.
func noBuffer(err error) { panic("pager: no memory for an I/O buffer: " + err.Error()) }

// put gives back a holder's share of b; the last one's ends its use.
func (bp *bufferPool) put(b *buffer) {
	if b == nil || b.lent.Add(-1) >= 0 {
		return
	}
	b.lent.Store(0)
	c := bufferClass(len(b.mem))
	bp.mu.Lock()
	size := int64(len(b.mem))
	switch {
	case b.spent && unix.Madvise(b.mem, unix.MADV_DONTNEED) == nil:
		// (What of it could not be moved was still there.)
		b.spent = false
		bp.bytes.Add(-size)
		bp.putEmpty(b)
		bp.mu.Unlock()
		return
	case size >= bufferLarge && bp.large+size > bufferKeep && bp.bytes.Load()-bp.kept.Load() > bufferMost:
		bp.mu.Unlock()
		bp.unmap(b)
		return
	case size >= bufferLarge:
		bp.idle += size
		if bp.large += size; bp.large > bufferKeep && !bp.armed {
			bp.arm()
		}
	default:
		bp.idle += size
	}
	b.spent = false
	b.next = bp.free[c]
	bp.free[c] = b
	if size < bufferLarge && bp.idle-bp.large > bp.keepSmall()+coolBytes {
		bp.cool(c)
		return
	}
	bp.mu.Unlock()
}

// cool takes the memory of small buffers of class c that are idle beyond what is kept.
// mu is held, and released.
func (bp *bufferPool) cool(c int) {
	var (
		list   [coolBytes/FrameSize + 1]*buffer
		ranges [len(list)]uffd.Range
		n      int
	)
	for n < len(list) && bp.free[c] != nil && bp.idle-bp.large > bp.keepSmall() {
		b := bp.free[c]
		bp.free[c] = b.next
		size := int64(len(b.mem))
		bp.idle -= size
		bp.bytes.Add(-size)
		list[n], ranges[n] = b, uffd.Range{Addr: uintptr(unsafe.Pointer(&b.mem[0])), Len: uintptr(size)}
		n++
	}
	bp.mu.Unlock()
	if n == 0 {
		return
	}
	done, _ := uffd.RawZap(&ranges[0], n)
	bp.mu.Lock()
	for i, b := range list[:n] {
		if i < done {
			b.next, bp.cold[c] = bp.cold[c], b
			continue
		}
		// (Refused, where memory is locked: then they stay.)
		size := int64(len(b.mem))
		bp.idle += size
		bp.bytes.Add(size)
		b.next, bp.free[c] = bp.free[c], b
	}
	bp.mu.Unlock()
}

func (bp *bufferPool) unmap(b *buffer) {
	bp.bytes.Add(-int64(len(b.mem)))
	b.unmap()
}

func (b *buffer) unmap() {
	_ = unix.MunmapPtr(unsafe.Pointer(&b.mem[0]), uintptr(len(b.mem)))
}

// arm has trim called in a while. mu is held.
func (bp *bufferPool) arm() {
	bp.armed, bp.low = true, bp.large
	if bp.timer == nil {
		bp.timer = time.AfterFunc(trimEvery, bp.trim)
	} else {
		bp.timer.Reset(trimEvery)
	}
}

// trim unmaps the large buffers beyond bufferKeep that have been idle ever since
// the last time, as far as the others would have been enough.
func (bp *bufferPool) trim() {
	var out *buffer
	bp.mu.Lock()
	excess := bp.low - bufferKeep
	for c := len(bp.free) - 1; c >= 0 && FrameSize<<c >= bufferLarge; c-- {
		for b := bp.free[c]; b != nil && excess > 0; b = bp.free[c] {
			bp.free[c] = b.next
			size := int64(len(b.mem))
			bp.idle, bp.large, excess = bp.idle-size, bp.large-size, excess-size
			bp.bytes.Add(-size)
			b.next, out = out, b
		}
	}
	if bp.armed = false; bp.large > bufferKeep {
		bp.arm()
	}
	bp.mu.Unlock()
	for b := out; b != nil; {
		next := b.next
		b.unmap()
		b = next
	}
}
