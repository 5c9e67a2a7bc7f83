package journal

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// readHeader reads both copies into b and returns the valid one of the higher
// generation. errBlank: the store holds no journal and nothing else either.
func (m medium) readHeader(ctx context.Context, b []byte) (h header, err error) {
	size := m.s.Size()
	if err := m.read(ctx, b[:copies*block], 0); err != nil {
		return h, err
	}
	var why [copies]error
	best := error(errTorn)
	for i := range copies {
		var c header
		c, why[i] = decodeHeader(b[i*block:])
		known := why[i] == nil || errors.Is(why[i], ErrRefused)
		if known && (errors.Is(best, errTorn) || c.generation > h.generation) {
			h, best = c, why[i]
		}
	}
	switch {
	case !errors.Is(best, errTorn):
	case slices.Contains(why[:], errAlien):
		return h, refuse(ErrNoJournal, "%v", m.s)
	case slices.Contains(why[:], errBlank):
		// Never written, or the first write of both was torn: before its end
		// nothing was committed.
		return h, m.blank(ctx)
	default:
		return h, refuse(ErrDamaged, "both headers of %v", m.s)
	}
	if best == nil && h.slots > size {
		return h, refuse(ErrDamaged, "%v was cut to %d bytes; its slots begin at %d", m.s, size, h.slots)
	}
	return h, best
}

// blank returns errBlank if what follows the headers is zero as well, as far as
// one looks: what else has zeros there must not be written over.
func (m medium) blank(ctx context.Context) error {
	n := min(m.s.Size(), chunk) - copies*block
	if n <= 0 {
		return errBlank
	}
	b, err := newBuffer(n)
	if err != nil {
		return err
	}
	defer freeBuffer(b)
	if err := m.read(ctx, b, copies*block); err != nil {
		return err
	}
	if bytes.Count(b, []byte{0}) < len(b) {
		return refuse(ErrNoJournal, "%v", m.s)
	}
	return errBlank
}

// scan returns the live records, every image verified. With ErrDamaged it
// returns those before the damage.
func (m medium) scan(ctx context.Context, h *header) ([]record, error) {
	if h.clean {
		return nil, nil
	}
	ring, err := newBuffer(h.ring.len)
	if err != nil {
		return nil, err
	}
	defer freeBuffer(ring)
	if err := m.read(ctx, ring, h.ring.off); err != nil {
		return nil, err
	}
	log := chained(ring, h)
	whole, err := m.verify(ctx, h, log)
	if err != nil {
		return nil, err
	}
	if whole < len(log)-1 {
		// The record after the broken one is whole in itself. It was written
		// when the broken one was durable.
		return log[:whole], refuse(ErrDamaged, "%v: images of commit %d of %d", m.s, log[whole].Seq, log[len(log)-1].Seq)
	}
	log = log[:whole]
	if r, ok := later(ring, h, h.seq+uint64(len(log))); ok {
		return log, refuse(ErrDamaged, "%v: commit %d is there, but the log ends with %d", m.s, r.Seq, h.seq+uint64(len(log)))
	}
	return log, nil
}

// at is the record that begins at a place in the ring, made one piece if it
// goes round the end.
func at(ring []byte, place uint64, pageSize int64) (record, bool) {
	b := ring[place:]
	n := recordLength(b)
	if n == 0 || n > int64(len(ring)) {
		return record{}, false
	}
	if n > int64(len(b)) {
		b = append(bytes.Clone(b), ring[:n-int64(len(b))]...)
	}
	return decodeRecord(b, pageSize)
}

// chained is the log as far as the records themselves verify.
func chained(ring []byte, h *header) (log []record) {
	place, chain, used := h.next, h.chain, uint64(0)
	for {
		r, ok := at(ring, place, int64(h.pageSize))
		size := uint64(room(recordLen(len(r.Entries))))
		if !ok || r.id != h.id || r.epoch != h.epoch || r.salt != h.salt ||
			r.Seq != h.seq+uint64(len(log))+1 || r.chain != chain || used+size > uint64(len(ring)) {
			return log
		}
		log = append(log, r)
		chain, used = r.crc, used+size
		place = (place + size) % uint64(len(ring))
	}
}

// later finds a record that proves that more was committed than the log of h,
// which ends with seq, has: one that follows the one after that; or one that
// was written under a newer header than h. (Commit seq+1 itself may be torn.)
func later(ring []byte, h *header, seq uint64) (record, bool) {
	for place := uint64(0); place < uint64(len(ring)); place += block {
		r, ok := at(ring, place, int64(h.pageSize))
		if !ok || r.id != h.id {
			continue
		}
		if r.Seq > seq+1 || r.epoch > h.epoch || r.epoch == h.epoch && r.checkpoint > h.seq {
			return r, true
		}
	}
	return record{}, false
}

// image is an entry of a log to be verified.
type image struct {
	Entry
	commit int // index in the log
}

// verify reads the images of the log and says how many commits from the first
// on have all of theirs.
func (m medium) verify(ctx context.Context, h *header, log []record) (int, error) {
	page := int64(h.pageSize)
	whole := len(log)
	have := max(0, (m.s.Size()-h.slots)/page)
	var all []image
	for i, r := range log {
		for _, e := range r.Entries {
			if int64(e.Slot) >= have {
				whole = min(whole, i)
			}
			all = append(all, image{e, i})
		}
	}
	all = slices.DeleteFunc(all, func(x image) bool { return x.commit >= whole })
	slices.SortFunc(all, func(a, b image) int { return int(int64(a.Slot) - int64(b.Slot)) })
	if len(all) == 0 {
		return whole, nil
	}
	buf, err := newBuffer(max(page, min(inFlight*chunk, page*int64(len(all)))))
	if err != nil {
		return 0, err
	}
	defer freeBuffer(buf)
	for batch := range slices.Chunk(all, int(int64(len(buf))/page)) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := m.run(readImages(batch, buf, h.slots, page)); err != nil {
			return 0, err
		}
		for i, x := range batch {
			if x.commit < whole && CRC32C(buf[int64(i)*page:int64(i+1)*page]) != x.CRC {
				whole = x.commit
			}
		}
	}
	return whole, nil
}

// readImages reads the batch into buf, one after the other; neighbours in one
// transfer.
func readImages(batch []image, buf []byte, slots, page int64) (ops []*aio.Op) {
	for i := 0; i < len(batch); {
		n := 1
		for i+n < len(batch) && batch[i+n].Slot == batch[i].Slot+uint32(n) && int64(n+1)*page <= max(chunk, page) {
			n++
		}
		ops = append(ops, &aio.Op{Code: aio.Read, Off: slots + int64(batch[i].Slot)*page, Buf: buf[int64(i)*page : int64(i+n)*page]})
		i += n
	}
	return ops
}

// Info is what Probe finds.
type Info struct {
	PageSize int
	Identity Identity
	Live     int   // commits that a Replay would apply
	Bytes    int64 // of their images
}

// Probe looks at a journal without writing or owning it: whether it holds live
// commits, and whose. A store without a journal, all zeros, is the zero Info. It
// waits for its I/O.
func Probe(ctx context.Context, s store.Store, e aio.Engine) (Info, error) {
	m := medium{s: s, e: e}
	b, err := newBuffer(copies * block)
	if err != nil {
		return Info{}, err
	}
	defer freeBuffer(b)
	h, err := m.readHeader(ctx, b)
	if errors.Is(err, errBlank) {
		return Info{}, nil
	}
	if err != nil {
		return Info{}, err
	}
	log, err := m.scan(ctx, &h)
	info := Info{PageSize: int(h.pageSize), Identity: h.identity, Live: len(log)}
	for _, r := range log {
		info.Bytes += int64(len(r.Entries)) * int64(h.pageSize)
	}
	return info, err
}
