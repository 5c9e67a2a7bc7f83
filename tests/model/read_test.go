package model

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"slices"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/tests/internal/eventfd"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// look compares raw memory with what it should be, in one of the ways Go code
// looks at memory. Each faults differently.
func (a *actor) look(got, want []byte, off int64) error {
	differ := func() error {
		if err := fixture.Compare(bytes.Clone(got), want, off); err != nil {
			return err
		}
		return fmt.Errorf("differed at [%d, +%d), and no more when looked at again", off, len(want))
	}
	switch a.intn(7, "look") {
	case 0:
		for range 1 + a.intn(8, "loads") {
			i := a.intn(len(want), "byte")
			if got[i] != want[i] {
				return differ()
			}
		}
	case 1:
		b := a.scratch(int64(len(want)))
		copy(b, got)
		return fixture.Compare(b, want, off)
	case 2:
		if !bytes.Equal(got, want) {
			return differ()
		}
	case 3:
		if string(got) != string(want) {
			return differ()
		}
	case 4:
		if crc32.ChecksumIEEE(got) != crc32.ChecksumIEEE(want) {
			return differ()
		}
	case 5:
		for i := len(got) - 1; i >= 0; i-- {
			if got[i] != want[i] {
				return differ()
			}
		}
	case 6:
		return fixture.Compare(append([]byte(nil), got...), want, off)
	}
	return nil
}

func (a *actor) bytes(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 1<<20)
	defer r.lock(false, pager.Range{Off: off, Len: n})()
	mem := r.Bytes()
	if int64(len(mem)) != r.Len() || len(mem) != cap(mem) {
		return fmt.Errorf("Bytes has length %d, capacity %d; the region %d", len(mem), cap(mem), r.Len())
	}
	err := pager.Guard(func() error { return a.look(mem[off:off+n], r.model[off:off+n], off) })
	if r.excuses(err) {
		return nil
	}
	return err
}

func (a *actor) view(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	ctx, cancel, early := a.context()
	defer cancel()
	off, n := a.place(r, 1<<20)
	defer r.lock(false, pager.Range{Off: off, Len: n})()
	own := errors.New("the closure's own")
	ran := 0
	err := r.View(ctx, func(mem []byte) error {
		ran++
		if err := a.look(mem[off:off+n], r.model[off:off+n], off); err != nil {
			return err
		}
		return own
	})
	switch {
	case errors.Is(err, own):
		return nil
	case excused(err, early) || r.excuses(err):
		return nil
	case r.Raw() != nil && (errors.Is(err, pager.ErrNotSupported) || errors.Is(err, pager.ErrCannotPark)):
		return nil
	}
	return fmt.Errorf("View (ran %d times): %w", ran, err)
}

func (a *actor) readAt(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 1<<20)
	defer r.lock(false, pager.Range{Off: off, Len: n})()
	b := a.scratch(n)
	clear(b)
	got, err := r.ReadAt(b, off)
	if r.excuses(err) {
		return fixture.Compare(b[:got], r.model[off:off+int64(got)], off)
	}
	if err != nil || int64(got) != n {
		return fmt.Errorf("ReadAt: %d, %w", got, err)
	}
	return fixture.Compare(b, r.model[off:off+n], off)
}

// pinned compares what a pin shows, twice: it must stay.
func (a *actor) pinned(r *region, pin pager.Pin, off, n int64) error {
	for range 2 {
		if err := fixture.Compare(pin.Bytes(), r.model[off:off+n], off); err != nil {
			return err
		}
		runtime.Gosched()
	}
	return nil
}

func (a *actor) acquire(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n, err := a.pinnable(r)
	if err != nil {
		return err
	}
	ctx, cancel, early := a.context()
	defer cancel()
	defer r.lock(false, pager.Range{Off: off, Len: n})()
	pin, err := r.Acquire(ctx, off, n)
	if err != nil {
		if excused(err, early) || r.excuses(err) {
			return nil
		}
		return err
	}
	defer pin.Release()
	return a.pinned(r, pin, off, n)
}

func (a *actor) acquireV(r *region) error {
	if a.w.pinRoom == 0 {
		return errSkip
	}
	r.size.RLock()
	defer r.size.RUnlock()
	ctx, cancel, early := a.context()
	defer cancel()
	// Three pages per range in the worst case.
	k := 1 + a.intn(int(min(max(a.w.pinRoom/(3*int64(r.page)), 1), 4)), "ranges")
	rs := make([]pager.Range, k)
	for i := range rs {
		off, n := a.place(r, int64(r.page))
		if k == 1 && a.w.pinRoom < 3*int64(r.page) {
			n = min(n, int64(r.page)-off%int64(r.page))
		}
		rs[i] = pager.Range{Off: off, Len: n}
	}
	sorted := slices.Clone(rs)
	slices.SortFunc(sorted, func(x, y pager.Range) int { return int(x.Off - y.Off) })
	defer r.lock(false, sorted...)()
	pins := make([]pager.Pin, k)
	if err := r.AcquireV(ctx, rs, pins); err != nil {
		if excused(err, early) || r.excuses(err) {
			return nil
		}
		return fmt.Errorf("%v: %w", rs, err)
	}
	var first error
	for i, pin := range pins {
		if err := a.pinned(r, pin, rs[i].Off, rs[i].Len); err != nil && first == nil {
			first = fmt.Errorf("range %d of %v: %w", i, rs, err)
		}
		pin.Release()
	}
	return first
}

func (a *actor) tryAcquire(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n, err := a.pinnable(r)
	if err != nil {
		return err
	}
	defer r.lock(false, pager.Range{Off: off, Len: n})()
	pin, ok := r.TryAcquire(off, n)
	if !ok {
		return nil
	}
	defer pin.Release()
	return a.pinned(r, pin, off, n)
}

func (a *actor) lockEventfd(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n, err := a.pinnable(r)
	if err != nil {
		return err
	}
	ctx, cancel, early := a.context()
	defer cancel()
	defer r.lock(false, pager.Range{Off: off, Len: n})()
	efd := -1
	if a.intn(2, "eventfd") == 1 {
		fd, err := eventfd.New()
		if err != nil {
			return err
		}
		defer fd.Close()
		efd = fd.FD()
	}
	l, err := r.LockEventfd(off, n, efd)
	if err != nil {
		return err
	}
	defer l.Unlock()
	switch {
	case a.intn(8, "give up") == 7:
		return nil
	case efd >= 0:
		if err := eventfd.FromFD(efd).Wait(); err != nil {
			return err
		}
		if err := l.Err(); r.excuses(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("signalled with %w", err)
		}
	default:
		if err := l.Wait(ctx); err != nil {
			if excused(err, early) || r.excuses(err) {
				return nil
			}
			return err
		}
	}
	select {
	case <-l.Done():
	default:
		return errors.New("the lock is held, and Done is open")
	}
	// Locked memory can be looked at without a fault.
	if r.Raw() == nil {
		return fixture.Compare(r.Bytes()[off:off+n], r.model[off:off+n], off)
	}
	b := a.scratch(n)
	if _, err := r.ReadAt(b, off); err != nil {
		return err
	}
	return fixture.Compare(b, r.model[off:off+n], off)
}
