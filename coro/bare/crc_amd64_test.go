package bare

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"unsafe"
)

func TestCRC32CIsThatOfTheStandardLibrary(t *testing.T) {
	std := crc32.MakeTable(crc32.Castagnoli)
	b := make([]byte, 8192)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	for _, n := range []int{0, 8, 16, 512, 4096, 8184} {
		for _, d := range []int{0, 1, 7} {
			want := crc32.Checksum(b[d:d+n], std)
			if got := CRC32C(unsafe.Pointer(&b[d]), uintptr(n)); got != want {
				t.Errorf("CRC32C of %d bytes: %#x, want %#x", n, got, want)
			}
			if got := crc32cTable(unsafe.Pointer(&b[d]), uintptr(n)); got != want {
				t.Errorf("by table, of %d bytes: %#x, want %#x", n, got, want)
			}
		}
	}
}

func BenchmarkCRC32C(b *testing.B) {
	p := make([]byte, 4096)
	b.SetBytes(4096)
	for b.Loop() {
		CRC32C(unsafe.Pointer(&p[0]), 4096)
	}
}
