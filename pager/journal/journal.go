package journal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Journal is an open journal. Methods may be called from any goroutine; at most
// one Record and one Header are outstanding, and one Grow, Replay or Close runs
// at a time.
type Journal struct {
	medium
	opt      Options
	page     int64
	readOnly bool
	around   func(flush func() error) error // see AroundFlushes; nil: nothing is

	layout layout // planned by opt; head has the one in use
	base   int64  // offset of slot 0
	slots  atomic.Uint32

	mu       sync.Mutex // guards all that follows; never held over I/O
	head     header     // the last that is durable
	room     uint64     // place where the next record goes, and …
	used     uint64     // … how many bytes before it belong to live records
	last     uint64     // sequence of the last committed record
	chain    uint32     // checksum of that record
	live     []span     // records that head does not cover
	log      []Commit   // what Open found and Replay has not applied
	record   []byte     // buffer of Record
	page0    []byte     // buffer of Header
	inRecord bool
	inHeader bool
}

// span is a live record in the ring.
type span struct {
	seq   uint64
	bytes uint64
	chain uint32 // its checksum
}

// Open reads the journal in s and owns s, also on error. It waits for its I/O.
//
// A store that is all zeros where the header goes is made a journal. One
// without live commits is made ready for new ones, whatever its page size was
// and whoever it belonged to. One with live commits is left as it is until
// Replay. What is not a journal is refused: see ErrRefused.
func Open(ctx context.Context, s store.Store, e aio.Engine, o Options) (*Journal, error) {
	l, err := o.fill()
	if err == nil && s.BlockSize() > block {
		err = fmt.Errorf("journal: %v has blocks of %d bytes: %w", s, s.BlockSize(), store.ErrNotSupported)
	}
	if err == nil && !o.ReadOnly && !s.Writable() {
		err = ErrReadOnly
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	j := &Journal{medium: medium{s, e, o.Reaped}, opt: o, page: int64(o.PageSize), readOnly: o.ReadOnly, layout: l}
	if err := j.open(ctx); err != nil {
		j.free()
		return nil, errors.Join(err, s.Close())
	}
	return j, nil
}

func (j *Journal) open(ctx context.Context) (err error) {
	if j.page0, err = newBuffer(copies * block); err != nil {
		return err
	}
	h, err := j.readHeader(ctx, j.page0)
	switch {
	case errors.Is(err, errBlank) && j.readOnly:
		return nil // nothing yet: an empty log
	case errors.Is(err, errBlank):
		return j.create(ctx)
	case err != nil:
		return err
	}
	log, err := j.scan(ctx, &h)
	if err != nil && (!errors.Is(err, ErrDamaged) || !j.opt.Salvage) {
		return err
	}
	if len(log) > 0 {
		if !h.identity.matches(j.opt.Identity) && !j.opt.Adopt {
			return refuse(ErrForeign, "%v has %d commits for %v, and this is %v", j.s, len(log), h.identity, j.opt.Identity)
		}
		if int64(h.pageSize) != j.page {
			return refuse(ErrPageSize, "%v has %d commits in pages of %d bytes, not %d", j.s, len(log), h.pageSize, j.page)
		}
	}
	j.adopt(h)
	for _, r := range log {
		j.Committed(&Record{Seq: r.Seq, size: uint64(room(recordLen(len(r.Entries)))), chain: r.crc})
		j.log = append(j.log, r.Commit)
	}
	j.count()
	if j.readOnly || len(log) > 0 {
		return nil
	}
	return j.renew(ctx, h)
}

// create makes a journal of a store that holds none. The header comes last: a
// crash before it leaves a store that holds none.
func (j *Journal) create(ctx context.Context) error {
	if err := j.settle(ctx); err != nil {
		return err
	}
	var h header
	if _, err := rand.Read(h.id[:]); err != nil {
		return err
	}
	h.generation = copies
	j.salt(&h)
	for i := range uint64(copies) {
		c := h
		c.generation -= i
		c.encode(j.copyOf(c.generation))
	}
	if err := j.write(ctx, j.page0, 0); err != nil {
		return err
	}
	if err := j.flush(); err != nil {
		return err
	}
	j.adopt(h)
	j.count()
	return nil
}

// renew makes a journal of which h says that no record is live ready for new
// ones, in the layout that the options ask for.
func (j *Journal) renew(ctx context.Context, h header) error {
	if err := j.settle(ctx); err != nil {
		return err
	}
	j.salt(&h)
	if err := j.put(ctx, &h); err != nil {
		return err
	}
	j.adopt(h)
	if most := j.SlotOffset(j.MaxSlots()); j.s.Size() > most {
		// A limit that is lower than it was. A store that cannot shrink stays.
		_ = j.s.Truncate(most)
	}
	j.count()
	return nil
}

// adopt makes h, in which no record is live, the header that is durable.
func (j *Journal) adopt(h header) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.head, j.base = h, h.slots
	j.room, j.used, j.last, j.chain = h.next, 0, h.seq, h.chain
	j.live, j.log = nil, nil
}

// salt gives a header without live records a new salt, and what the options
// say. Under the old salt a record that was on its way when the power went
// could become whole later, when its missing image happens to be written again.
func (j *Journal) salt(h *header) {
	h.epoch++
	h.salt = random()
	h.clean = false
	h.identity = j.opt.Identity
	if l := j.layout; h.ring != l.ring || h.slots != l.slots || int64(h.pageSize) != j.page {
		h.ring, h.slots, h.pageSize, h.next = l.ring, l.slots, uint32(j.page), 0
	}
}

func random() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

// copyOf is the buffer of the copy in which a generation goes.
func (j *Journal) copyOf(generation uint64) []byte {
	i := generation % copies * block
	return j.page0[i : i+block]
}

// headerOp makes h the next generation, in the copy that the last one is not
// in, and returns its transfer.
func (j *Journal) headerOp(h *header) *aio.Op {
	h.generation = j.head.generation + 1
	b := j.copyOf(h.generation)
	h.encode(b)
	return &aio.Op{Code: aio.Write, Off: int64(h.generation % copies * block), Buf: b}
}

// ErrFlush is among the errors of a journal whose flush has failed. What was written
// before it may be lost, also what somebody else has written and would flush next:
// the device's next flush may well succeed without it.
var ErrFlush = errors.New("journal: flush failed")

// flush makes durable what was written to the journal.
func (j *Journal) flush() error {
	if j.around != nil {
		return j.around(j.flushIt)
	}
	return j.flushIt()
}

func (j *Journal) flushIt() error {
	if err := j.medium.flush(); err != nil {
		return fmt.Errorf("%w: %w", ErrFlush, err)
	}
	return nil
}

// AroundFlushes has fn do every flush of the journal from now on, by calling what
// it is given, for who flushes the same store himself. Nothing may be under way.
func (j *Journal) AroundFlushes(fn func(flush func() error) error) { j.around = fn }

// put makes h durable, as the next generation.
func (j *Journal) put(ctx context.Context, h *header) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := j.run([]*aio.Op{j.headerOp(h)}); err != nil {
		return err
	}
	return j.flush()
}

// Store is the journal's own store. It belongs to the journal.
func (j *Journal) Store() store.Store { return j.s }

// Log is what Open found: the live commits in order, every image of them
// verified. It is empty after Replay. The slices are shared.
func (j *Journal) Log() []Commit {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.log
}

// LastSeq is the sequence number of the last commit; the next has one more.
func (j *Journal) LastSeq() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Close ends the journal and closes its store. If no commit is live it says so
// in the header first, so that the next Open need not look. It waits.
func (j *Journal) Close(ctx context.Context) error {
	var err error
	if h, empty := j.emptied(); !j.readOnly && empty {
		h.epoch++
		h.salt = random()
		h.clean = true
		err = j.put(ctx, &h)
	}
	j.free()
	return errors.Join(err, j.s.Close())
}

// emptied is the header as it would be if all records were checkpointed, and
// whether they are.
func (j *Journal) emptied() (header, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	h := j.head
	h.seq, h.next, h.chain = j.last, j.room, j.chain
	return h, len(j.live) == 0
}

func (j *Journal) free() {
	freeBuffer(j.record)
	freeBuffer(j.page0)
	j.record, j.page0 = nil, nil
}
