package model

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/tests/internal/eventfd"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// fresh is n bytes that were never written before, or sometimes zeros.
func (a *actor) fresh(n int64) []byte {
	b := a.scratch(n)
	switch seed := a.intn(1<<16, "contents"); seed {
	case 0:
		clear(b)
	default:
		fixture.Fill(b, int64(a.step)*8, uint64(a.id)<<32|uint64(seed))
	}
	return b
}

// change changes raw memory and the model alike, in one of the ways Go code
// writes. The slots are locked.
func (a *actor) change(mem, model []byte) {
	b := a.fresh(int64(len(model)))
	switch a.intn(5, "change") {
	case 0:
		copy(mem, b)
		copy(model, b)
	case 1:
		for i := range mem {
			mem[i] = b[i]
		}
		copy(model, b)
	case 2: // read, modify, write: what is lost is seen
		for i := range model {
			mem[i] += b[i]
			model[i] += b[i]
		}
	case 3:
		clear(mem)
		clear(model)
	case 4: // one atomic addition now and then
		for i := 0; i+8 <= len(model); i++ {
			p := unsafe.Pointer(&mem[i])
			if uintptr(p)%8 != 0 {
				continue
			}
			const ones = 0x0101010101010101
			atomic.AddUint64((*uint64)(p), ones)
			binary.NativeEndian.PutUint64(model[i:], binary.NativeEndian.Uint64(model[i:])+ones)
			i += 511
		}
	}
}

func (a *actor) writeAt(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 1<<20)
	return a.writeRange(r, off, n)
}

// writePages writes whole pages, which read nothing.
func (a *actor) writePages(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	page := int64(r.page)
	off, n := a.place(r, 1<<20)
	off -= off % page
	n = min((n+page-1)/page*page, r.Len()-off)
	return a.writeRange(r, off, n)
}

func (a *actor) writeRange(r *region, off, n int64) error {
	defer r.lock(true, pager.Range{Off: off, Len: n})()
	b := a.fresh(n)
	if got, err := r.WriteAt(b, off); err != nil || int64(got) != n {
		return fmt.Errorf("WriteAt: %d, %w", got, err)
	}
	copy(r.model[off:off+n], b)
	return nil
}

func (a *actor) store(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 64<<10)
	defer r.lock(true, pager.Range{Off: off, Len: n})()
	return pager.Guard(func() error {
		a.change(r.Bytes()[off:off+n], r.model[off:off+n])
		return nil
	})
}

func (a *actor) update(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 64<<10)
	defer r.lock(true, pager.Range{Off: off, Len: n})()
	own := errors.New("the closure's own")
	ran := 0
	err := r.Update(context.Background(), func(mem []byte) error {
		ran++
		a.change(mem[off:off+n], r.model[off:off+n])
		return own
	})
	if ran != 1 || !errors.Is(err, own) {
		return fmt.Errorf("Update ran %d times: %w", ran, err)
	}
	return nil
}

func (a *actor) acquireWrite(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n, err := a.pinnable(r)
	if err != nil {
		return err
	}
	ctx, cancel, early := a.context()
	defer cancel()
	defer r.lock(true, pager.Range{Off: off, Len: n})()
	pin, err := r.AcquireWrite(ctx, off, n)
	if err != nil {
		if excused(err, early) {
			return nil
		}
		return err
	}
	defer pin.Release()
	a.change(pin.Bytes(), r.model[off:off+n])
	return a.pinned(r, pin, off, n)
}

// durable runs sync while a range is kept from changing, then compares the
// range with the store; other slots of the same pages do change meanwhile.
func (a *actor) durable(r *region, sync func(off, n int64) error) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 64<<10)
	defer r.lock(false, pager.Range{Off: off, Len: n})()
	if err := sync(off, n); err != nil {
		return err
	}
	if r.private {
		return nil
	}
	return r.checkStore(off, n)
}

func (a *actor) sync(r *region) error {
	return a.durable(r, func(int64, int64) error { return r.Sync(context.Background()) })
}

func (a *actor) syncRange(r *region) error {
	return a.durable(r, func(off, n int64) error { return r.SyncRange(context.Background(), off, n) })
}

func (a *actor) syncEventfd(r *region) error {
	return a.durable(r, func(off, n int64) error {
		efd, err := eventfd.New()
		if err != nil {
			return err
		}
		defer efd.Close()
		op, err := r.SyncEventfd(off, n, efd.FD())
		if err != nil {
			return err
		}
		if err := efd.Wait(); err != nil {
			return err
		}
		select {
		case <-op.Done():
			return op.Err()
		default:
			return errors.New("signalled, and Done is open")
		}
	})
}

func (a *actor) discard(r *region) error {
	defer a.nobodyHolds()()
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 64<<10)
	defer r.lock(true, pager.Range{Off: off, Len: n})()
	if err := r.Discard(context.Background(), off, n); err != nil {
		return err
	}
	clear(r.model[off : off+n])
	return nil
}

// resize sets another size; what comes anew is zeros. Nothing else works on
// the region meanwhile.
func (a *actor) resize(r *region) error {
	if r.maxSize == r.regionSpec.size {
		return errSkip
	}
	defer a.nobodyHolds()()
	r.size.Lock()
	defer r.size.Unlock()
	size := 1 + int64(a.intn(int(r.maxSize), "size"))
	a.note("Resize(%d) from %d", size, r.Len())
	old := r.Bytes()
	if err := r.Resize(context.Background(), size); err != nil {
		return err
	}
	if r.Len() != size {
		return fmt.Errorf("Resize(%d), and Len is %d", size, r.Len())
	}
	clear(r.model[size:])
	if now := r.Bytes(); r.Raw() == nil && &now[0] != &old[0] {
		return errors.New("Resize moved the memory")
	}
	return nil
}
