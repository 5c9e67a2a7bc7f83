package journal

import "fmt"

// Entry is one page of a commit: the number of the page in the region, the
// slot that holds its image, and the CRC32C of that image.
type Entry struct {
	Page      uint64
	Slot, CRC uint32
}

// Commit is what one commit record says.
type Commit struct {
	Seq uint64 // 1, 2, 3, … for the life of the journal

	// Length is the region's length in bytes after the commit. MinLength is
	// the smallest it had since the commit before, that one's and this one's
	// included: what lay past it had been cut off, even if the region grew
	// again.
	Length, MinLength int64

	Entries []Entry
}

// record is a Commit as it lies in the ring.
type record struct {
	Commit
	id          [16]byte
	epoch, salt uint64
	checkpoint  uint64 // header.seq as it was durable when this was written
	chain       uint32 // checksum of the record before
	crc         uint32 // of this one
}

// Places in a record.
const (
	rMagic = 0
	rCRC   = 8  // of all from rLen to the end
	rLen   = 12 // bytes, from rMagic to the end of the last entry
	rID    = 16
	rEpoch = 32
	rSalt  = 40
	rSeq   = 48
	rCheck = 56
	rNow   = 64 // Length
	rMin   = 72 // MinLength
	rChain = 80
	rCount = 84
	rKind  = 88 // 0: a commit
	rHead  = 96
	rEntry = 16
)

var recordMagic = [8]byte([]byte("uffdprec"))

const (
	maxSlot   = 1<<32 - 2 // so that slot+1 fits 32 bits
	maxRecord = 1<<32 - block
)

func recordLen(entries int) int64 { return rHead + rEntry*int64(entries) }

// room is what a record takes in the ring.
func room(n int64) int64 { return (n + block - 1) &^ (block - 1) }

// check refuses what a reader would not believe.
func (c *Commit) check(pageSize int64) error {
	if c.Length < 0 || c.MinLength < 0 || c.MinLength > c.Length {
		return fmt.Errorf("journal: commit of %d bytes, at least %d", c.Length, c.MinLength)
	}
	pages := uint64((c.Length-1)/pageSize + 1)
	if c.Length == 0 {
		pages = 0
	}
	for _, e := range c.Entries {
		if e.Page >= pages || e.Slot > maxSlot {
			return fmt.Errorf("journal: commit of %d bytes with page %d in slot %d", c.Length, e.Page, e.Slot)
		}
	}
	return nil
}

// encode writes the record into b, which has room for it, and sets crc. What
// follows in the last block is zeroed.
func (r *record) encode(b []byte) {
	n := recordLen(len(r.Entries))
	clear(b[:rHead])
	clear(b[n:room(n)])
	copy(b[rMagic:], recordMagic[:])
	le.PutUint32(b[rLen:], uint32(n))
	copy(b[rID:], r.id[:])
	le.PutUint64(b[rEpoch:], r.epoch)
	le.PutUint64(b[rSalt:], r.salt)
	le.PutUint64(b[rSeq:], r.Seq)
	le.PutUint64(b[rCheck:], r.checkpoint)
	le.PutUint64(b[rNow:], uint64(r.Length))
	le.PutUint64(b[rMin:], uint64(r.MinLength))
	le.PutUint32(b[rChain:], r.chain)
	le.PutUint32(b[rCount:], uint32(len(r.Entries)))
	for i, e := range r.Entries {
		p := b[rHead+rEntry*i:]
		le.PutUint64(p, e.Page)
		le.PutUint32(p[8:], e.Slot)
		le.PutUint32(p[12:], e.CRC)
	}
	r.crc = CRC32C(b[rLen:n])
	le.PutUint32(b[rCRC:], r.crc)
}

// recordLength is what the first block of a record says of its length in
// bytes; 0: this is no record.
func recordLength(b []byte) int64 {
	if len(b) < rHead || [8]byte(b[rMagic:]) != recordMagic {
		return 0
	}
	n := int64(le.Uint32(b[rLen:]))
	if n < rHead || n > maxRecord || n != recordLen(int(le.Uint32(b[rCount:]))) {
		return 0
	}
	return n
}

// decodeRecord reads a record that begins with b and lies in it as a whole. It
// allocates no more than a small multiple of len(b).
func decodeRecord(b []byte, pageSize int64) (r record, ok bool) {
	n := recordLength(b)
	if n == 0 || n > int64(len(b)) || CRC32C(b[rLen:n]) != le.Uint32(b[rCRC:]) || le.Uint32(b[rKind:]) != 0 {
		return r, false
	}
	copy(r.id[:], b[rID:])
	r.epoch, r.salt = le.Uint64(b[rEpoch:]), le.Uint64(b[rSalt:])
	r.Seq, r.checkpoint = le.Uint64(b[rSeq:]), le.Uint64(b[rCheck:])
	r.Length, r.MinLength = int64(le.Uint64(b[rNow:])), int64(le.Uint64(b[rMin:]))
	r.chain, r.crc = le.Uint32(b[rChain:]), le.Uint32(b[rCRC:])
	r.Entries = make([]Entry, le.Uint32(b[rCount:]))
	for i := range r.Entries {
		p := b[rHead+rEntry*i:]
		r.Entries[i] = Entry{Page: le.Uint64(p), Slot: le.Uint32(p[8:]), CRC: le.Uint32(p[12:])}
	}
	return r, r.check(pageSize) == nil
}
