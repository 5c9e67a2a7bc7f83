package model

import (
	"bytes"
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

// change is one of the ways Go code writes: what model becomes, and how memory
// is made the same. The slots are locked.
func (a *actor) change(model []byte) (want []byte, write func(mem []byte)) {
	b := bytes.Clone(a.fresh(int64(len(model))))
	want = bytes.Clone(model)
	switch a.intn(5, "change") {
	case 0:
		copy(want, b)
		return want, func(mem []byte) { copy(mem, b) }
	case 1:
		copy(want, b)
		return want, func(mem []byte) {
			for i := range mem {
				mem[i] = b[i]
			}
		}
	case 2: // read, modify, write: what is lost is seen
		for i := range want {
			want[i] += b[i]
		}
		return want, func(mem []byte) {
			for i := range mem {
				mem[i] += b[i]
			}
		}
	case 3:
		clear(want)
		return want, func(mem []byte) { clear(mem) }
	}
	// One atomic addition now and then. Regions begin at page boundaries, so the
	// model need not know the address.
	const ones = 0x0101010101010101
	return want, func(mem []byte) {
		for i := 0; i+8 <= len(mem); i++ {
			p := unsafe.Pointer(&mem[i])
			if uintptr(p)%8 != 0 {
				continue
			}
			atomic.AddUint64((*uint64)(p), ones)
			binary.NativeEndian.PutUint64(want[i:], binary.NativeEndian.Uint64(want[i:])+ones)
			i += 511
		}
	}
}

// settled takes the end of a change of [off, off+len(want)) into the model: if
// err is what a failing store may lead to, every byte must be the old or the new
// one, and which is found out.
func (a *actor) settled(r *region, off int64, want []byte, err error) error {
	return a.settle(r, off, want, err, r.excuses(err))
}

// settle is settled with the verdict on err given.
func (a *actor) settle(r *region, off int64, want []byte, err error, excused bool) error {
	model := r.model[off : off+int64(len(want))]
	switch {
	case err == nil:
		copy(model, want)
		return nil
	case !excused:
		a.w.spoiled.Store(true)
		return err
	}
	now := make([]byte, len(want))
	for try := 0; ; try++ {
		_, err := r.ReadAt(now, off)
		if err == nil {
			break
		}
		if !r.excuses(err) || try > 10000 {
			return fmt.Errorf("what a failed change has left cannot be read: %w", err)
		}
	}
	for i, b := range now {
		if b != model[i] && b != want[i] {
			return fmt.Errorf("a change that failed left %#x at %d, neither the old %#x nor the new %#x", b, off+int64(i), model[i], want[i])
		}
	}
	copy(model, now)
	return nil
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
	got, err := r.WriteAt(b, off)
	if (err == nil) != (int64(got) == n) {
		return fmt.Errorf("WriteAt: %d of %d bytes, %w", got, n, err)
	}
	if r.excuses(err) { // what it says is written is
		copy(r.model[off:off+int64(got)], b)
		b, off = bytes.Clone(b[got:]), off+int64(got)
	}
	return a.settled(r, off, b, err)
}

func (a *actor) store(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 64<<10)
	defer r.lock(true, pager.Range{Off: off, Len: n})()
	want, write := a.change(r.model[off : off+n])
	err := pager.Guard(func() error {
		write(r.Bytes()[off : off+n])
		return nil
	})
	return a.settled(r, off, want, err)
}

func (a *actor) update(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 64<<10)
	defer r.lock(true, pager.Range{Off: off, Len: n})()
	own := errors.New("the closure's own")
	ran := 0
	want, write := a.change(r.model[off : off+n])
	err := r.Update(context.Background(), func(mem []byte) error {
		ran++
		write(mem[off : off+n])
		return own
	})
	if ran != 1 || !errors.Is(err, own) && !r.excuses(err) {
		return fmt.Errorf("Update ran %d times: %w", ran, err)
	}
	if errors.Is(err, own) {
		err = nil
	}
	return a.settled(r, off, want, err)
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
		if excused(err, early) || r.excuses(err) {
			return nil
		}
		return err
	}
	defer pin.Release()
	want, write := a.change(r.model[off : off+n])
	write(pin.Bytes())
	copy(r.model[off:off+n], want)
	return a.pinned(r, pin, off, n)
}

// durable runs sync while a range is kept from changing, then compares the
// range with the store; other slots of the same pages do change meanwhile.
func (a *actor) durable(r *region, sync func(off, n int64) error) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 64<<10)
	defer r.lock(false, pager.Range{Off: off, Len: n})()
	if err := sync(off, n); r.excuses(err) {
		return nil
	} else if err != nil {
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

func (a *actor) commit(r *region) error {
	if !r.atomic {
		return errSkip
	}
	return a.durable(r, func(int64, int64) error {
		if a.intn(2, "with others") == 0 {
			ctx := context.Background()
			if a.intn(2, "cancellable") == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				defer cancel()
			}
			return r.Commit(ctx)
		}
		all := []*pager.Region{r.Region}
		for _, o := range a.w.regions {
			// Resize and Reopen of the others are kept out as they are here.
			if o != r && o.atomic && o.p == r.p && o.size.TryRLock() {
				defer o.size.RUnlock()
				all = append(all, o.Region)
			}
		}
		return r.p.Commit(context.Background(), all...)
	})
}

func (a *actor) syncRange(r *region) error {
	return a.durable(r, func(off, n int64) error { return r.partly(r.SyncRange(context.Background(), off, n)) })
}

// partly is what becomes of syncing a part of an Atomic region: it is refused.
func (r *region) partly(err error) error {
	switch {
	case !r.atomic:
		return err
	case errors.Is(err, errors.ErrUnsupported):
		return nil
	}
	return fmt.Errorf("a part of an Atomic region was synced: %w", err)
}

func (a *actor) syncEventfd(r *region) error {
	return a.durable(r, func(off, n int64) error {
		efd, err := eventfd.New()
		if err != nil {
			return err
		}
		defer efd.Close()
		if r.atomic {
			if n < r.Len() {
				_, err := r.SyncEventfd(off, n, efd.FD())
				return r.partly(err)
			}
		}
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
	return a.settled(r, off, make([]byte, n), r.Discard(context.Background(), off, n))
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
	before := r.Len()
	err := r.Resize(context.Background(), size)
	if r.excuses(err) {
		size = before // nothing has happened
	} else if err != nil {
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
