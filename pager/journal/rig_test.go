package journal

import (
	"context"
	"encoding/binary"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

const page = minPage

var background = context.Background()

// small options: a ring of 64 KiB, so that it goes round soon.
func small() Options { return Options{PageSize: page, Limit: 1 << 20} }

// blank is a store for a new journal.
func blank() store.Store { return store.NewMemory(InitialSize()) }

func mustOpen(t testing.TB, s store.Store, o Options) *Journal {
	t.Helper()
	j, err := Open(background, s, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// fill makes an image that no other page and no other version has.
func fill(b []byte, page, version uint64) {
	x := page*0x9e3779b97f4a7c15 ^ version*0xbf58476d1ce4e5b9
	for i := 0; i+8 <= len(b); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
}

// putImage writes an image to a slot and returns its entry.
func putImage(t testing.TB, j *Journal, page, version uint64, slot uint32) Entry {
	t.Helper()
	b := make([]byte, j.page)
	fill(b, page, version)
	if err := j.write(background, b, j.SlotOffset(slot)); err != nil {
		t.Fatal(err)
	}
	return Entry{Page: page, Slot: slot, CRC: CRC32C(b)}
}

func grow(t testing.TB, j *Journal) {
	t.Helper()
	if _, err := j.Grow(background); err != nil {
		t.Fatal(err)
	}
}

// contents reads all of a store.
func contents(t testing.TB, s store.Store) []byte {
	t.Helper()
	b := make([]byte, s.Size())
	op := &aio.Op{Code: aio.Read, Buf: b, Done: func(*aio.Op) {}}
	s.Start(nil, []*aio.Op{op})
	if op.Err != nil || op.N != len(b) {
		t.Fatalf("read %d of %d bytes: %v", op.N, len(b), op.Err)
	}
	return b
}

// again is the journal's store as a process finds it that comes after a crash.
func again(t testing.TB, j *Journal) store.Store { return store.NewMemoryOf(contents(t, j.s)) }
