// Command vectorkernel runs a third party's float32 kernel, AVX2 assembly that
// knows nothing of us, over missing pages of an arena while the collector
// runs, and compares with what plain Go finds. With the argument "allow" the
// kernel is allowed as a leaf. It is a module of its own, so that the project
// does not depend on the kernel's.
package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/viterin/vek/vek32"
)

const (
	page   = 4096
	pages  = 2048
	kernel = "github.com/viterin/vek/internal/functions.Dot_AVX2_F32"
)

var lo, fd, buf uintptr

//go:nosplit
//go:norace
//go:nocheckptr
func decide(f *coro.Fault) coro.Verdict { return coro.Wait }

//go:nosplit
//go:norace
//go:nocheckptr
func serve(f *coro.Fault) uintptr { return fill(f.Addr&^(page-1), buf) }

// element is what the arena holds at index i.
//
//go:nosplit
//go:norace
func element(i uintptr) float32 { return float32(i%97) / 8 }

//go:nosplit
//go:norace
//go:nocheckptr
func fill(a, buf uintptr) uintptr {
	for i := uintptr(0); i < page; i += 4 {
		*(*float32)(unsafe.Add(bare.Ptr(buf), i)) = element((a - lo + i) / 4)
	}
	c := [5]uint64{uint64(a), uint64(buf), page}
	_, e := bare.Syscall(syscall.SYS_IOCTL, fd, 0xc028aa03, uintptr(unsafe.Pointer(&c)), 0, 0, 0)
	if e == uintptr(syscall.EEXIST) || e == uintptr(syscall.EAGAIN) {
		e = 0
	}
	return e
}

func fail(a ...any) {
	fmt.Println(a...)
	os.Exit(1)
}

func mmap(n int) []byte {
	m, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_NORESERVE)
	if err != nil {
		fail(err)
	}
	return m
}

func main() {
	if !vek32.Info().Acceleration {
		fmt.Println("SKIP: no AVX2")
		return
	}
	var e uintptr
	if fd, e = bare.Syscall(323, syscall.O_CLOEXEC|1, 0, 0, 0, 0, 0); e != 0 {
		fmt.Println("SKIP: userfaultfd:", syscall.Errno(e))
		return
	}
	api := [3]uint64{0xaa, 1 << 7}
	bare.Syscall(syscall.SYS_IOCTL, fd, 0xc018aa3f, uintptr(unsafe.Pointer(&api)), 0, 0, 0)
	mem, b, b2 := mmap(page*pages), mmap(page), mmap(page)
	syscall.Madvise(mem, 15)
	clear(b)
	clear(b2)
	lo, buf = uintptr(unsafe.Pointer(&mem[0])), uintptr(unsafe.Pointer(&b[0]))
	reg := [4]uint64{uint64(lo), page * pages, 1}
	if _, e = bare.Syscall(syscall.SYS_IOCTL, fd, 0xc020aa00, uintptr(unsafe.Pointer(&reg)), 0, 0, 0); e != 0 {
		fail(syscall.Errno(e))
	}
	if err := coro.AddArena(coro.ArenaConfig{Lo: lo, Hi: lo + page*pages, Decide: decide, Serve: serve}); err != nil {
		fail(err)
	}
	go func() {
		var ps []coro.Parked
		for {
			ps = coro.NextParked(ps[:0])
			for _, p := range ps {
				p.Resume(fill(p.Addr&^(page-1), uintptr(unsafe.Pointer(&b2[0]))))
			}
		}
	}()
	if len(os.Args) > 1 {
		if err := coro.AllowLeaf(kernel); err != nil {
			fail(err)
		}
	}
	go func() {
		for {
			runtime.GC()
		}
	}()
	all := unsafe.Slice((*float32)(unsafe.Pointer(&mem[0])), page*pages/4)
	const dim = 3000 // a vector lies on three or four pages
	for i := 0; i+dim < len(all); i += dim {
		q := make([]float32, dim)
		want := 0.0
		for k := range q {
			q[k] = float32(k%13) / 4
			want += float64(element(uintptr(i+k))) * float64(q[k])
		}
		if got := vek32.Dot(all[i:i+dim], q); math.Abs(float64(got)-want) > want/1000 {
			fail("vector at", i, "got", got, "want", want)
		}
	}
	s := coro.ReadStats()
	fmt.Println("PASS parked", s.Parked, "blocked", s.Blocked)
}
