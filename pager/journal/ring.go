package journal

import (
	"context"
	"fmt"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Record is a commit record on its way.
type Record struct {
	Seq uint64
	// Ops are its transfers, one or two, with Code, Off and Buf. The caller
	// sets Done, starts them in Store together with the images, waits for all
	// and flushes Store. Bufs are valid until the next call of Record.
	Ops []*aio.Op

	size  uint64
	chain uint32
}

// Record encodes the next commit; c.Seq is ignored. It does no I/O. The record
// must be ended with Committed or Abandoned before the next one.
//
// The caller promises that no slot of c changes until a header with at least
// this sequence is durable, also if a later commit has a newer image of its
// page: a record with an image that does not verify ends the log.
//
// ErrFull: the ring has no room; a checkpoint makes some.
func (j *Journal) Record(c Commit) (*Record, error) {
	if j.readOnly {
		return nil, ErrReadOnly
	}
	if err := c.check(j.page); err != nil {
		return nil, err
	}
	have := j.Slots()
	for _, e := range c.Entries {
		if e.Slot >= have {
			return nil, fmt.Errorf("journal: commit with slot %d of %d", e.Slot, have)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	size := room(recordLen(len(c.Entries)))
	ring := uint64(j.head.ring.len)
	switch {
	case len(j.log) > 0:
		return nil, ErrReplay
	case j.inRecord:
		panic("journal: two records at a time")
	case j.used+uint64(size) > ring:
		return nil, fmt.Errorf("%w: a record of %d bytes, %d of %d bytes in use", ErrFull, size, j.used, ring)
	}
	if err := j.fit(size); err != nil {
		return nil, err
	}
	c.Seq = j.last + 1
	r := record{Commit: c, id: j.head.id, epoch: j.head.epoch, salt: j.head.salt, checkpoint: j.head.seq, chain: j.chain}
	r.encode(j.record)
	out := &Record{Seq: c.Seq, size: uint64(size), chain: r.crc}
	for b, at := j.record[:size], j.room; len(b) > 0; at = 0 {
		n := min(uint64(len(b)), ring-at)
		out.Ops = append(out.Ops, &aio.Op{Code: aio.Write, Off: j.head.ring.off + int64(at), Buf: b[:n]})
		b = b[n:]
	}
	j.inRecord = true
	return out, nil
}

// fit makes the record buffer at least n bytes long.
func (j *Journal) fit(n int64) error {
	if int64(len(j.record)) >= n {
		return nil
	}
	b, err := newBuffer(max(n, 2*int64(len(j.record)), 64<<10))
	if err != nil {
		return err
	}
	freeBuffer(j.record)
	j.record = b
	return nil
}

// Committed says that the record, its images and a flush after them have
// ended well. The commit is in the log.
func (j *Journal) Committed(r *Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.inRecord = false
	j.live = append(j.live, span{r.Seq, r.size, r.chain})
	j.used += r.size
	j.room = (j.room + r.size) % uint64(j.head.ring.len)
	j.last, j.chain = r.Seq, r.chain
}

// Abandoned says that something of the commit failed, and that all its
// transfers have ended. The next Record has the same sequence and place.
func (j *Journal) Abandoned(*Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.inRecord = false
}

// Commit is the waiting form for a commit whose images are written: record,
// flush, Committed.
func (j *Journal) Commit(ctx context.Context, c Commit) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := j.Record(c)
	if err != nil {
		return err
	}
	if err = j.run(r.Ops); err == nil {
		err = j.flush()
	}
	if err != nil {
		j.Abandoned(r)
		return err
	}
	j.Committed(r)
	return nil
}

// RingUsed is how many bytes of the ring belong to commits that no checkpoint
// covers, and how many there are.
func (j *Journal) RingUsed() (used, size int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return int64(j.used), j.head.ring.len
}

// Header is a checkpoint on its way.
type Header struct {
	Seq uint64
	// Op is its transfer, with Code, Off and Buf. The caller sets Done, starts
	// it in Store, waits and flushes Store.
	Op *aio.Op

	next header
}

// Header encodes the header of a checkpoint up to seq, which is committed. It
// does no I/O. The caller promises that all commits up to seq are in the data
// store, in place, and that a flush of that has ended well. It must be ended
// with Checkpointed or NotCheckpointed before the next one.
func (j *Journal) Header(seq uint64) (*Header, error) {
	if j.readOnly {
		return nil, ErrReadOnly
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case len(j.log) > 0:
		return nil, ErrReplay
	case j.inHeader:
		panic("journal: two headers at a time")
	case seq < j.head.seq || seq > j.last:
		return nil, fmt.Errorf("journal: checkpoint of commit %d; there are %d to %d", seq, j.head.seq, j.last)
	}
	h := j.head
	h.seq = seq
	for _, s := range j.live {
		if s.seq > seq {
			break
		}
		h.next = (h.next + s.bytes) % uint64(h.ring.len)
		h.chain = s.chain
	}
	op := j.headerOp(&h)
	j.inHeader = true
	return &Header{Seq: seq, Op: op, next: h}, nil
}

// Checkpointed says that the header and a flush after it have ended well. Only
// now may the slots of commits up to its sequence be used again.
func (j *Journal) Checkpointed(h *Header) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.inHeader = false
	j.head = h.next
	for len(j.live) > 0 && j.live[0].seq <= h.Seq {
		j.used -= j.live[0].bytes
		j.live = j.live[1:]
	}
}

// NotCheckpointed says that the header or the flush failed, and that its
// transfer has ended. The next Header goes to the same copy.
func (j *Journal) NotCheckpointed(*Header) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.inHeader = false
}

// Checkpoint is the waiting form: Header, its transfer, a flush, Checkpointed.
func (j *Journal) Checkpoint(ctx context.Context, seq uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h, err := j.Header(seq)
	if err != nil {
		return err
	}
	if err = j.run([]*aio.Op{h.Op}); err == nil {
		err = j.flush()
	}
	if err != nil {
		j.NotCheckpointed(h)
		return err
	}
	j.Checkpointed(h)
	return nil
}
