//go:build !uffdpager_nointernals

package coro

import (
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// Slots come in two sizes, because most parked goroutines have no AVX-512
// state, and are cut from chunks that the faulting thread maps itself when
// there is no free one. They are never unmapped, so that reading the next of a
// slot that somebody else has just taken is harmless. A parked goroutine costs
// 896 bytes beside its stack, about 3 KiB with AVX-512 state.
const (
	chunkSize = 1 << 20
	chunkTail = goXRegs // the collector looks this far beyond the start of an image
)

// slotClass is the free slots of one size. A head is an address divided by 64
// with a tag above it that counts changes: a compare-and-swap does not mistake
// a list that was popped and pushed for the one it saw.
type slotClass struct {
	free uint64
	bump uint64  // next slot never used; 0, or in a chunk, whose end is the next multiple of chunkSize
	size uintptr // of a slot, a multiple of 64
}

const (
	tagShift = 41 // addresses have 47 bits
	addrMask = 1<<tagShift - 1
)

var slotClasses [2]slotClass

//go:nosplit
//go:norace
//go:nocheckptr
func slotImage(s *parkSlot) uintptr { return uintptr(unsafe.Pointer(s)) + slotHeader }

// newSlot takes a slot, or returns nil when the kernel has no memory. It runs
// in signal context.
//
//go:nosplit
//go:norace
//go:nocheckptr
func newSlot(class uint8) *parkSlot {
	c := &slotClasses[class&1]
	for {
		h := bare.Load64(&c.free)
		if h&addrMask == 0 {
			break
		}
		s := (*parkSlot)(bare.Ptr(uintptr(h&addrMask) << 6))
		next := *word(uintptr(unsafe.Pointer(&s.next)))
		if bare.Cas64(&c.free, h, uint64(next)>>6|(h>>tagShift+1)<<tagShift) {
			bare.Add32(&s.seq, 1)
			return s
		}
	}
	for {
		a := bare.Load64(&c.bump)
		if a == 0 || uint64(c.size)+chunkTail > chunkSize-a%chunkSize {
			m := newChunkFn()
			if m == 0 {
				return nil
			}
			if !bare.Cas64(&c.bump, a, uint64(m)+uint64(c.size)) {
				bare.Syscall(syscall.SYS_MUNMAP, m, chunkSize, 0, 0, 0, 0)
				continue
			}
			a = uint64(m)
		} else if !bare.Cas64(&c.bump, a, a+uint64(c.size)) {
			continue
		}
		s := (*parkSlot)(bare.Ptr(uintptr(a)))
		s.class = class
		s.seq = 1
		return s
	}
}

var newChunkFn = newChunk // see parkFn

// newChunk maps chunkSize bytes, aligned to that.
//
//go:nosplit
//go:norace
//go:nocheckptr
func newChunk() uintptr {
	m, e := bare.Syscall(syscall.SYS_MMAP, 0, 2*chunkSize, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_NORESERVE, ^uintptr(0), 0)
	if e != 0 {
		return 0
	}
	a := (m + chunkSize - 1) &^ (chunkSize - 1)
	if a != m {
		bare.Syscall(syscall.SYS_MUNMAP, m, a-m, 0, 0, 0, 0)
	}
	if rest := m + 2*chunkSize - (a + chunkSize); rest != 0 {
		bare.Syscall(syscall.SYS_MUNMAP, a+chunkSize, rest, 0, 0, 0, 0)
	}
	return a
}

// freeSlot is also written out in park_linux_amd64.s, where no register can be
// spared for a call.
//
//go:nosplit
//go:norace
//go:nocheckptr
func freeSlot(s *parkSlot) {
	c := &slotClasses[s.class&1]
	for {
		h := bare.Load64(&c.free)
		s.next = uintptr(h&addrMask) << 6
		if bare.Cas64(&c.free, h, uint64(uintptr(unsafe.Pointer(s)))>>6|(h>>tagShift+1)<<tagShift) {
			return
		}
	}
}
