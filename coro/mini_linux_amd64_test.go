package coro

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// A pager in miniature: one arena whose pages hold a function of their offset,
// served at once by whoever needs them. It speaks to userfaultfd by raw system
// calls, so that these tests need nothing above coro.

const (
	miniPage  = 4096
	miniPages = 4096

	miniFail = 1 // page state: cannot be read (EIO)
	miniGo   = 2 // page state: needs Go code

	sysUserfaultfd   = 323
	uffdAPI          = 0xc018aa3f
	uffdRegister     = 0xc020aa00
	uffdCopy         = 0xc028aa03
	uffdWriteProtect = 0xc018aa06
)

var (
	miniLo    uintptr
	miniFD    uintptr
	miniBufs  uintptr // one page for each of 64 concurrent fills
	miniBusy  uint64
	miniState [miniPages]uint32
	miniMode  uint32 // verdict for missing pages
	miniOnce  sync.Once
	miniErr   error
)

//go:nosplit
//go:norace
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}

//go:nosplit
//go:norace
//go:nocheckptr
func miniFill(f *Fault) uintptr {
	off := (f.Addr - miniLo) &^ (miniPage - 1)
	st := bare.Load32(&miniState[off/miniPage%miniPages])
	if st == miniFail {
		return uintptr(syscall.EIO)
	}
	var b uint64
	for {
		used := bare.Load64(&miniBusy)
		for b = 0; b < 64 && used>>b&1 != 0; b++ {
		}
		if b < 64 && bare.Cas64(&miniBusy, used, used|1<<b) {
			break
		}
		bare.Pause()
	}
	src := bare.Ptr(miniBufs + uintptr(b)*miniPage)
	for i := uintptr(0); i < miniPage; i += 8 {
		*(*uint64)(unsafe.Add(src, i)) = mix(uint64(off + i))
	}
	var c [5]uint64
	c[0], c[1], c[2] = uint64(miniLo+off), uint64(miniBufs+uintptr(b)*miniPage), miniPage
	c[3] = 2 // UFFDIO_COPY_MODE_WP
	_, e := bare.Syscall(syscall.SYS_IOCTL, miniFD, uffdCopy, uintptr(unsafe.Pointer(&c)), 0, 0, 0)
	bare.And64(&miniBusy, ^uint64(1<<b))
	if e == uintptr(syscall.EEXIST) || e == uintptr(syscall.EAGAIN) {
		e = 0
	}
	return e
}

//go:nosplit
//go:norace
//go:nocheckptr
func miniDecide(f *Fault) Verdict {
	off := f.Addr - miniLo
	if f.Access == WriteProtected {
		var w [3]uint64
		w[0], w[1] = uint64(f.Addr&^(miniPage-1)), miniPage
		bare.Syscall(syscall.SYS_IOCTL, miniFD, uffdWriteProtect, uintptr(unsafe.Pointer(&w)), 0, 0, 0)
		return Retry
	}
	switch bare.Load32(&miniState[off/miniPage%miniPages]) {
	case miniGo:
		return WaitGo
	case miniFail:
		if Verdict(bare.Load32(&miniMode)) == Deliver {
			f.Errno = uintptr(syscall.EIO)
			return Deliver
		}
		return Wait
	}
	switch v := Verdict(bare.Load32(&miniMode)); v {
	case Retry:
		if f.Errno = miniFill(f); f.Errno != 0 {
			return Deliver
		}
		return Retry
	default:
		return v
	}
}

// mini returns the arena's memory with every page missing, or skips the test
// where userfaultfd is refused.
func mini(t testing.TB) []byte {
	t.Helper()
	miniOnce.Do(func() { miniErr = miniStart() })
	if miniErr != nil {
		t.Skip("no userfaultfd here: ", miniErr)
	}
	miniReset(0, miniPages)
	bare.Store32(&miniMode, uint32(Wait))
	return unsafe.Slice((*byte)(bare.Ptr(miniLo)), miniPages*miniPage)
}

func miniStart() error {
	fd, e := bare.Syscall(sysUserfaultfd, syscall.O_CLOEXEC|1, 0, 0, 0, 0, 0) // UFFD_USER_MODE_ONLY
	if e != 0 {
		return syscall.Errno(e)
	}
	api := [3]uint64{0xaa, 1<<7 | 1<<0} // SIGBUS, PAGEFAULT_FLAG_WP
	if _, e := bare.Syscall(syscall.SYS_IOCTL, fd, uffdAPI, uintptr(unsafe.Pointer(&api)), 0, 0, 0); e != 0 {
		return fmt.Errorf("UFFDIO_API: %w", syscall.Errno(e))
	}
	m, err := syscall.Mmap(-1, 0, miniPages*miniPage, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_NORESERVE)
	if err != nil {
		return err
	}
	syscall.Madvise(m, 15) // MADV_NOHUGEPAGE
	lo := uintptr(unsafe.Pointer(&m[0]))
	reg := [4]uint64{uint64(lo), miniPages * miniPage, 3, 0}
	if _, e := bare.Syscall(syscall.SYS_IOCTL, fd, uffdRegister, uintptr(unsafe.Pointer(&reg)), 0, 0, 0); e != 0 {
		return fmt.Errorf("UFFDIO_REGISTER: %w", syscall.Errno(e))
	}
	b, err := syscall.Mmap(-1, 0, 64*miniPage, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	clear(b)
	miniLo, miniFD, miniBufs = lo, fd, uintptr(unsafe.Pointer(&b[0]))
	return AddArena(ArenaConfig{Lo: lo, Hi: lo + miniPages*miniPage, Mode: miniParkMode(), Decide: miniDecide, Serve: miniFill, Inline: os.Getenv("UFFDPAGER_TEST_INLINE") != ""})
}

// miniParkMode is the arena's mode: UFFDPAGER_TEST_MODE in children.
func miniParkMode() Mode {
	m, err := ParseMode(os.Getenv("UFFDPAGER_TEST_MODE"))
	if err != nil {
		return Block
	}
	return m
}

// miniReset evicts pages and clears their state.
func miniReset(first, n int) {
	bare.Syscall(syscall.SYS_MADVISE, miniLo+uintptr(first)*miniPage, uintptr(n)*miniPage, syscall.MADV_DONTNEED, 0, 0, 0)
	for i := first; i < first+n; i++ {
		bare.Store32(&miniState[i], 0)
	}
}

// want is what the arena holds in [off, off+n).
func want(off, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		x := off + i
		b[i] = byte(mix(uint64(x&^7)) >> (8 * (x & 7)))
	}
	return b
}

// inChild runs the rest of the test in a process of its own that must end well
// within the deadline, and returns false in the parent. env is added to the
// child's.
func inChild(t *testing.T, deadline time.Duration, env ...string) bool {
	t.Helper()
	if os.Getenv("UFFDPAGER_TEST_CHILD") == t.Name() {
		return true
	}
	out, err := child(t, deadline, env...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("%s", out)
	}
	return false
}

func child(t *testing.T, deadline time.Duration, env ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v", "-test.timeout=0")
	c.Env = append(os.Environ(), "UFFDPAGER_TEST_CHILD="+t.Name())
	c.Env = append(c.Env, env...)
	out, err := c.CombinedOutput()
	if ctx.Err() != nil {
		return out, fmt.Errorf("hangs: %w", ctx.Err())
	}
	return out, err
}

// touch reads one byte; the compiler cannot drop it.
//
//go:noinline
func touch(mem []byte, i int) byte { return mem[i] }
