package uffd

import (
	"runtime"
	"runtime/debug"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

var pageSize = uintptr(unix.Getpagesize())

// memory maps n fresh pages that live until the test ends. It returns their
// address; the bytes are reached through at, so that nothing but the test
// touches them.
func memory(t testing.TB, pages uintptr) uintptr {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, int(pages*pageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	return uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
}

// at is the byte at an address of mapped memory.
func at(addr uintptr) *byte { return *(**byte)(unsafe.Pointer(&addr)) }

// fill writes b to the first byte of n pages.
func fill(addr, pages uintptr, b byte) {
	for i := range pages {
		*at(addr + i*pageSize) = b
	}
}

// faulted runs f and returns the address of the fault that ended it, if one
// did: in SIGBUS mode that is what Go makes of an unanswered page fault.
func faulted(f func()) (addr uintptr, ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if e, is := recover().(interface {
			runtime.Error
			Addr() uintptr
		}); is {
			addr, ok = e.Addr(), true
		}
	}()
	f()
	return 0, false
}

func mustFault(t *testing.T, what string, want uintptr, f func()) {
	t.Helper()
	if addr, ok := faulted(f); !ok || addr != want {
		t.Errorf("%s: fault %v at %#x, want one at %#x", what, ok, addr, want)
	}
}

func mustNotFault(t *testing.T, what string, f func()) {
	t.Helper()
	if addr, ok := faulted(f); ok {
		t.Errorf("%s: fault at %#x, want none", what, addr)
	}
}

var sink byte

func load(addr uintptr) func()          { return func() { sink = *at(addr) } }
func store(addr uintptr, b byte) func() { return func() { *at(addr) = b } }

// open opens a descriptor in SIGBUS mode or skips the test.
func open(t testing.TB, want API) *FD {
	t.Helper()
	u, err := Open(APISigbus|want, 0)
	if err != nil {
		t.Skipf("this machine refuses: %v", err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

// region is n pages registered for missing and write-protect faults.
func region(t testing.TB, u *FD, pages uintptr) uintptr {
	t.Helper()
	addr := memory(t, pages)
	mode := RegisterMissing
	if u.API()&APIWriteProtect != 0 {
		mode |= RegisterWP
	}
	if err := u.Register(addr, pages*pageSize, mode); err != nil {
		t.Fatal(err)
	}
	return addr
}
