//go:build linux

package pager

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
)

// openSpill makes the region's spill file: where the changed pages of a Private
// region go that must leave. It is an unlinked temporary file with the layout
// of the store, sparse. See where.go.
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
	r.write.side = st
	if err := f.Close(); err != nil {
		return fmt.Errorf("pager: spill file: %w", err)
	}
	k, ok := st.Kernel()
	if !ok || k.Off != 0 {
		return unsupported("spill file without a descriptor")
	}
	limit := r.opt.SpillLimit
	if limit == 0 {
		limit = size
	}
	d := r.d
	d.flags |= descSideOwn
	d.sideFD, d.sideMax = int32(k.FD), limit>>r.shift
	return d.openSideMap(uint64(size) >> r.shift)
}

// closeSide gives the side store and its tables back. A journal closes its own.
func (r *Region) closeSide(pages uint64) error {
	var errs []error
	if m := r.d.sideMap; m != nil {
		errs = append(errs, unix.MunmapPtr(m, sideMapBytes(pages)))
		r.d.sideMap = nil
	}
	errs = append(errs, r.d.closeSlots())
	if s := r.write.side; s != nil && r.journal == nil {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
