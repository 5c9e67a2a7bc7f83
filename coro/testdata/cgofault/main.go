// Command cgofault lets C code, on Go's threads and on its own, and Go code
// called back from C, touch missing pages of an arena, while the collector
// runs; then a foreign fault has to reach Go.
package main

/*
#cgo LDFLAGS: -lpthread
#include <pthread.h>
#include <string.h>
#include <stdint.h>

static uint64_t sum(const unsigned char *p, long n) {
	uint64_t s = 0;
	for (long i = 0; i < n; i++) s += p[i];
	return s;
}
static int same(const void *a, const void *b, long n) { return memcmp(a, b, n) == 0; }

struct job { const unsigned char *p; long n; uint64_t s; };
static void *run(void *v) { struct job *j = v; j->s = sum(j->p, j->n); return 0; }
static uint64_t sum_on_thread(const unsigned char *p, long n) {
	struct job j = { p, n, 0 };
	pthread_t t;
	if (pthread_create(&t, 0, run, &j) != 0) return 0;
	pthread_join(t, 0);
	return j.s;
}
extern uint64_t goSum(void *p, long n);
static void *run_go(void *v) { struct job *j = v; j->s = goSum((void *)j->p, j->n); return 0; }
static uint64_t go_on_thread(const unsigned char *p, long n) {
	struct job j = { p, n, 0 };
	pthread_t t;
	if (pthread_create(&t, 0, run_go, &j) != 0) return 0;
	pthread_join(t, 0);
	return j.s;
}
*/
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
)

const (
	page  = 4096
	pages = 1 << 12
)

var lo, fd, buf uintptr

//go:nosplit
//go:norace
//go:nocheckptr
func decide(f *coro.Fault) coro.Verdict { return coro.Wait }

// serve is the fault server's; there is one.
//
//go:nosplit
//go:norace
//go:nocheckptr
func serve(f *coro.Fault) uintptr { return fill(f.Addr&^(page-1), buf) }

// fill installs a page that holds the low byte of its number.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fill(a, buf uintptr) uintptr {
	for i := uintptr(0); i < page; i++ {
		*(*byte)(unsafe.Add(bare.Ptr(buf), i)) = byte((a - lo) / page)
	}
	c := [5]uint64{uint64(a), uint64(buf), page}
	_, e := bare.Syscall(syscall.SYS_IOCTL, fd, 0xc028aa03, uintptr(unsafe.Pointer(&c)), 0, 0, 0)
	if e == uintptr(syscall.EEXIST) || e == uintptr(syscall.EAGAIN) {
		e = 0
	}
	return e
}

//export goSum
func goSum(p unsafe.Pointer, n C.long) C.uint64_t {
	var s C.uint64_t
	for _, b := range unsafe.Slice((*byte)(p), n) {
		s += C.uint64_t(b)
	}
	return s
}

func fail(format string, a ...any) {
	fmt.Printf(format+"\n", a...)
	os.Exit(1)
}

func mmap(n int) []byte {
	m, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_NORESERVE)
	if err != nil {
		fail("mmap: %v", err)
	}
	return m
}

func main() {
	var e uintptr
	if fd, e = bare.Syscall(323, syscall.O_CLOEXEC|1, 0, 0, 0, 0, 0); e != 0 {
		fmt.Println("SKIP: userfaultfd:", syscall.Errno(e))
		return
	}
	api := [3]uint64{0xaa, 1 << 7}
	bare.Syscall(syscall.SYS_IOCTL, fd, 0xc018aa3f, uintptr(unsafe.Pointer(&api)), 0, 0, 0)
	mem := mmap(pages * page)
	syscall.Madvise(mem, 15)
	b := mmap(page)
	clear(b)
	lo, buf = uintptr(unsafe.Pointer(&mem[0])), uintptr(unsafe.Pointer(&b[0]))
	reg := [4]uint64{uint64(lo), pages * page, 1}
	if _, e = bare.Syscall(syscall.SYS_IOCTL, fd, 0xc020aa00, uintptr(unsafe.Pointer(&reg)), 0, 0, 0); e != 0 {
		fail("register: %v", syscall.Errno(e))
	}
	if err := coro.AddArena(coro.ArenaConfig{Lo: lo, Hi: lo + pages*page, Decide: decide, Serve: serve}); err != nil {
		fail("%v", err)
	}
	go func() {
		for {
			runtime.GC()
		}
	}()
	b2 := mmap(page)
	clear(b2)
	go func() {
		var ps []coro.Parked
		for {
			ps = coro.NextParked(ps[:0])
			for _, p := range ps {
				p.Resume(fill(p.Addr&^(page-1), uintptr(unsafe.Pointer(&b2[0]))))
			}
		}
	}()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			ref := make([]byte, page)
			for i := g * 64; i < g*64+64; i++ {
				p := mem[i*page : (i+1)*page]
				want := C.uint64_t(byte(i)) * page
				var got C.uint64_t
				switch i % 4 {
				case 0:
					got = C.sum((*C.uchar)(&p[0]), page)
				case 1:
					for k := range ref {
						ref[k] = byte(i)
					}
					if C.same(unsafe.Pointer(&p[0]), unsafe.Pointer(&ref[0]), page) != 0 {
						got = want
					}
				case 2:
					got = C.sum_on_thread((*C.uchar)(&p[0]), page)
				case 3:
					got = C.go_on_thread((*C.uchar)(&p[0]), page)
				}
				if got != want {
					fail("page %d, way %d: sum %d, want %d", i, i%4, got, want)
				}
			}
		}()
	}
	wg.Wait()

	f, err := os.CreateTemp("", "")
	if err != nil {
		fail("%v", err)
	}
	os.Remove(f.Name())
	m, err := syscall.Mmap(int(f.Fd()), 0, page, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		fail("%v", err)
	}
	func() {
		debug.SetPanicOnFault(true)
		defer func() {
			a, ok := recover().(interface{ Addr() uintptr })
			if !ok || a.Addr() != uintptr(unsafe.Pointer(&m[8])) {
				fail("the foreign fault did not reach Go")
			}
		}()
		fmt.Println(m[8])
	}()
	s := coro.ReadStats()
	if s.Faults < 8*64 {
		fail("only %d faults", s.Faults)
	}
	fmt.Println("PASS", s.Faults, s.Parked, s.Blocked, s.Delivered)
}
