package coro

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

var copyAVX = cpu.X86.HasAVX2 // 32-byte moves in CopyOut; its landing then clears the upper halves

// CopyOut copies n bytes from src to dst in ascending order. If an access
// faults in an arena – a page of the source or of the destination that is
// missing or write-protected – it does not wait: it returns how many bytes are
// left, and the address that faulted. Otherwise left is 0.
//
// left is exact. Of the operand that faulted every byte before addr has been
// copied and none from addr on has: bytes [0, n-left) of dst are written, the
// rest is as it was, and addr is src+n-left or dst+n-left. The caller makes
// the page come and calls again with the rest. A page that leaves between the
// two calls simply faults again.
//
// Bytes are not read or written one by one, and may be read or written more
// than once, but no byte is touched before all bytes 128 or more in front of
// it have been written. The operands must not overlap and must not hold Go
// pointers, and dst is written without telling the race detector. A fault
// outside every arena is an ordinary Go fault. Like the runtime's memmove it
// is not preemptible: bound n.
//
//go:noescape
func CopyOut(dst, src unsafe.Pointer, n uintptr) (left, addr uintptr)
