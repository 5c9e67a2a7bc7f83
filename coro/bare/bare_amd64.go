package bare

import "unsafe"

// Load32 reads *p atomically (acquire).
//
//go:noescape
func Load32(p *uint32) uint32

// Load64 reads *p atomically (acquire).
//
//go:noescape
func Load64(p *uint64) uint64

// Store32 writes v to *p atomically, with a full barrier after it.
//
//go:noescape
func Store32(p *uint32, v uint32)

// Store64 writes v to *p atomically, with a full barrier after it.
//
//go:noescape
func Store64(p *uint64, v uint64)

// Cas32 sets *p to new if it is old, and says whether it was.
//
//go:noescape
func Cas32(p *uint32, old, new uint32) bool

// Cas64 sets *p to new if it is old, and says whether it was.
//
//go:noescape
func Cas64(p *uint64, old, new uint64) bool

// Add32 adds delta to *p and returns the new value.
//
//go:noescape
func Add32(p *uint32, delta uint32) uint32

// Add64 adds delta to *p and returns the new value.
//
//go:noescape
func Add64(p *uint64, delta uint64) uint64

// Or64 sets the bits of mask in *p and returns the old value.
//
//go:noescape
func Or64(p *uint64, mask uint64) uint64

// And64 keeps only the bits of mask in *p and returns the old value.
//
//go:noescape
func And64(p *uint64, mask uint64) uint64

// Xchg32 writes v to *p and returns the old value.
//
//go:noescape
func Xchg32(p *uint32, v uint32) uint32

// Copy moves n bytes from src to dst, in ascending order. dst may overlap src
// only from below (dst ≤ src). Unlike the runtime's memmove it never touches a
// byte after one that it has not reached yet.
//
//go:noescape
func Copy(dst, src unsafe.Pointer, n uintptr)

// Zero clears n bytes at p, in ascending order.
//
//go:noescape
func Zero(p unsafe.Pointer, n uintptr)

// Pause is one turn of a spin loop (the PAUSE instruction).
//
//go:noescape
func Pause()
