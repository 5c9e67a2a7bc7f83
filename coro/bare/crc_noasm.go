//go:build !amd64

package bare

import (
	"hash/crc32"
	"unsafe"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC32C is the CRC-32C (Castagnoli) of the n bytes at p, of which n must be a
// multiple of 8.
func CRC32C(p unsafe.Pointer, n uintptr) uint32 {
	return crc32.Checksum(unsafe.Slice((*byte)(p), n), castagnoli)
}
