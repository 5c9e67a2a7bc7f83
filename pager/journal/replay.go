package journal

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Overlay is the log as one view over the data store.
type Overlay struct {
	// Length is the region's length in bytes; -1: the log is empty, the store
	// is the region.
	Length int64
	// Void is where the data store's own contents end to count: from there on
	// the region is zero, but for Pages.
	Void  int64
	Pages map[uint64]Image
}

// Image is the newest committed image of a page.
type Image struct {
	Slot, CRC uint32
	// Valid is how many bytes of it count; the rest of the page is zero, for
	// the region was cut there later.
	Valid int32
}

// Overlay makes one view of the log that Open has found.
func (j *Journal) Overlay() Overlay { return View(j.Log(), int(j.page)) }

// View makes one view of commits that follow one another, in their order.
func View(log []Commit, pageSize int) Overlay {
	page := int64(pageSize)
	v := Overlay{Length: -1, Pages: map[uint64]Image{}}
	for i, c := range log {
		if i == 0 || c.MinLength < v.Void {
			v.Void = c.MinLength
		}
		if i > 0 && c.MinLength < v.Length {
			v.cut(c.MinLength, page)
		}
		v.Length = c.Length
		for _, e := range c.Entries {
			v.Pages[e.Page] = Image{Slot: e.Slot, CRC: e.CRC, Valid: int32(page)}
		}
	}
	return v
}

// cut drops what lies past length.
func (v *Overlay) cut(length, page int64) {
	for p, i := range v.Pages {
		switch left := length - int64(p)*page; {
		case left <= 0:
			delete(v.Pages, p)
		case left < int64(i.Valid):
			i.Valid = int32(left)
			v.Pages[p] = i
		}
	}
}

// Replay flushes the log, writes it to data in place, flushes data, and then
// makes the log empty. It returns how many pages it has written. It waits.
//
// It may be interrupted and run again. An error leaves the log as it was.
func (j *Journal) Replay(ctx context.Context, data store.Store) (pages int, err error) {
	if j.readOnly {
		return 0, ErrReadOnly
	}
	log := j.Log()
	if len(log) == 0 {
		return 0, nil
	}
	// Where only the process had died, the last commit may be in no more than
	// the device's cache. It must not go in place before it is durable.
	if err := j.flush(); err != nil {
		return 0, fmt.Errorf("journal: replay: %w", err)
	}
	pages, err = j.Apply(ctx, data, j.Overlay())
	if err != nil {
		return 0, err
	}
	h, _ := j.emptied()
	if err := j.renew(ctx, h); err != nil {
		return 0, fmt.Errorf("journal: replay: %w", err)
	}
	return pages, nil
}

// Apply writes a view of commits to data in place and flushes data: the first
// half of a checkpoint or a replay. The commits must be durable. It returns how
// many pages it has written. It waits.
func (j *Journal) Apply(ctx context.Context, data store.Store, v Overlay) (pages int, err error) {
	if v.Length < 0 {
		return 0, nil
	}
	d := medium{data, j.e, j.reaped}
	// The cut comes first: it makes zeros, also at the end of the page it goes
	// through, and the images come over them.
	for _, size := range []int64{min(v.Void, data.Size()), v.Length} {
		if size != data.Size() {
			if err := data.Truncate(size); err != nil {
				return 0, fmt.Errorf("journal: apply: %w", err)
			}
		}
	}
	if err := j.place(ctx, d, v); err != nil {
		return 0, fmt.Errorf("journal: apply: %w", err)
	}
	if err := d.flush(); err != nil {
		return 0, fmt.Errorf("journal: apply: %w", err)
	}
	return len(v.Pages), nil
}

// place writes the images of v to data.
func (j *Journal) place(ctx context.Context, data medium, v Overlay) error {
	pages := slices.Sorted(maps.Keys(v.Pages))
	if len(pages) == 0 {
		return nil
	}
	buf, err := newBuffer(max(j.page, min(inFlight*chunk, j.page*int64(len(pages)))))
	if err != nil {
		return err
	}
	defer freeBuffer(buf)
	for batch := range slices.Chunk(pages, int(int64(len(buf))/j.page)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		images := make([]image, len(batch))
		for i, p := range batch {
			images[i].Entry = Entry{Page: p, Slot: v.Pages[p].Slot, CRC: v.Pages[p].CRC}
		}
		if err := j.run(readImages(images, buf, j.head.slots, j.page)); err != nil {
			return err
		}
		for i, x := range images {
			b := buf[int64(i)*j.page : int64(i+1)*j.page]
			if CRC32C(b) != x.CRC {
				return refuse(ErrDamaged, "slot %d has changed", x.Slot)
			}
			clear(b[v.Pages[x.Page].Valid:])
		}
		if err := data.run(j.writeImages(images, buf)); err != nil {
			return err
		}
	}
	return nil
}

// writeImages writes buf, the pages of the batch one after the other, in place;
// neighbours in one transfer.
func (j *Journal) writeImages(batch []image, buf []byte) (ops []*aio.Op) {
	for i := 0; i < len(batch); {
		n := 1
		for i+n < len(batch) && batch[i+n].Page == batch[i].Page+uint64(n) && int64(n+1)*j.page <= max(chunk, j.page) {
			n++
		}
		ops = append(ops, &aio.Op{Code: aio.Write, Off: int64(batch[i].Page) * j.page, Buf: buf[int64(i)*j.page : int64(i+n)*j.page]})
		i += n
	}
	return ops
}
