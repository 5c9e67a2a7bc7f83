package uffd

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// Pagemap is an open /proc/self/pagemap.
type Pagemap struct{ f *os.File }

// OpenPagemap opens the page map of this process. It needs no privilege.
// Whether it can scan is FeaturePagemapScan.
func OpenPagemap() (*Pagemap, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, fmt.Errorf("uffd: %w", err)
	}
	return &Pagemap{f}, nil
}

// Close closes the page map.
func (p *Pagemap) Close() error { return p.f.Close() }

// Scan finds the pages that match and writes them to runs, in ascending order:
// PAGEMAP_SCAN. n is the number of runs filled in, end the address the walk
// stopped at: if it is less than s.End (runs is full, or s.MaxPages reached)
// the caller goes on from there. runs may be empty: then ScanProtect is all
// that happens.
//
// The walk is not atomic, but with ScanProtect each page is tested and
// protected in one step. It blocks for the length of the walk: about 0.5 ms for
// 1 GiB without matches. Source: Documentation/admin-guide/mm/pagemap.rst.
func (p *Pagemap) Scan(s Scan, runs []PageRun) (n int, end uintptr, err error) {
	if masked(FeaturePagemapScan) {
		return 0, s.Start, &UnsupportedError{FeaturePagemapScan, ErrMasked}
	}
	var a argPagemapScan
	if unsafe.Sizeof(a) != sizePagemapScan {
		return 0, s.Start, ErrNotSupported // a system with 32-bit pointers
	}
	// vec is a pointer, not a number: runs may be on this goroutine's stack,
	// which may grow, and so move, on the way to the call.
	a = argPagemapScan{
		size:             sizePagemapScan,
		flags:            uint64(s.Flags),
		start:            uint64(s.Start),
		end:              uint64(s.End),
		vec:              unsafe.SliceData(runs),
		vecLen:           uint64(len(runs)),
		maxPages:         uint64(s.MaxPages),
		categoryInverted: uint64(s.Inverted),
		categoryMask:     uint64(s.Mask),
		categoryAnyof:    uint64(s.AnyOf),
		returnMask:       uint64(s.Return),
	}
	r, _, errno := syscall.Syscall(syscall.SYS_IOCTL, p.f.Fd(), ioctlPagemapScan, uintptr(unsafe.Pointer(&a)))
	if errno == syscall.ENOTTY {
		return 0, s.Start, &UnsupportedError{FeaturePagemapScan, errno}
	}
	if errno != 0 {
		return 0, uintptr(a.walkEnd), &OpError{Op: "pagemap_scan", Addr: s.Start, Len: s.End - s.Start, Err: errno}
	}
	return int(r), uintptr(a.walkEnd), nil
}
