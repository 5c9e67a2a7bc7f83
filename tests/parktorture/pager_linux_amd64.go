package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
)

const (
	page         = 4096
	scratchPages = 4 // of each goroutine
)

// region is a pager in miniature over one arena of two halves.
//
// In the lower half every word is a function of its offset; at most budget
// pages are resident, and the oldest leaves. In the upper half, from writable
// on, every goroutine has a word of its own in every page; pages come in as
// zeros, never leave, and are write-protected again and again. Its second half,
// from scratch on, has some pages for each goroutine alone, which drops them.
type region struct {
	lo, size, writable uintptr
	scratch            uintptr
	fd                 uintptr
	budget             int
	latency            time.Duration

	mu       sync.Mutex
	resident map[uintptr]bool
	fifo     []uintptr
	waiting  map[uintptr][]coro.Parked
	loaded   atomic.Uint64
	evicted  atomic.Uint64
}

// What Decide and Serve know. There is one region in the process.
var (
	lo, writableLo, fd uintptr
	buffers            uintptr // one page for each bit of buffersUsed
	buffersUsed        uint64
	failing            uintptr // offset of a page that cannot be read; always the same
)

//go:nosplit
//go:norace
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}

// load installs the page at a. It is what the fault server does, and what the
// park goroutine does.
//
//go:nosplit
//go:norace
//go:nocheckptr
func load(f *coro.Fault) uintptr {
	a := f.Addr &^ (page - 1)
	if a-lo == failing {
		return uintptr(syscall.EIO)
	}
	var b uint64
	for {
		used := bare.Load64(&buffersUsed)
		for b = 0; b < 64 && used>>b&1 != 0; b++ {
		}
		if b < 64 && bare.Cas64(&buffersUsed, used, used|1<<b) {
			break
		}
		bare.Pause()
	}
	buf := buffers + uintptr(b)*page
	if a >= writableLo {
		bare.Zero(bare.Ptr(buf), page)
	} else {
		for i := uintptr(0); i < page; i += 8 {
			*(*uint64)(unsafe.Add(bare.Ptr(buf), i)) = mix(uint64(a - lo + i))
		}
	}
	var c [5]uint64
	c[0], c[1], c[2] = uint64(a), uint64(buf), page
	if a >= writableLo && f.Access == coro.Read {
		c[3] = 2 // write-protected
	}
	_, e := bare.Syscall(syscall.SYS_IOCTL, fd, 0xc028aa03, uintptr(unsafe.Pointer(&c)), 0, 0, 0)
	bare.And64(&buffersUsed, ^uint64(1<<b))
	if e == uintptr(syscall.EEXIST) || e == uintptr(syscall.EAGAIN) {
		e = 0
	}
	return e
}

//go:nosplit
//go:norace
//go:nocheckptr
func protect(a, n, mode uintptr) {
	w := [3]uint64{uint64(a), uint64(n), uint64(mode)}
	bare.Syscall(syscall.SYS_IOCTL, fd, 0xc018aa06, uintptr(unsafe.Pointer(&w)), 0, 0, 0)
}

//go:nosplit
//go:norace
//go:nocheckptr
func decide(f *coro.Fault) coro.Verdict {
	if f.Access == coro.WriteProtected {
		protect(f.Addr&^(page-1), page, 0)
		return coro.Retry
	}
	return coro.Wait
}

func mmap(n uintptr) (uintptr, error) {
	m, err := syscall.Mmap(-1, 0, int(n), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_NORESERVE)
	if err != nil {
		return 0, err
	}
	return uintptr(unsafe.Pointer(unsafe.SliceData(m))), nil
}

func newRegion(size, writable uintptr, budget int, latency time.Duration) (*region, error) {
	r := &region{size: size, writable: writable, scratch: (size + writable) / 2, budget: budget, latency: latency,
		resident: map[uintptr]bool{}, waiting: map[uintptr][]coro.Parked{}}
	var e uintptr
	if r.fd, e = bare.Syscall(323, syscall.O_CLOEXEC|1, 0, 0, 0, 0, 0); e != 0 {
		return nil, fmt.Errorf("userfaultfd: %w", syscall.Errno(e))
	}
	api := [3]uint64{0xaa, 1<<7 | 1<<0}
	if _, e = bare.Syscall(syscall.SYS_IOCTL, r.fd, 0xc018aa3f, uintptr(unsafe.Pointer(&api)), 0, 0, 0); e != 0 {
		return nil, fmt.Errorf("UFFDIO_API: %w", syscall.Errno(e))
	}
	var err error
	if r.lo, err = mmap(size); err != nil {
		return nil, err
	}
	bare.Syscall(syscall.SYS_MADVISE, r.lo, size, 15, 0, 0, 0) // MADV_NOHUGEPAGE
	reg := [4]uint64{uint64(r.lo), uint64(size), 3, 0}
	if _, e = bare.Syscall(syscall.SYS_IOCTL, r.fd, 0xc020aa00, uintptr(unsafe.Pointer(&reg)), 0, 0, 0); e != 0 {
		return nil, fmt.Errorf("UFFDIO_REGISTER: %w", syscall.Errno(e))
	}
	if buffers, err = mmap(64 * page); err != nil {
		return nil, err
	}
	bare.Zero(bare.Ptr(buffers), 64*page)
	lo, writableLo, fd = r.lo, r.lo+writable, r.fd
	failing = size - page
	if err := coro.AddArena(coro.ArenaConfig{Lo: lo, Hi: lo + size, Decide: decide, Serve: load}); err != nil {
		return nil, err
	}
	go r.serve()
	go r.reprotect()
	return r, nil
}

// serve looks after parked goroutines.
func (r *region) serve() {
	var ps []coro.Parked
	for {
		ps = coro.NextParked(ps[:0])
		for _, p := range ps {
			if r.latency == 0 {
				p.Resume(r.install(p.Fault))
				continue
			}
			r.mu.Lock()
			a := p.Addr &^ (page - 1)
			w := append(r.waiting[a], p)
			r.waiting[a] = w
			r.mu.Unlock()
			if len(w) == 1 {
				time.AfterFunc(r.latency, func() {
					r.mu.Lock()
					w := r.waiting[a]
					delete(r.waiting, a)
					r.mu.Unlock()
					errno := r.install(p.Fault)
					for _, p := range w {
						p.Resume(errno)
					}
				})
			}
		}
	}
}

// install loads a page and lets the oldest go. Pages that the fault server
// loads are unknown here until they fault again, which is good enough.
func (r *region) install(f coro.Fault) uintptr {
	errno := load(&f)
	a := f.Addr &^ (page - 1)
	if errno != 0 || a >= r.lo+r.writable {
		return errno
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resident[a] {
		return 0
	}
	r.resident[a] = true
	r.loaded.Add(1)
	if r.fifo = append(r.fifo, a); len(r.fifo) > r.budget {
		v := r.fifo[0]
		r.fifo = r.fifo[1:]
		delete(r.resident, v)
		bare.Syscall(syscall.SYS_MADVISE, v, page, syscall.MADV_DONTNEED, 0, 0, 0)
		r.evicted.Add(1)
	}
	return 0
}

// reprotect makes writers fault, and empties the lower half now and then, so
// that pages brought in by the fault server leave too.
func (r *region) reprotect() {
	for i := 0; ; i++ {
		time.Sleep(200 * time.Microsecond)
		protect(r.lo+r.writable, r.size-r.writable, 1)
		if i%500 == 0 {
			r.mu.Lock()
			clear(r.resident)
			r.fifo = nil
			bare.Syscall(syscall.SYS_MADVISE, r.lo, r.writable, syscall.MADV_DONTNEED, 0, 0, 0)
			r.mu.Unlock()
		}
	}
}

// drop makes pages missing, as zeros.
func (r *region) drop(off uint64, n uintptr) {
	bare.Syscall(syscall.SYS_MADVISE, r.lo+uintptr(off), n, syscall.MADV_DONTNEED, 0, 0, 0)
}

func (r *region) at(off uint64) *uint64 { return (*uint64)(bare.Ptr(r.lo + uintptr(off))) }

func (r *region) mem(off uint64, n int) []byte {
	return unsafe.Slice((*byte)(bare.Ptr(r.lo+uintptr(off))), n)
}
