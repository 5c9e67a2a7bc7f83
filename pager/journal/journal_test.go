package journal

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

func TestCommitsAreFoundAgain(t *testing.T) {
	j := mustOpen(t, blank(), small())
	grow(t, j)
	var want []Commit
	for i := range uint64(5) {
		c := Commit{Length: 100 * page, MinLength: 90 * page}
		for k := range i {
			c.Entries = append(c.Entries, putImage(t, j, k, i, uint32(10*i+k)))
		}
		if err := j.Commit(background, c); err != nil {
			t.Fatal(err)
		}
		c.Seq = i + 1
		want = append(want, c)
	}
	for _, readOnly := range []bool{true, false} {
		o := small()
		o.ReadOnly = readOnly
		k := mustOpen(t, again(t, j), o)
		got := k.Log()
		if !slices.EqualFunc(got, want, func(a, b Commit) bool {
			return a.Seq == b.Seq && a.Length == b.Length && a.MinLength == b.MinLength && slices.Equal(a.Entries, b.Entries)
		}) {
			t.Fatalf("found %v, want %v", got, want)
		}
		if _, err := k.Record(Commit{}); err == nil {
			t.Fatal("a record before the replay")
		}
	}
	info, err := Probe(background, again(t, j), nil)
	if err != nil || info.Live != 5 || info.PageSize != page || info.Bytes != 10*page {
		t.Fatalf("Probe: %+v, %v", info, err)
	}
}

func TestReplayIsTheRegionAsCommitted(t *testing.T) {
	j := mustOpen(t, blank(), small())
	grow(t, j)
	data := store.NewMemory(8 * page)
	if err := j.Commit(background, Commit{Length: 8 * page, MinLength: 8 * page, Entries: []Entry{
		putImage(t, j, 1, 1, 1), putImage(t, j, 2, 1, 2), putImage(t, j, 7, 1, 7)}}); err != nil {
		t.Fatal(err)
	}
	// The region is cut in the middle of page 2 and grown to 6½ pages; page 5
	// is written to after that.
	if err := j.Commit(background, Commit{Length: 6*page + 100, MinLength: 2*page + 50, Entries: []Entry{
		putImage(t, j, 5, 2, 5)}}); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 6*page+100)
	fill(want[page:2*page], 1, 1)
	fill(want[2*page:3*page], 2, 1)
	clear(want[2*page+50:])
	fill(want[5*page:6*page], 5, 2)

	k := mustOpen(t, again(t, j), small())
	v := k.Overlay()
	if v.Length != 6*page+100 || v.Void != 2*page+50 || len(v.Pages) != 3 || v.Pages[2].Valid != 50 {
		t.Fatalf("overlay %+v", v)
	}
	if n, err := k.Replay(background, data); n != 3 || err != nil {
		t.Fatalf("Replay: %d, %v", n, err)
	}
	if !bytes.Equal(contents(t, data), want) {
		t.Fatal("the data store is not what was committed")
	}
	if len(k.Log()) != 0 || k.LastSeq() != 2 {
		t.Fatal("the log is not empty after the replay")
	}
	if err := k.Commit(background, Commit{Length: 1, MinLength: 1}); err != nil {
		t.Fatal(err)
	}
	if got := mustOpen(t, again(t, k), small()).Log(); len(got) != 1 || got[0].Seq != 3 {
		t.Fatalf("after the replay and one commit: %v", got)
	}
}

// The ring goes round many times, records of all sizes over its end.
func TestRingGoesRound(t *testing.T) {
	j := mustOpen(t, blank(), small())
	grow(t, j)
	wrapped := 0
	zero := CRC32C(make([]byte, page)) // all slots are
	for i := range uint64(200) {
		c := Commit{Length: 1000 * page, MinLength: 1000 * page}
		for k := range i % 40 * 20 {
			c.Entries = append(c.Entries, Entry{Page: k, Slot: uint32(k) % j.Slots(), CRC: zero})
		}
		r, err := j.Record(c)
		if errors.Is(err, ErrFull) {
			if got := len(mustOpen(t, again(t, j), small()).Log()); got != len(j.live) {
				t.Fatalf("%d live records, found %d", len(j.live), got)
			}
			if err := j.Checkpoint(background, j.LastSeq()-1); err != nil {
				t.Fatal(err)
			}
			if used, _ := j.RingUsed(); len(j.live) != 1 || uint64(used) != j.live[0].bytes {
				t.Fatalf("%d bytes used by %v", used, j.live)
			}
			r, err = j.Record(c)
		}
		if err != nil {
			t.Fatal(err)
		}
		wrapped += len(r.Ops) - 1
		if err := j.run(r.Ops); err != nil {
			t.Fatal(err)
		}
		j.Committed(r)
		if len(r.Ops) == 1 && i%32 != 0 {
			continue
		}
		k := mustOpen(t, again(t, j), small())
		if log := k.Log(); log[len(log)-1].Seq != i+1 || len(log) != len(j.live) {
			t.Fatalf("after commit %d: %d records, the last is %d", i+1, len(log), log[len(log)-1].Seq)
		}
	}
	if wrapped < 5 {
		t.Errorf("only %d records went over the end of the ring", wrapped)
	}
}

func TestWhatIsNotOursIsRefused(t *testing.T) {
	live := func(o Options) store.Store {
		j := mustOpen(t, blank(), o)
		grow(t, j)
		if err := j.Commit(background, Commit{Length: page, MinLength: page, Entries: []Entry{putImage(t, j, 0, 1, 0)}}); err != nil {
			t.Fatal(err)
		}
		return again(t, j)
	}
	with := func(change func(b []byte)) store.Store {
		b := contents(t, live(small()))
		change(b)
		return store.NewMemoryOf(b)
	}
	seal := func(b []byte) { // both headers
		for _, h := range [][]byte{b, b[block:]} {
			le.PutUint32(h[hCRC:], CRC32C(h[:hCRC]))
		}
	}
	mine, other := small(), small()
	mine.Identity = Identity{Device: 1, Inode: 2, Birth: 3}
	other.Identity = Identity{Device: 1, Inode: 2, Birth: 4}
	moved := mine
	moved.Identity.Device = 9 // as after a reboot
	named := small()
	named.Identity.ID = "orders"
	large := small()
	large.PageSize = 4 * page
	adopt := other
	adopt.Adopt = true
	for _, c := range []struct {
		name string
		s    store.Store
		o    Options
		want error
	}{
		{"its own", live(mine), mine, nil},
		{"its own under another device number", live(mine), moved, nil},
		{"another inode's", live(mine), other, ErrForeign},
		{"another inode's, adopted", live(mine), adopt, nil},
		{"named", live(named), named, nil},
		{"named, of the same inode", live(named), small(), ErrForeign},
		{"another page size", live(small()), large, ErrPageSize},
		{"a later version", with(func(b []byte) {
			le.PutUint32(b[hVer:], 2)
			le.PutUint32(b[block+hVer:], 2)
			seal(b)
		}), small(), ErrVersion},
		{"a later version in the newer copy", with(func(b []byte) {
			le.PutUint32(b[hVer:], 2)
			le.PutUint64(b[hGen:], 99)
			seal(b)
		}), small(), ErrVersion},
		{"both headers broken", with(func(b []byte) { b[hSeq]++; b[block+hSeq]++ }), small(), ErrDamaged},
		{"the newer header broken", with(func(b []byte) { b[hSeq]++ }), small(), nil},
		{"nonsense under a good checksum", with(func(b []byte) {
			le.PutUint64(b[hLen:], 1<<50)
			le.PutUint64(b[block+hLen:], 1<<50)
			seal(b)
		}), small(), ErrDamaged},
		{"cut", store.NewMemoryOf(contents(t, live(small()))[:block*3]), small(), ErrDamaged},
		{"a text", store.NewMemoryOf(bytes.Repeat([]byte("not a journal. "), 10000)), small(), ErrForeign},
		{"zeros, then a text", store.NewMemoryOf(append(make([]byte, 100000), "text"...)), small(), ErrForeign},
	} {
		before := contents(t, c.s)
		c.s = keep{c.s}
		j, err := Open(background, c.s, nil, c.o)
		if c.want == nil {
			if err != nil || len(j.Log()) != 1 {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if !errors.Is(err, c.want) || !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if !bytes.Equal(before, contents(t, c.s)) {
			t.Errorf("%s: was written to", c.name)
		}
	}
}

// keep lets a test look at a store after Close.
type keep struct{ store.Store }

func (keep) Close() error { return nil }

// A journal without live commits may get any page size, owner and limit.
func TestAnEmptyJournalIsUsedAnew(t *testing.T) {
	for _, clean := range []bool{false, true} {
		s := keep{blank()}
		j := mustOpen(t, s, small())
		grow(t, j)
		if err := j.Commit(background, Commit{Length: page, MinLength: page, Entries: []Entry{putImage(t, j, 0, 1, 0)}}); err != nil {
			t.Fatal(err)
		}
		if err := j.Checkpoint(background, 1); err != nil {
			t.Fatal(err)
		}
		if clean {
			if err := j.Close(background); err != nil {
				t.Fatal(err)
			}
		}
		for _, o := range []Options{
			{PageSize: 16 * page, Identity: Identity{ID: "x"}},
			{PageSize: page, Limit: 300 << 10},
			{PageSize: 64 * page, Limit: 8 << 20},
		} {
			if k, err := Open(background, s, nil, Options{PageSize: page, ReadOnly: true}); err != nil || len(k.Log()) != 0 {
				t.Fatalf("read-only: %v", err)
			}
			j = mustOpen(t, s, o)
			if j.Slots() == 0 {
				grow(t, j)
			}
			if err := j.Commit(background, Commit{Length: page, MinLength: page, Entries: []Entry{putImage(t, j, 0, 2, 3)}}); err != nil {
				t.Fatal(err)
			}
			k := mustOpen(t, again(t, j), o)
			if len(k.Log()) != 1 {
				t.Fatalf("%+v: %v", o, k.Log())
			}
			if err := j.Checkpoint(background, j.LastSeq()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestDamageIsNotATornTail(t *testing.T) {
	j := mustOpen(t, blank(), small())
	grow(t, j)
	for i := range uint64(4) {
		if err := j.Commit(background, Commit{Length: 9 * page, MinLength: 9 * page, Entries: []Entry{putImage(t, j, i, 1, uint32(i))}}); err != nil {
			t.Fatal(err)
		}
	}
	// The last commit may be torn; one before it is not lost without a word.
	for i := range 4 {
		for what, off := range map[string]int64{"record": copies*block + int64(i)*block + rCRC, "image": j.SlotOffset(uint32(i)) + 17} {
			b := contents(t, j.s)
			b[off] ^= 1
			k, err := Open(background, store.NewMemoryOf(b), nil, small())
			if i == 3 {
				if err != nil || len(k.Log()) != 3 {
					t.Errorf("the last %s broken: %v", what, err)
				}
				continue
			}
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%s %d broken: %v", what, i+1, err)
			}
			o := small()
			o.Salvage = true
			k, err = Open(background, store.NewMemoryOf(b), nil, o)
			if err != nil || len(k.Log()) != i {
				t.Errorf("%s %d broken, salvage: %v", what, i+1, err)
			}
		}
	}
}

// The newer header rots after its slots were used again: the older one must
// not be believed.
func TestStaleHeaderIsNoticed(t *testing.T) {
	j := mustOpen(t, blank(), small())
	grow(t, j)
	commit := func(version uint64) {
		t.Helper()
		if err := j.Commit(background, Commit{Length: 9 * page, MinLength: 9 * page, Entries: []Entry{putImage(t, j, 0, version, uint32(version))}}); err != nil {
			t.Fatal(err)
		}
	}
	rot := func(how string) {
		t.Helper()
		b := contents(t, j.s)
		b[j.head.generation%copies*block+hSeq] ^= 1
		if _, err := Open(background, store.NewMemoryOf(b), nil, small()); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", how, err)
		}
	}
	commit(1)
	commit(2)
	if err := j.Checkpoint(background, 2); err != nil {
		t.Fatal(err)
	}
	putImage(t, j, 5, 5, 1) // an image of commit 1 is gone
	commit(3)
	rot("a checkpoint")
	if err := j.Checkpoint(background, 3); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, again(t, j), small()) // new salt
	commit(4)
	commit(5)
	rot("a salt")
}

func TestGrowth(t *testing.T) {
	f := store.NewFaulty(store.NewMemory(InitialSize()), store.FaultyOptions{})
	o := Options{PageSize: page, Limit: 8 << 20}
	j := mustOpen(t, f, o)
	if j.Slots() != 0 || j.MaxSlots() < 1700 {
		t.Fatalf("%d of %d slots", j.Slots(), j.MaxSlots())
	}
	grow(t, j)
	was, size := j.Slots(), j.s.Size()
	f.Inject(store.Fault{Ops: store.OnWrite, Err: syscall.ENOSPC, Count: 1})
	if n, err := j.Grow(background); !errors.Is(err, syscall.ENOSPC) || n != was || j.s.Size() != size {
		t.Fatalf("a failed Grow: %d slots, %d bytes, %v", n, j.s.Size(), err)
	}
	for {
		n, err := j.Grow(background)
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil || n <= was {
			t.Fatalf("%d after %d slots: %v", n, was, err)
		}
		was = n
	}
	if j.Slots() != j.MaxSlots() || j.s.Size() > 8<<20 {
		t.Fatalf("%d slots, %d bytes", j.Slots(), j.s.Size())
	}
	// All of them fit in one commit.
	zero := CRC32C(make([]byte, page))
	c := Commit{Length: 4096 * page, MinLength: 4096 * page}
	for s := range j.Slots() {
		c.Entries = append(c.Entries, Entry{uint64(s), s, zero})
	}
	if err := j.Commit(background, c); err != nil {
		t.Fatal(err)
	}
	k := mustOpen(t, again(t, j), o)
	if len(k.Log()) != 1 || len(k.Log()[0].Entries) != int(j.Slots()) {
		t.Fatal("the largest commit is not found")
	}
	// With a lower limit the live slots stay; once replayed the store shrinks.
	o.Limit = 1 << 20
	k = mustOpen(t, again(t, j), o)
	if k.Slots() != j.Slots() {
		t.Fatalf("%d slots", k.Slots())
	}
	if _, err := k.Replay(background, store.NewMemory(4096*page)); err != nil {
		t.Fatal(err)
	}
	if k.s.Size() > 1<<20 || k.Slots() > k.MaxSlots() {
		t.Fatalf("%d bytes, %d of %d slots", k.s.Size(), k.Slots(), k.MaxSlots())
	}
}

// fixedStore cannot grow, like a device.
type fixedStore struct{ store.Store }

func (f fixedStore) Truncate(n int64) error {
	if n != f.Size() {
		return store.ErrNotSupported
	}
	return nil
}

func TestAStoreThatCannotGrow(t *testing.T) {
	j := mustOpen(t, fixedStore{store.NewMemory(1 << 20)}, Options{PageSize: page})
	if j.Slots() != j.MaxSlots() || j.Slots() < 200 {
		t.Fatalf("%d of %d slots", j.Slots(), j.MaxSlots())
	}
	if _, err := j.Grow(background); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if _, err := Open(background, fixedStore{store.NewMemory(64 << 10)}, nil, Options{PageSize: page}); err == nil {
		t.Fatal("a journal in 64 KiB")
	}
}

func TestReadOnlyWritesNothing(t *testing.T) {
	for _, s := range []store.Store{blank(), store.NewMemory(1 << 20)} {
		o := small()
		o.ReadOnly = true
		k := keep{s}
		j := mustOpen(t, k, o)
		_, recordErr := j.Record(Commit{})
		_, headerErr := j.Header(0)
		_, growErr := j.Grow(background)
		_, replayErr := j.Replay(background, store.NewMemory(1))
		for _, err := range []error{recordErr, headerErr, growErr, replayErr} {
			if !errors.Is(err, ErrReadOnly) {
				t.Fatal(err)
			}
		}
		if err := j.Close(background); err != nil {
			t.Fatal(err)
		}
		if b := contents(t, s); bytes.Count(b, []byte{0}) != len(b) {
			t.Fatal("written to")
		}
	}
}

// unreaped is an engine that the journal is not to reap.
type unreaped struct {
	aio.Engine
	t *testing.T
}

func (u unreaped) Reap(int) int {
	u.t.Error("the journal reaps an engine that others reap")
	return 0
}

// Where somebody else reaps the engine all the time, who waits for a transfer
// leaves that to him.
func TestWaitsForWhoReaps(t *testing.T) {
	e, err := aio.Open(aio.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	go func() {
		for e.Wait(background) == nil {
			for e.Reap(8) > 0 {
			}
		}
	}()
	s, err := store.OpenFile(filepath.Join(t.TempDir(), "journal"), store.FileOptions{Create: true, Size: InitialSize()})
	if err != nil {
		t.Fatal(err)
	}
	o := small()
	o.Reaped = true
	j, err := Open(background, s, unreaped{e, t}, o)
	if err != nil {
		t.Fatal(err)
	}
	grow(t, j)
	want := putImage(t, j, 3, 1, 0)
	if err := j.Commit(background, Commit{Length: 16 * page, MinLength: 16 * page, Entries: []Entry{want}}); err != nil {
		t.Fatal(err)
	}
	if err := j.Checkpoint(background, 1); err != nil {
		t.Error(err)
	}
	if err := j.Close(background); err != nil {
		t.Error(err)
	}
}
