package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// properties looks at what a region says of itself.
func (a *actor) properties(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	if got := r.PageSize(); got != r.page {
		return fmt.Errorf("PageSize is %d, want %d", got, r.page)
	}
	if direct := r.Direct(); direct && r.path == "" {
		return errors.New("Direct, and the store is no file")
	}
	if r.Raw() == nil && int64(len(r.Bytes())) != r.Len() {
		return fmt.Errorf("Raw is %v, and Bytes has %d of %d bytes", r.Raw(), len(r.Bytes()), r.Len())
	}
	if s := r.Stats(); s.Resident < 0 || s.Dirty < 0 || !r.writable && s.Dirty != 0 {
		return fmt.Errorf("region statistics: %d resident, %d dirty", s.Resident, s.Dirty)
	}
	if r.p.Engine() == "" {
		return errors.New("the engine has no name")
	}
	if !r.writable || r.private || r.atomic {
		return nil
	}
	if err := r.Commit(context.Background()); !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("Commit of a region that is not atomic: %w", err)
	}
	return nil
}

// refused tries to write to a region that is read-only.
func (a *actor) refused(r *region) error {
	if r.writable {
		return errSkip
	}
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 4096)
	ctx := context.Background()
	var err error
	switch how := a.intn(6, "way"); how {
	case 0:
		_, err = r.WriteAt(make([]byte, n), off)
	case 1:
		var pin pager.Pin
		if pin, err = r.AcquireWrite(ctx, off, n); err == nil {
			pin.Release()
		}
	case 2:
		err = r.Update(ctx, func([]byte) error { return errors.New("Update ran") })
	case 3:
		err = r.Discard(ctx, off, n)
	case 4:
		err = r.Resize(ctx, r.Len())
	case 5:
		if r.Raw() != nil {
			return nil
		}
		err = pager.Guard(func() error {
			mem := r.Bytes()
			mem[off] = r.model[off]
			return errors.New("a store to a read-only region went through")
		})
		if r.excuses(err) {
			return nil // the page could not be read
		}
	}
	if !errors.Is(err, pager.ErrReadOnly) {
		return fmt.Errorf("a write was refused with %w, not ErrReadOnly", err)
	}
	return nil
}

// reopen closes a region over a file and maps the file again: what was written
// is there, what was private is not. Nothing else works on it meanwhile.
func (a *actor) reopen(r *region) error {
	if r.path == "" {
		return errSkip
	}
	defer a.nobodyHolds()()
	r.size.Lock()
	defer r.size.Unlock()
	size := r.Len()
	if r.atomic { // Close forgets what is not committed
		if err := r.Commit(context.Background()); err != nil {
			return fmt.Errorf("Commit: %w", err)
		}
	}
	if err := r.Close(); err != nil {
		return fmt.Errorf("Close: %w", err)
	}
	if _, err := r.ReadAt(make([]byte, 1), 0); !errors.Is(err, pager.ErrClosed) {
		return fmt.Errorf("ReadAt after Close: %w", err)
	}
	s, err := r.openFile()
	if err != nil {
		return err
	}
	if err := r.mapIt(s); err != nil {
		return fmt.Errorf("Map anew: %w", err)
	}
	if r.private {
		size = r.regionSpec.size
		clear(r.model)
		fixture.Fill(r.model[:size], 0, r.seed)
	}
	if r.Len() != size {
		return fmt.Errorf("Len is %d after Close and Map, want %d", r.Len(), size)
	}
	return nil
}

// inject makes a store fail, dawdle and stop short, or be well again.
func (a *actor) inject(r *region) error {
	if !r.faults {
		return errSkip
	}
	r.slow.Clear()
	prob := float64(1+a.intn(20, "percent")) / 100
	switch k := a.intn(6, "fault"); k {
	case 0:
		a.note("Inject nothing")
	case 1:
		a.note("Inject read errors %v", prob)
		r.slow.Inject(store.Fault{Ops: store.OnRead, Prob: prob, Err: syscall.EIO})
	case 2:
		a.note("Inject write errors %v", prob)
		r.slow.Inject(store.Fault{Ops: store.OnWrite, Prob: prob, Err: syscall.ENOSPC})
	case 3:
		a.note("Inject short reads %v", prob)
		r.slow.Inject(store.Fault{Ops: store.OnRead, Prob: prob, Short: 1 + a.intn(r.page, "bytes")})
	case 4:
		a.note("Inject short writes %v", prob)
		r.slow.Inject(store.Fault{Ops: store.OnWrite, Prob: prob, Short: 1 + a.intn(r.page, "bytes")})
	case 5:
		a.note("Inject delays %v", prob)
		r.slow.Inject(store.Fault{Prob: prob, Delay: time.Duration(a.intn(3000, "µs")) * time.Microsecond})
	}
	return nil
}

// copyBetween copies from another region to r, in a way in which one of the two
// is memory that the other works on.
func (a *actor) copyBetween(r *region) error {
	from := a.w.regions[a.intn(len(a.w.regions), "from")]
	if from == r {
		return errSkip
	}
	// In the order of the regions, as everybody who locks two.
	first, second := from, r
	if first.index > second.index {
		first, second = second, first
	}
	first.size.RLock()
	defer first.size.RUnlock()
	second.size.RLock()
	defer second.size.RUnlock()
	off, n := a.place(r, 64<<10)
	at, m := a.place(from, n)
	n = min(n, m)
	a.note("Copy %d bytes from %d of region %d to %d", n, at, from.index, off)
	for _, x := range []*region{first, second} {
		if x == r {
			defer r.lock(true, pager.Range{Off: off, Len: n})()
		} else {
			defer from.lock(false, pager.Range{Off: at, Len: n})()
		}
	}
	want := bytes.Clone(from.model[at : at+n])
	var err error
	switch k := a.intn(3, "way"); {
	case k == 0 && r.Raw() == nil && from.Raw() == nil:
		err = pager.Guard(func() error {
			copy(r.Bytes()[off:off+n], from.Bytes()[at:at+n])
			return nil
		})
	case k == 1 && r.Raw() == nil:
		err = pager.Guard(func() error {
			_, err := from.ReadAt(r.Bytes()[off:off+n], at)
			return err
		})
	case k == 2 && from.Raw() == nil:
		err = pager.Guard(func() error {
			_, err := r.WriteAt(from.Bytes()[at:at+n], off)
			return err
		})
	default:
		return nil
	}
	// Either of the two may fail.
	return a.settle(r, off, want, err, r.excuses(err) || from.excuses(err))
}
