//go:build !linux || !amd64

package coro

import "unsafe"

// Supported says whether the trap, and with it raw access to arenas, exists
// on this system: nil, or an error that Is [ErrNotSupported].
func Supported() error { return ErrNotSupported }

// Install returns ErrNotSupported: there is no trap here.
func Install() error { return ErrNotSupported }

// AddArena returns ErrNotSupported: there is no trap here.
func AddArena(c ArenaConfig) error { return ErrNotSupported }

// StartServers returns ErrNotSupported: there are no faults to serve.
func StartServers(n int) error { return ErrNotSupported }

// StartThread returns ErrNotSupported: there is no code without a P.
func StartThread(fn func()) error { return ErrNotSupported }

// CopyOut copies n bytes from src to dst, which must not overlap. Without a
// trap there is nothing to land on: left is 0, and a fault is a Go fault.
func CopyOut(dst, src unsafe.Pointer, n uintptr) (left, addr uintptr) {
	copy(unsafe.Slice((*byte)(dst), n), unsafe.Slice((*byte)(src), n))
	return 0, 0
}

// CurrentG is 0: no fault is recorded here.
func CurrentG() uintptr { return 0 }

// Seq is 0: no fault is delivered here.
func Seq() uint64 { return 0 }

// Delivered finds nothing: no fault is delivered here.
func Delivered(g uintptr, since uint64) (addr, errno uintptr, ok bool) { return 0, 0, false }

// DeliveredAt finds nothing: no fault is delivered here.
func DeliveredAt(addr uintptr) (errno uintptr, ok bool) { return 0, false }

// ReadStats is all zero: there are no faults.
func ReadStats() Stats { return Stats{} }
