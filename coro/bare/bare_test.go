package bare

import (
	"bytes"
	"sync"
	"testing"
	"unsafe"
)

func TestAtomicsReturnWhatTheySay(t *testing.T) {
	var a uint32 = 7
	var b uint64 = 7
	if Load32(&a) != 7 || Load64(&b) != 7 {
		t.Fatal("Load")
	}
	Store32(&a, 1<<31)
	Store64(&b, 1<<63)
	if a != 1<<31 || b != 1<<63 {
		t.Fatalf("Store: %x %x", a, b)
	}
	if Cas32(&a, 1, 2) || a != 1<<31 || !Cas32(&a, 1<<31, 5) || a != 5 {
		t.Fatal("Cas32")
	}
	if Cas64(&b, 1, 2) || b != 1<<63 || !Cas64(&b, 1<<63, 5) || b != 5 {
		t.Fatal("Cas64")
	}
	if Add32(&a, 3) != 8 || Add32(&a, ^uint32(0)) != 7 || Add64(&b, 3) != 8 || Add64(&b, ^uint64(0)) != 7 {
		t.Fatal("Add must return the new value")
	}
	if Xchg32(&a, 9) != 7 || a != 9 {
		t.Fatal("Xchg32 must return the old value")
	}
	if Or64(&b, 8) != 7 || b != 15 || And64(&b, 3) != 15 || b != 3 {
		t.Fatal("Or64 and And64 must return the old value")
	}
}

func TestAtomicsLoseNoUpdate(t *testing.T) {
	const each = 20000
	var a uint32
	var b, c, bits uint64
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range each {
				Add32(&a, 1)
				Add64(&b, 1)
				for old := Load64(&c); !Cas64(&c, old, old+1); old = Load64(&c) {
				}
				Or64(&bits, 1<<w)
				And64(&bits, ^uint64(1<<w))
				Or64(&bits, 1<<(w+8))
			}
		}()
	}
	wg.Wait()
	if a != 4*each || b != 4*each || c != 4*each || bits != 0xf00 {
		t.Fatalf("lost updates: %d %d %d bits %x", a, b, c, bits)
	}
}

func TestCopyAndZeroTouchExactlyTheirRange(t *testing.T) {
	for _, n := range []int{0, 1, 3, 8, 63, 64, 65, 1000, 4096, 8191} {
		for _, d := range []int{0, 1, 7, 32} {
			src := make([]byte, n+64)
			for i := range src {
				src[i] = byte(i*7 + 1)
			}
			dst := bytes.Repeat([]byte{0xee}, n+64)
			Copy(unsafe.Pointer(&dst[d]), unsafe.Pointer(&src[3]), uintptr(n))
			if !bytes.Equal(dst[d:d+n], src[3:3+n]) {
				t.Fatalf("Copy of %d bytes to offset %d", n, d)
			}
			Zero(unsafe.Pointer(&src[d]), uintptr(n))
			for i, b := range dst {
				if (i < d || i >= d+n) && b != 0xee {
					t.Fatalf("Copy of %d bytes wrote beyond its range", n)
				}
			}
			for i, b := range src {
				if in := i >= d && i < d+n; in != (b == 0) && (in || byte(i*7+1) != 0) {
					t.Fatalf("Zero of %d bytes at %d: byte %d is %d", n, d, i, b)
				}
			}
		}
	}
}

func TestPtrKeepsTheAddress(t *testing.T) {
	if p := Ptr(0x7f0012345678); uintptr(p) != 0x7f0012345678 {
		t.Fatalf("got %p", p)
	}
}
