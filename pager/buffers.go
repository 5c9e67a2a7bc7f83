//go:build linux

package pager

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// buffer is memory for one I/O: off the heap, page aligned, faulted in.
type buffer struct {
	mem  []byte
	next *buffer
	cold bool         // idle, and without memory
	lent atomic.Int32 // holders beside the one who got it; each calls put
}

// bufferPool hands out I/O buffers of powers of two. The queue depths of the
// pagers bound how many are out. Of those that are idle beyond bufferKeep bytes,
// large ones are unmapped; small ones share mappings and give their memory back.
type bufferPool struct {
	mu    sync.Mutex
	free  [10]*buffer // 4 KiB … 2 MiB
	idle  int64       // bytes on the free lists
	bytes atomic.Int64
}

// bufs serves all pagers of the process.
var bufs bufferPool

const bufferKeep = 8 << 20

func bufferClass(n int) int { return max(0, bits.Len(uint(n-1))-frameShift) }

func (bp *bufferPool) get(n int) *buffer {
	c := bufferClass(n)
	bp.mu.Lock()
	if b := bp.free[c]; b != nil {
		bp.free[c] = b.next
		if b.cold {
			b.cold = false
			bp.bytes.Add(int64(len(b.mem)))
		} else {
			bp.idle -= int64(len(b.mem))
		}
		bp.mu.Unlock()
		return b
	}
	bp.mu.Unlock()
	// Small ones come sixteen to a mapping, of which there may not be many.
	size := FrameSize << c
	count := max(1, 64<<10/size)
	m, err := unix.MmapPtr(-1, 0, nil, uintptr(size*count), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		// No address space or no memory for a few KiB: nothing in this
		// process will work any more.
		panic("pager: no memory for an I/O buffer: " + err.Error())
	}
	bp.bytes.Add(int64(size * count))
	var first *buffer
	for i := count - 1; i >= 0; i-- {
		b := &buffer{mem: unsafe.Slice((*byte)(unsafe.Add(m, i*size)), size)}
		if i == 0 {
			first = b
		} else {
			bp.put(b)
		}
	}
	return first
}

// put gives back a holder's share of b; the last one's ends its use.
func (bp *bufferPool) put(b *buffer) {
	if b == nil || b.lent.Add(-1) >= 0 {
		return
	}
	b.lent.Store(0)
	c := bufferClass(len(b.mem))
	bp.mu.Lock()
	if len(b.mem) >= 64<<10 && bp.idle+int64(len(b.mem)) > bufferKeep {
		bp.mu.Unlock()
		bp.bytes.Add(-int64(len(b.mem)))
		_ = unix.MunmapPtr(unsafe.Pointer(&b.mem[0]), uintptr(len(b.mem)))
		return
	}
	// (Refused where memory is locked: then they stay.)
	if bp.idle+int64(len(b.mem)) > bufferKeep && unix.Madvise(b.mem, unix.MADV_DONTNEED) == nil {
		b.cold = true
		bp.bytes.Add(-int64(len(b.mem)))
	} else {
		bp.idle += int64(len(b.mem))
	}
	b.next = bp.free[c]
	bp.free[c] = b
	bp.mu.Unlock()
}
