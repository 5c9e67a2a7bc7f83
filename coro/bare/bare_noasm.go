//go:build !amd64

package bare

import (
	"sync/atomic"
	"unsafe"
)

// Load32 reads *p atomically.
//
//go:nosplit
func Load32(p *uint32) uint32 { return atomic.LoadUint32(p) }

// Load64 reads *p atomically.
//
//go:nosplit
func Load64(p *uint64) uint64 { return atomic.LoadUint64(p) }

// Store32 writes v to *p atomically.
//
//go:nosplit
func Store32(p *uint32, v uint32) { atomic.StoreUint32(p, v) }

// Store64 writes v to *p atomically.
//
//go:nosplit
func Store64(p *uint64, v uint64) { atomic.StoreUint64(p, v) }

// Cas32 sets *p to new if it is old, and says whether it was.
//
//go:nosplit
func Cas32(p *uint32, old, new uint32) bool { return atomic.CompareAndSwapUint32(p, old, new) }

// Cas64 sets *p to new if it is old, and says whether it was.
//
//go:nosplit
func Cas64(p *uint64, old, new uint64) bool { return atomic.CompareAndSwapUint64(p, old, new) }

// Add32 adds delta to *p and returns the new value.
//
//go:nosplit
func Add32(p *uint32, delta uint32) uint32 { return atomic.AddUint32(p, delta) }

// Add64 adds delta to *p and returns the new value.
//
//go:nosplit
func Add64(p *uint64, delta uint64) uint64 { return atomic.AddUint64(p, delta) }

// Or64 sets the bits of mask in *p and returns the old value.
//
//go:nosplit
func Or64(p *uint64, mask uint64) uint64 { return atomic.OrUint64(p, mask) }

// And64 keeps only the bits of mask in *p and returns the old value.
//
//go:nosplit
func And64(p *uint64, mask uint64) uint64 { return atomic.AndUint64(p, mask) }

// Xchg32 writes v to *p and returns the old value.
//
//go:nosplit
func Xchg32(p *uint32, v uint32) uint32 { return atomic.SwapUint32(p, v) }

// Copy moves n bytes from src to dst, in ascending order. dst may overlap src
// only from below (dst ≤ src).
func Copy(dst, src unsafe.Pointer, n uintptr) {
	copy(unsafe.Slice((*byte)(dst), n), unsafe.Slice((*byte)(src), n))
}

// Zero clears n bytes at p.
func Zero(p unsafe.Pointer, n uintptr) { clear(unsafe.Slice((*byte)(p), n)) }

// Pause is one turn of a spin loop.
func Pause() {}
