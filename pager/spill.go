//go:build linux

package pager

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
)

// spill is where the changed pages of a Private region go that must leave: an
// unlinked temporary file with the layout of the store, sparse, and a bit for
// each page that says that it is there.
type spill struct {
	st    store.Store
	bits  unsafe.Pointer
	n     uintptr // bytes of bits
	limit int64   // pages
}

// openSpill makes the region's spill file.
func (r *Region) openSpill(reach int64) error {
	dir := r.opt.SpillDir
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := os.CreateTemp(dir, "uffdpager-spill-*")
	if err != nil {
		return fmt.Errorf("pager: spill file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return errors.Join(fmt.Errorf("pager: spill file: %w", err), f.Close())
	}
	size := (reach + 1<<r.shift - 1) >> r.shift << r.shift
	if err := f.Truncate(size); err != nil {
		return errors.Join(fmt.Errorf("pager: spill file: %w", err), f.Close())
	}
	st, err := store.NewFile(f, store.FileOptions{})
	if err != nil {
		return errors.Join(fmt.Errorf("pager: spill file: %w", err), f.Close())
	}
	k, ok := st.Kernel()
	if !ok || k.Off != 0 {
		return errors.Join(unsupported("spill file without a descriptor"), st.Close())
	}
	n := (uintptr(size)>>r.shift/64 + 1) * 8
	n = (n + FrameSize - 1) &^ (FrameSize - 1)
	bits, err := reserve(n)
	if err != nil {
		return errors.Join(err, st.Close())
	}
	limit := r.opt.SpillLimit
	if limit == 0 {
		limit = size
	}
	r.write.spill = &spill{st: st, bits: bits, n: n, limit: limit >> r.shift}
	r.d.spillBits, r.d.spillFD = bits, int32(k.FD)
	return nil
}

func (s *spill) close() error {
	return errors.Join(unix.MunmapPtr(s.bits, s.n), s.st.Close())
}

// spilled: the page is in the spill file.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) spilled(page uint64) bool {
	if d.spillBits == nil {
		return false
	}
	return bare.Load64((*uint64)(unsafe.Add(d.spillBits, page>>6*8)))>>(page&63)&1 != 0
}

// setSpilled reports whether the page was not there before.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) setSpilled(page uint64) bool {
	bit := uint64(1) << (page & 63)
	return bare.Or64((*uint64)(unsafe.Add(d.spillBits, page>>6*8)), bit)&bit == 0
}

// writeStore is where dirty pages go.
func (r *Region) writeStore() store.Store {
	if s := r.write.spill; s != nil {
		return s.st
	}
	return r.store
}

// spillRoom says whether page may be written: always, but to a spill file that
// is full.
func (r *Region) spillRoom(page uint64) bool {
	s := r.write.spill
	return s == nil || load64(&r.d.spillUsed) < s.limit || r.d.spilled(page)
}

// markSpilled notes that pages have been written to the spill file.
func (r *Region) markSpilled(first, n uint64) {
	s := r.write.spill
	if s == nil {
		return
	}
	for page := first; page < first+n; page++ {
		if r.d.setSpilled(page) {
			add64(&r.d.spillUsed, 1)
		}
	}
}

// unspill forgets spilled pages from first on (truncation, discard).
func (r *Region) unspill(first, n uint64) {
	s := r.write.spill
	if s == nil {
		return
	}
	for page := first; page < first+n; page++ {
		bit := uint64(1) << (page & 63)
		if bare.And64((*uint64)(unsafe.Add(s.bits, page>>6*8)), ^bit)&bit != 0 {
			add64(&r.d.spillUsed, -1)
		}
	}
}
