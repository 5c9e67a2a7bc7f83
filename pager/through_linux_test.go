package pager

import (
	"bytes"
	"context"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

const throughPages = 512

// throughRig is a region of which as much is dirty as makes others write
// through: pages 0, 2, 4 … 30 with a budget of 128.
func throughRig(t *testing.T, o RegionOptions) (store.Store, *store.Faulty, *Pager, *Region) {
	m := store.NewMemory(throughPages * FrameSize)
	s := store.NewFaulty(m, store.FaultyOptions{})
	o.Prefetch = prefetch.None()
	o.Writeback.Age = -1
	p, r := rawMap(t, Options{Budget: 128 * FrameSize}, s, o)
	if !sp.wp {
		t.Skip("no write-protect faults here: ", r.Raw())
	}
	t.Cleanup(func() {
		s.Release() // a test that failed may have left a hold
		p.Close()
	})
	for page := range int64(16) {
		writeStamp(t, r, 2*page)
	}
	if n := s.Counts().Writes; n != 0 {
		t.Fatalf("%d writes before anything should be written", n)
	}
	return m, s, p, r
}

func stampPage(page int64) []byte { return bytes.Repeat([]byte{byte(page*7) + 1}, FrameSize) }

func writeStamp(t *testing.T, r *Region, page int64) {
	t.Helper()
	if _, err := r.WriteAt(stampPage(page), page*FrameSize); err != nil {
		t.Fatal(err)
	}
}

// A page that is written whole, by itself, while enough is dirty, goes to the
// store at once and is clean then.
func TestColdPagesAreWrittenThrough(t *testing.T) {
	m, s, _, r := throughRig(t, RegionOptions{})
	for page := int64(100); page < 200; page += 10 {
		before := s.Counts().Writes
		writeStamp(t, r, page)
		if n := s.Counts().Writes - before; n != 1 {
			t.Fatalf("page %d: %d writes, want 1", page, n)
		}
		eventually(t, "the page is clean", func() bool { return stateOf(r, int(page)) == stResident })
		k, _ := m.Kernel()
		if !bytes.Equal(k.Mem[page*FrameSize:(page+1)*FrameSize], stampPage(page)) {
			t.Fatalf("page %d: the store has something else", page)
		}
	}
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := load64(&r.d.dirty); n != 0 {
		t.Errorf("%d frames count as dirty after a Sync", n)
	}
}

// What may be written together with its neighbours, or is part of a larger write,
// waits for that; and so does everything while little is dirty.
func TestWhatIsNotWrittenThrough(t *testing.T) {
	_, s, _, r := throughRig(t, RegionOptions{})
	if _, err := r.WriteAt(make([]byte, 4*FrameSize), 100*FrameSize); err != nil {
		t.Fatal(err)
	}
	writeStamp(t, r, 104) // beside it
	writeStamp(t, r, 99)
	if n := s.Counts().Writes; n != 0 {
		t.Errorf("%d writes of pages that have neighbours", n)
	}
	if _, err := r.WriteAt([]byte("part of a page"), 200*FrameSize); err != nil {
		t.Fatal(err)
	}
	if n := s.Counts().Writes; n != 0 {
		t.Errorf("%d writes of a page that was not written whole", n)
	}
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	before := s.Counts().Writes
	writeStamp(t, r, 300)
	if n := s.Counts().Writes - before; n != 0 {
		t.Errorf("%d writes while nothing else is dirty", n)
	}
}

// Regions whose pages must not be written yet, or go elsewhere.
func TestWhoseWritesAreNotThrough(t *testing.T) {
	for name, o := range map[string]RegionOptions{
		"Private":     {Private: true},
		"NoSteal":     {Writeback: Writeback{NoSteal: true}},
		"BeforeWrite": {Writeback: Writeback{BeforeWrite: func(PageRun) bool { return true }}},
		"Rate":        {Writeback: Writeback{Rate: 1 << 20}},
	} {
		t.Run(name, func(t *testing.T) {
			_, s, _, r := throughRig(t, o)
			for page := int64(100); page < 110; page += 2 {
				writeStamp(t, r, page)
			}
			if n := s.Counts().Writes; n != 0 {
				t.Errorf("%d writes", n)
			}
		})
	}
}

// A store that comes while the page is on its way makes it dirty again, and is
// written by the next Sync.
func TestStoresToWhatIsWrittenThrough(t *testing.T) {
	m, s, _, r := throughRig(t, RegionOptions{})
	s.Hold(store.OnWrite)
	defer s.Release()
	writeStamp(t, r, 100)
	if st := stateOf(r, 100); st != stWriting {
		t.Fatalf("state %d, want Writing", st)
	}
	if r.Raw() == nil {
		r.Bytes()[100*FrameSize+5] = 0xee
	} else if _, err := r.WriteAt([]byte{0xee}, 100*FrameSize+5); err != nil {
		t.Fatal(err)
	}
	s.Release()
	eventually(t, "the first write has ended", func() bool { return stateOf(r, 100) == stDirty })
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	want := stampPage(100)
	want[5] = 0xee
	k, _ := m.Kernel()
	if !bytes.Equal(k.Mem[100*FrameSize:101*FrameSize], want) {
		t.Error("the store to the page is not in the store")
	}
}

// A Sync that is called while the page is on its way waits for it; a write that
// fails leaves the page dirty, the Sync tells of it, and the next one repairs it.
func TestWriteThroughThatFails(t *testing.T) {
	m, s, _, r := throughRig(t, RegionOptions{Retry: Retry{Times: -1}})
	s.Inject(store.Fault{Ops: store.OnWrite, Off: 100 * FrameSize, Len: FrameSize, Count: 1, Err: unix.EIO})
	s.Hold(store.OnWrite)
	writeStamp(t, r, 100)
	done := make(chan error, 1)
	go func() { done <- r.Sync(context.Background()) }()
	s.StepOp(func(_ aio.Code, off int64, _ int) bool { return off == 100*FrameSize })
	// The Sync may be writing the page again before anyone sees it dirty.
	eventually(t, "the write has failed", func() bool { return s.Counts().Failed == 1 })
	s.Release()
	if err := <-done; err == nil {
		if err = r.Sync(context.Background()); err == nil {
			t.Error("two Syncs, and none tells of the write that failed")
		}
	}
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	k, _ := m.Kernel()
	if !bytes.Equal(k.Mem[100*FrameSize:101*FrameSize], stampPage(100)) {
		t.Error("the page is not in the store")
	}
}

// While writes of a page are held (Resize and Discard cut the store there) it is
// born dirty.
func TestHeldPagesAreNotWrittenThrough(t *testing.T) {
	_, s, _, r := throughRig(t, RegionOptions{})
	if err := r.quietPage(context.Background(), 100); err != nil {
		t.Fatal(err)
	}
	writeStamp(t, r, 100)
	if n, st := s.Counts().Writes, stateOf(r, 100); n != 0 || st != stDirty {
		t.Errorf("%d writes, state %d", n, st)
	}
	r.unquiet()
	if r.Raw() == nil {
		r.Bytes()[100*FrameSize] = 1 // writable
	}
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// Who joins a page that is being written through keeps his pin, and what he wants
// it for is forgotten: the page is protected.
func TestWhoJoinsAPageWrittenThrough(t *testing.T) {
	_, _, p, r := throughRig(t, RegionOptions{})
	if !p.w.takeFrames(1) || !p.credits.take(1) {
		t.Fatal("no room")
	}
	pw, gen, got := r.d.claim(100, pinOne|flagForStore|flagWaited)
	if got != claimed {
		t.Fatal("not claimed")
	}
	buf := bufs.get(FrameSize)
	copy(buf.mem, stampPage(100))
	if _, errno, through := bornWhole(r.d, pw, gen, 100, unsafe.Pointer(&buf.mem[0]), true); errno != 0 || !through {
		t.Fatal(errno, through)
	}
	if w := *pw; w&(1<<32-1) != stWriting|pinOne {
		t.Errorf("the word is %#x", w)
	}
	r.unpin(pageRange{100, 1}, false) // before anything may fail: Close waits for pins
	p.writeThrough(r, 100, buf)
	eventually(t, "the page is clean", func() bool { return stateOf(r, 100) == stResident })
}
