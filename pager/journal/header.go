package journal

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

const (
	// block is the unit of headers, of places in the ring and of slots: a
	// write never shares a block with bytes that an earlier commit needs, so
	// that a device that rewrites 4 KiB for a sector cannot tear those.
	block = 4096

	copies     = 2 // of the header
	headerSize = 512
	version    = 1

	minPage = 4096
	maxPage = 2 << 20
)

var headerMagic = [8]byte([]byte("uffdpjrn"))

// header is what the log begins with. Magic, version, generation and checksum
// keep their places in every version of the format, so that a version that is
// not known can be told from garbage.
type header struct {
	generation uint64
	id         [16]byte // of this journal, for ever
	epoch      uint64   // counts salts
	salt       uint64   // in every record that this header admits
	pageSize   uint32
	clean      bool // no record has been written since
	ring       extent
	slots      int64  // offset of slot 0
	seq        uint64 // checkpointed: records up to it do not count any more
	next       uint64 // place in the ring of record seq+1
	chain      uint32 // checksum of record seq
	identity   Identity
}

type extent struct{ off, len int64 }

// Places in the header; the rest is zero.
const (
	hMagic = 0
	hVer   = 8
	hFlags = 12 // 1: clean
	hGen   = 16
	hID    = 24
	hEpoch = 40
	hSalt  = 48
	hPage  = 56
	hChain = 60
	hRing  = 64
	hLen   = 72
	hSlots = 80
	hSeq   = 88
	hNext  = 96
	hDev   = 104
	hIno   = 112
	hBirth = 120
	hName  = 128 // length, then MaxID bytes
	hCRC   = headerSize - 4

	flagClean = 1
)

var le = binary.LittleEndian

// encode writes the header into b, a whole block.
func (h *header) encode(b []byte) {
	clear(b)
	copy(b[hMagic:], headerMagic[:])
	le.PutUint32(b[hVer:], version)
	if h.clean {
		le.PutUint32(b[hFlags:], flagClean)
	}
	le.PutUint64(b[hGen:], h.generation)
	copy(b[hID:], h.id[:])
	le.PutUint64(b[hEpoch:], h.epoch)
	le.PutUint64(b[hSalt:], h.salt)
	le.PutUint32(b[hPage:], h.pageSize)
	le.PutUint32(b[hChain:], h.chain)
	le.PutUint64(b[hRing:], uint64(h.ring.off))
	le.PutUint64(b[hLen:], uint64(h.ring.len))
	le.PutUint64(b[hSlots:], uint64(h.slots))
	le.PutUint64(b[hSeq:], h.seq)
	le.PutUint64(b[hNext:], h.next)
	le.PutUint64(b[hDev:], h.identity.Device)
	le.PutUint64(b[hIno:], h.identity.Inode)
	le.PutUint64(b[hBirth:], uint64(h.identity.Birth))
	le.PutUint32(b[hName:], uint32(len(h.identity.ID)))
	copy(b[hName+4:hName+4+MaxID], h.identity.ID)
	le.PutUint32(b[hCRC:], CRC32C(b[:hCRC]))
}

var (
	errBlank = errors.New("all zero")
	errTorn  = errors.New("checksum does not match")
	errAlien = errors.New("not a journal header")
)

// decodeHeader reads one copy. It returns errBlank, errAlien, errTorn,
// ErrVersion (with the generation set) or ErrDamaged for what a checksum covers
// and yet makes no sense.
func decodeHeader(b []byte) (h header, err error) {
	if len(b) < headerSize {
		return h, errAlien
	}
	b = b[:headerSize]
	if [8]byte(b[hMagic:]) != headerMagic {
		for _, c := range b {
			if c != 0 {
				return h, errAlien
			}
		}
		return h, errBlank
	}
	if CRC32C(b[:hCRC]) != le.Uint32(b[hCRC:]) {
		return h, errTorn
	}
	h.generation = le.Uint64(b[hGen:])
	if v := le.Uint32(b[hVer:]); v != version {
		return h, refuse(ErrVersion, "%d; this is version %d", v, version)
	}
	h.clean = le.Uint32(b[hFlags:])&flagClean != 0
	copy(h.id[:], b[hID:])
	h.epoch, h.salt = le.Uint64(b[hEpoch:]), le.Uint64(b[hSalt:])
	h.pageSize, h.chain = le.Uint32(b[hPage:]), le.Uint32(b[hChain:])
	h.ring = extent{int64(le.Uint64(b[hRing:])), int64(le.Uint64(b[hLen:]))}
	h.slots = int64(le.Uint64(b[hSlots:]))
	h.seq, h.next = le.Uint64(b[hSeq:]), le.Uint64(b[hNext:])
	h.identity = Identity{Device: le.Uint64(b[hDev:]), Inode: le.Uint64(b[hIno:]), Birth: int64(le.Uint64(b[hBirth:]))}
	n := le.Uint32(b[hName:])
	if n > MaxID || !h.sound() {
		return h, refuse(ErrDamaged, "a header that checks out makes no sense")
	}
	h.identity.ID = string(b[hName+4 : hName+4+n])
	return h, nil
}

// sound checks what the arithmetic of places relies on.
func (h *header) sound() bool {
	const most = 1 << 56
	aligned := func(n int64) bool { return n >= 0 && n < most && n%block == 0 }
	return goodPage(int(h.pageSize)) &&
		aligned(h.ring.off) && h.ring.off >= copies*block &&
		aligned(h.ring.len) && h.ring.len >= block &&
		aligned(h.slots) && h.slots >= h.ring.off+h.ring.len &&
		h.next%block == 0 && h.next < uint64(h.ring.len) &&
		h.seq < 1<<62
}

func goodPage(n int) bool {
	return n >= minPage && n <= maxPage && bits.OnesCount(uint(n)) == 1
}
