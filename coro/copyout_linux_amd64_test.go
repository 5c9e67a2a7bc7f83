package coro

import (
	"bytes"
	"fmt"
	"testing"
	"unsafe"
)

// copyOutSizes are all sizes up to beyond the loop's first turns, and some
// large odd ones.
func copyOutSizes() (s []int) {
	for n := 0; n <= 300; n++ {
		s = append(s, n)
	}
	return append(s, 383, 384, 385, 511, 512, 513, 1000, 4095, 4096, 4097, 8192, 10001)
}

func withAndWithoutAVX(t *testing.T, f func(t *testing.T)) {
	had := copyAVX
	defer func() { copyAVX = had }()
	for _, avx := range []bool{false, true} {
		if avx && !had {
			continue
		}
		copyAVX = avx
		t.Run(fmt.Sprintf("avx=%v", avx), f)
	}
}

func TestCopyOutCopiesExactlyItsRange(t *testing.T) {
	withAndWithoutAVX(t, func(t *testing.T) {
		src := want(0, 16384)
		dst := make([]byte, 16384)
		for _, n := range copyOutSizes() {
			for _, a := range []int{0, 1, 3, 8, 15, 16, 31, 33, 63} {
				for i := range dst[:n+200] {
					dst[i] = 0xee
				}
				left, addr := CopyOut(unsafe.Pointer(&dst[64+a]), unsafe.Pointer(&src[a*5]), uintptr(n))
				if left != 0 || addr != 0 {
					t.Fatalf("n %d: left %d, address %#x without a fault", n, left, addr)
				}
				if !bytes.Equal(dst[64+a:64+a+n], src[a*5:a*5+n]) {
					t.Fatalf("n %d, alignment %d: wrong bytes", n, a)
				}
				for i, b := range dst[:n+200] {
					if (i < 64+a || i >= 64+a+n) && b != 0xee {
						t.Fatalf("n %d, alignment %d: wrote byte %d outside the range", n, a, i-64-a)
					}
				}
			}
		}
	})
}

// The border of the last page that is there is put at every distance from the
// start of the operand.
func TestCopyOutLandsExactlyOnMissingSource(t *testing.T) {
	mem := mini(t)
	const border = 4 * miniPage
	dst := make([]byte, 3*miniPage)
	withAndWithoutAVX(t, func(t *testing.T) {
		for _, n := range copyOutSizes() {
			if n == 0 || n > border {
				continue
			}
			for there := 0; there < n; there += 1 + there/17 + n/300 {
				miniReset(0, 8)
				start := border - there
				for p := start / miniPage; p < 4; p++ { // the pages below the border are there
					touch(mem, p*miniPage)
				}
				for i := range dst[:n+2] {
					dst[i] = 0xee
				}
				left, addr := CopyOut(unsafe.Pointer(&dst[1]), unsafe.Pointer(&mem[start]), uintptr(n))
				if int(left) != n-there || addr != miniLo+border {
					t.Fatalf("n %d, %d bytes there: left %d (want %d), address border%+d", n, there, left, n-there, int(addr-miniLo)-border)
				}
				if !bytes.Equal(dst[1:1+there], want(start, there)) {
					t.Fatalf("n %d, %d bytes there: they differ", n, there)
				}
				if dst[0] != 0xee || dst[1+there] != 0xee {
					t.Fatalf("n %d, %d bytes there: wrote beyond what it says", n, there)
				}
			}
		}
	})
}

func TestCopyOutLandsExactlyOnMissingAndProtectedDestination(t *testing.T) {
	mem := mini(t)
	const border = 4 * miniPage
	src := want(99999, 3*miniPage)
	withAndWithoutAVX(t, func(t *testing.T) {
		for _, protected := range []bool{false, true} {
			for i, n := range copyOutSizes() {
				if n == 0 || n > 4097 || n > 140 && n < 300 && i%7 != 0 {
					continue
				}
				for there := 0; there < n; there += 1 + there/9 + n/100 {
					miniReset(0, 8)
					start := border - there
					for p := start / miniPage; p < 4; p++ {
						mem[p*miniPage] = 0 // there, and writable
					}
					if protected { // installed by a read: write-protected
						touch(mem, border)
					}
					left, addr := CopyOut(unsafe.Pointer(&mem[start]), unsafe.Pointer(&src[7]), uintptr(n))
					if int(left) != n-there || addr != miniLo+border {
						t.Fatalf("protected %v, n %d, %d bytes there: left %d (want %d), address border%+d", protected, n, there, left, n-there, int(addr-miniLo)-border)
					}
					if !bytes.Equal(mem[start:start+there], src[7:7+there]) {
						t.Fatalf("protected %v, n %d, %d bytes there: they differ", protected, n, there)
					}
				}
			}
		}
	})
}

// Both operands end early, at different distances: the landing itself faults.
func TestCopyOutLandsOnTheEarlierOfTwoBorders(t *testing.T) {
	mem := mini(t)
	const sb, db = 4 * miniPage, 12 * miniPage
	withAndWithoutAVX(t, func(t *testing.T) {
		for _, n := range []int{1, 2, 5, 11, 16, 17, 40, 64, 100, 128, 129, 200, 300, 1000} {
			for s := 0; s <= n; s += 1 + n/25 {
				for d := 0; d <= n; d += 1 + n/26 {
					miniReset(0, 16)
					touch(mem, 3*miniPage)
					mem[11*miniPage] = 0
					left, addr := CopyOut(unsafe.Pointer(&mem[db-d]), unsafe.Pointer(&mem[sb-s]), uintptr(n))
					there := min(n, s, d)
					if int(left) != n-there {
						t.Fatalf("n %d, source %d, destination %d: left %d", n, s, d, left)
					}
					if left != 0 && !(addr == miniLo+sb && s == there || addr == miniLo+db && d == there) {
						t.Fatalf("n %d, source %d, destination %d: address %#x", n, s, d, addr-miniLo)
					}
					if !bytes.Equal(mem[db-d:db-d+there], want(sb-s, there)) {
						t.Fatalf("n %d, source %d, destination %d: wrong bytes", n, s, d)
					}
				}
			}
		}
	})
}

func BenchmarkCopyOut(b *testing.B) {
	for _, n := range []int{8, 64, 256, 1024, 4096, 16384, 65536} {
		for _, a := range []int{0, 5} {
			src, dst := make([]byte, n+64), make([]byte, n+64)
			b.Run(fmt.Sprintf("CopyOut/%d+%d", n, a), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					CopyOut(unsafe.Pointer(&dst[0]), unsafe.Pointer(&src[a]), uintptr(n))
				}
			})
			b.Run(fmt.Sprintf("copy/%d+%d", n, a), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					copy(dst[:n], src[a:a+n])
				}
			})
		}
	}
}
