package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/uffdpager/uffdpager/pager/store"
)

// Slots is how many slots there are now: 0 … Slots()-1.
func (j *Journal) Slots() uint32 { return j.slots.Load() }

// MaxSlots is how many there can be at the limit. A store that cannot grow
// has all of them from the beginning.
func (j *Journal) MaxSlots() uint32 {
	j.mu.Lock()
	defer j.mu.Unlock()
	// All of them must fit in one record.
	n := min((j.opt.Limit-j.base)/j.page, (j.head.ring.len-rHead)/rEntry, maxSlot)
	return uint32(max(n, 0))
}

// SlotOffset is where a slot begins in Store(): a multiple of the page size.
func (j *Journal) SlotOffset(slot uint32) int64 { return j.base + int64(slot)*j.page }

// count sets Slots to what the store holds. A journal that was opened with a
// higher limit before has slots past the present one: they are used if live.
func (j *Journal) count() {
	n := uint32(max(0, min((j.s.Size()-j.base)/j.page, maxSlot)))
	if len(j.log) == 0 {
		n = min(n, j.MaxSlots())
	}
	j.slots.Store(n)
}

// Grow adds slots, about as many as there are, zero-fills and flushes them, and
// returns Slots. It waits; commits and checkpoints may go on meanwhile.
//
// ErrFull: the limit is reached, or the store cannot grow. Other errors
// (ENOSPC, say) leave the journal as it was.
func (j *Journal) Grow(ctx context.Context) (uint32, error) {
	if j.readOnly {
		return j.Slots(), ErrReadOnly
	}
	have, most := int64(j.Slots()), int64(j.MaxSlots())
	n := min(stepFrom(have, j.page), most-have)
	if n <= 0 {
		return j.Slots(), fmt.Errorf("%w: %d slots, the limit", ErrFull, have)
	}
	err := j.extend(ctx, j.SlotOffset(uint32(have+n)))
	if errors.Is(err, store.ErrNotSupported) {
		err = fmt.Errorf("%w: %v cannot grow", ErrFull, j.s)
	}
	if err != nil {
		return j.Slots(), err
	}
	j.slots.Store(uint32(have + n))
	return j.Slots(), nil
}

// settle makes the store long enough for the layout. A store that cannot grow
// gets a layout that fits it.
func (j *Journal) settle(ctx context.Context) error {
	if size := j.s.Size(); size < j.opt.Limit {
		o := j.opt
		o.Limit = size
		if l, err := o.fill(); err == nil && o.Limit == size && j.fixed() {
			j.opt, j.layout = o, l
		}
	}
	return j.extend(ctx, j.layout.slots)
}

// fixed: the store cannot grow. It is tried, since nothing else says so.
func (j *Journal) fixed() bool {
	size := j.s.Size()
	if err := j.s.Truncate(size + block); err != nil {
		return errors.Is(err, store.ErrNotSupported)
	}
	_ = j.s.Truncate(size) // what is too long is only zeros
	return false
}

// extend makes the store at least end bytes long, all of it written once.
func (j *Journal) extend(ctx context.Context, end int64) error {
	size := j.s.Size()
	if size >= end {
		return nil
	}
	err := j.s.Truncate(end)
	if err == nil {
		err = j.zero(ctx, size, end)
	}
	if err == nil {
		err = j.flush()
	}
	if err != nil {
		if j.s.Size() > size {
			err = errors.Join(err, j.s.Truncate(size))
		}
		return fmt.Errorf("journal: grow %v from %d to %d bytes: %w", j.s, size, end, err)
	}
	return nil
}
