package journal

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
)

// sealRecord gives a record the checksum that its bytes need: otherwise a
// fuzzer never gets past it.
func sealRecord(b []byte) []byte {
	if len(b) < rHead {
		return b
	}
	b = bytes.Clone(b)
	n := (len(b)-rHead)/rEntry*rEntry + rHead
	copy(b, recordMagic[:])
	le.PutUint32(b[rLen:], uint32(n))
	le.PutUint32(b[rCount:], uint32((n-rHead)/rEntry))
	le.PutUint32(b[rKind:], 0)
	le.PutUint32(b[rCRC:], CRC32C(b[rLen:n]))
	return b
}

func sealHeader(b []byte) []byte {
	b = append(bytes.Clone(b), make([]byte, headerSize)...)[:headerSize]
	copy(b, headerMagic[:])
	le.PutUint32(b[hVer:], version)
	le.PutUint32(b[hCRC:], CRC32C(b[:hCRC]))
	return b
}

func FuzzDecodeRecord(f *testing.F) {
	r := record{Commit: Commit{Seq: 7, Length: 3*page + 1, MinLength: page, Entries: []Entry{{0, 1, 2}, {3, 4, 5}}}, epoch: 1, salt: 2, chain: 3}
	b := make([]byte, block)
	r.encode(b)
	f.Add(b[:recordLen(2)], false)
	f.Add(b[:rHead+3], true)
	f.Add(b[:rHead-1], false)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed {
			b = sealRecord(b)
		}
		r, ok := decodeRecord(b, page)
		if rEntry*len(r.Entries) > len(b) {
			t.Fatalf("%d entries out of %d bytes", len(r.Entries), len(b))
		}
		if !ok {
			return
		}
		if err := r.check(page); err != nil {
			t.Fatal(err)
		}
		out := make([]byte, room(recordLen(len(r.Entries))))
		r.encode(out)
		again, ok := decodeRecord(out, page)
		if !ok || again.Seq != r.Seq || again.Length != r.Length || again.MinLength != r.MinLength || again.chain != r.chain ||
			again.salt != r.salt || again.epoch != r.epoch || again.id != r.id || !slices.Equal(again.Entries, r.Entries) {
			t.Fatalf("%+v became %+v", r, again)
		}
	})
}

func FuzzHeader(f *testing.F) {
	h := header{generation: 2, epoch: 1, salt: 3, pageSize: page, ring: extent{2 * block, 16 * block}, slots: 18 * block, identity: Identity{ID: "x"}}
	b := make([]byte, block)
	h.encode(b)
	f.Add(b[:headerSize], false)
	f.Add(b[:headerSize], true)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed {
			b = sealHeader(b)
		}
		h, err := decodeHeader(b)
		if err != nil {
			if sealed && !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		if !h.sound() {
			t.Fatalf("unsound: %+v", h)
		}
		out := make([]byte, block)
		h.encode(out)
		if again, err := decodeHeader(out); err != nil || again != h {
			t.Fatalf("%+v became %+v, %v", h, again, err)
		}
	})
}

// written is a journal with a history: a checkpoint, a ring that has gone round,
// commits that share slots with older ones, and a commit that failed.
var written = sync.OnceValues(func() ([]byte, []Commit) {
	t := new(testing.T)
	s := store.NewSlice(make([]byte, InitialSize()))
	j, err := Open(background, s, nil, Options{PageSize: page, Limit: 256 << 10})
	if err != nil {
		panic(err)
	}
	grow(t, j)
	var all []Commit
	for i := range uint64(23) {
		c := Commit{Length: 20 * page, MinLength: 20*page - int64(i)}
		for k := range i % 4 {
			c.Entries = append(c.Entries, putImage(t, j, k, i, uint32((4*i+k)%uint64(j.Slots()))))
		}
		if err := j.Commit(background, c); err != nil {
			panic(err)
		}
		c.Seq = j.LastSeq()
		all = append(all, c)
		if i == 9 || i == 17 {
			if err := j.Checkpoint(background, c.Seq-1); err != nil {
				panic(err)
			}
		}
	}
	r, err := j.Record(Commit{Length: page, MinLength: page})
	if err == nil {
		err = j.run(r.Ops)
	}
	if err != nil {
		panic(err)
	}
	j.Abandoned(r)
	all = append(all, Commit{Seq: r.Seq, Length: page, MinLength: page})
	return s.Bytes(), all
})

// FuzzRecover damages a journal: bytes change, blocks are copied over one
// another. What Open believes afterwards is what was written, in its order.
func FuzzRecover(f *testing.F) {
	f.Add([]byte{}, []byte{}, false)
	f.Add([]byte{0, 0, 0, 16, 1, 2, 3}, []byte{}, false)
	f.Add([]byte{0, 32, 88, 1, 9}, []byte{}, true)
	f.Add([]byte{}, []byte("uffdpjrn, or something like it"), true)
	f.Fuzz(func(t *testing.T, edits, head []byte, salvage bool) {
		image, all := written()
		b := bytes.Clone(image)
		damage(b, edits)
		if len(head) > 0 { // a header of the fuzzer's own
			h := bytes.Clone(b[:headerSize])
			for i, x := range head {
				h[(hFlags+i)%headerSize] ^= x
			}
			copy(b, sealHeader(h))
		}
		s := store.NewSlice(b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		j, err := Open(background, s, nil, Options{PageSize: page, Limit: 256 << 10, ReadOnly: true, Adopt: true, Salvage: salvage})
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
			t.Fatalf("%d bytes allocated for a journal of %d", n, len(b))
		}
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatal(err)
			}
			return
		}
		defer j.free()
		log := j.Log()
		for i, c := range log {
			if c.Seq == 0 || c.Seq > uint64(len(all)) || i > 0 && c.Seq != log[i-1].Seq+1 {
				t.Fatalf("commit %d after %v", c.Seq, log[:i])
			}
			if want := all[c.Seq-1]; c.Length != want.Length || c.MinLength != want.MinLength || !slices.Equal(c.Entries, want.Entries) {
				t.Fatalf("commit %d is %+v, was written as %+v", c.Seq, c, want)
			}
		}
		if v := j.Overlay(); len(log) > 0 && v.Length != log[len(log)-1].Length {
			t.Fatalf("overlay of %d bytes", v.Length)
		}
	})
}

// damage applies edits: place (3 bytes), kind, and for small kinds as many
// bytes to write there, else the block to copy to that place.
func damage(b, edits []byte) {
	for len(edits) >= 4 {
		at := (int(edits[0])<<16 | int(edits[1])<<8 | int(edits[2])) % len(b)
		kind := edits[3]
		edits = edits[4:]
		if kind >= 128 {
			from := int(kind-128) * block % len(b)
			at = at / block * block
			copy(b[at:at+block], bytes.Clone(b[from:from+block]))
			continue
		}
		n := min(int(kind)+1, len(edits))
		copy(b[at:], edits[:n])
		edits = edits[n:]
	}
}

// FuzzOpen opens anything at all.
func FuzzOpen(f *testing.F) {
	image, _ := written()
	f.Add(image[:copies*block+minRing])
	f.Add(image[:block])
	f.Add(make([]byte, 3*block))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, o := range []Options{{PageSize: page, ReadOnly: true}, small()} {
			s := store.NewSlice(bytes.Clone(b))
			j, err := Open(background, s, nil, o)
			if err != nil {
				if errors.Is(err, ErrRefused) && !bytes.Equal(b, s.Bytes()) {
					t.Fatal("refused, and written to")
				}
				continue
			}
			if len(j.Log()) > 0 && !bytes.Equal(b, s.Bytes()) {
				t.Fatal("live, and written to")
			}
			if err := j.Close(background); err != nil {
				t.Fatal(err)
			}
		}
	})
}
