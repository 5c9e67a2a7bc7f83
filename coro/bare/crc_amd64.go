package bare

import (
	"hash/crc32"
	"unsafe"

	"golang.org/x/sys/cpu"
)

// crc32cSSE is CRC32C with the processor's own instruction.
//
//go:noescape
func crc32cSSE(p unsafe.Pointer, n uintptr) uint32

var (
	hasSSE42   = cpu.X86.HasSSE42
	castagnoli = *crc32.MakeTable(crc32.Castagnoli)
)

// CRC32C is the CRC-32C (Castagnoli) of the n bytes at p, of which n must be a
// multiple of 8: that of hash/crc32, for code that has no P.
//
//go:nosplit
//go:norace
//go:nocheckptr
func CRC32C(p unsafe.Pointer, n uintptr) uint32 {
	if hasSSE42 {
		return crc32cSSE(p, n)
	}
	return crc32cTable(p, n)
}

// crc32cTable is for processors from before 2009.
//
//go:nosplit
//go:norace
//go:nocheckptr
func crc32cTable(p unsafe.Pointer, n uintptr) uint32 {
	c := ^uint32(0)
	for i := uintptr(0); i < n; i++ {
		b := *(*byte)(unsafe.Add(p, i))
		c = *(*uint32)(unsafe.Add(unsafe.Pointer(&castagnoli), uintptr(byte(c)^b)*4)) ^ c>>8
	}
	return ^c
}
