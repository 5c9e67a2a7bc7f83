package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// postedRig is a region to which nothing but whole pages written and reads of
// ReadAt have come, for long enough.
func postedRig(t *testing.T, pages, frames int64, o RegionOptions) (store.Store, *store.Faulty, *Pager, *Region) {
	t.Helper()
	m := store.NewMemory(pages * FrameSize)
	s := store.NewFaulty(m, store.FaultyOptions{Kernel: true})
	o.Prefetch = prefetch.None()
	o.Writeback.Age = -1
	p, r := rawMap(t, Options{Budget: frames * FrameSize}, s, o)
	t.Cleanup(func() {
		s.Release() // a test that failed may have left a hold
		p.Close()
	})
	if !r.posts {
		t.Skip("pages are not posted here: ", r.Raw())
	}
	r.copies.Store(unmappedAfter)
	return m, s, p, r
}

func storedPage(m store.Store, page int64) []byte {
	k, _ := m.Kernel()
	return k.Mem[page*FrameSize : (page+1)*FrameSize]
}

// holdPosted leaves page 100 Posted.
func holdPosted(t *testing.T, s *store.Faulty, r *Region) {
	t.Helper()
	s.Hold(store.OnWrite)
	writeStamp(t, r, 100)
	if st := stateOf(r, 100); st != stPosted {
		t.Fatalf("state %d, want Posted", st)
	}
}

// Where only whole pages are written none is mapped or dirty: each goes to the store,
// is found again without a read, and leaves like others. The budget holds.
func TestWholePagesWrittenAloneNeedNoMapping(t *testing.T) {
	const pages, frames = 2048, 256
	m, s, p, r := postedRig(t, pages, frames, RegionOptions{})
	want := map[int64]byte{}
	b := make([]byte, FrameSize)
	for i := range 4 * pages {
		page := rand.Int64N(pages)
		for k := range b {
			b[k] = byte(i)
		}
		if _, err := r.WriteAt(b, page*FrameSize); err != nil {
			t.Fatal(err)
		}
		want[page] = byte(i)
		if n := load64(&r.d.resident); n > frames {
			t.Fatalf("%d frames are in use, of %d", n, frames)
		}
	}
	if n := r.mapped(); n > frames/4 { // some that were written to again and again
		t.Errorf("%d pages are mapped", n)
	}
	if n := s.Counts().Writes; n < 4*pages*3/4 {
		t.Errorf("%d writes of %d pages", n, 4*pages)
	}
	if have, _ := r.Residency(0, r.Len()); have < frames*FrameSize/2 {
		t.Errorf("%d bytes are resident", have)
	}
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := load64(&r.d.dirty); n != 0 {
		t.Errorf("%d frames are dirty after a Sync", n)
	}
	reads := p.Stats().Reads
	hits := 0
	for page, v := range want {
		if have, _ := r.Residency(page*FrameSize, FrameSize); have == FrameSize {
			hits++
		}
		if _, err := r.ReadAt(b, page*FrameSize); err != nil {
			t.Fatal(err)
		}
		if b[0] != v || b[FrameSize-1] != v || storedPage(m, page)[5] != v {
			t.Fatalf("page %d: wrong bytes", page)
		}
	}
	if n := p.Stats().Reads - reads; n > int64(len(want)-hits) {
		t.Errorf("%d reads of %d pages, %d of which were in memory", n, len(want), hits)
	}
	// What is written again and again does not go to the store each time.
	writeStamp(t, r, 7)
	n := s.Counts().Writes
	for range 100 {
		writeStamp(t, r, 7)
	}
	if n = s.Counts().Writes - n; n > 3 {
		t.Errorf("%d writes of a page that was written a hundred times", n)
	}
}

// Whoever comes to a Posted page, in whichever way, finds what was written, and what
// he stores there is written after it.
func TestPostedPagesAreMappedForOthers(t *testing.T) {
	ctx := context.Background()
	const off = 100 * FrameSize
	read := func(pin Pin, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		defer pin.Release()
		return bytes.Clone(pin.Bytes()), nil
	}
	for name, get := range map[string]func(r *Region) (b []byte, stored bool, err error){
		"ReadAt": func(r *Region) ([]byte, bool, error) {
			b := make([]byte, FrameSize)
			_, err := r.ReadAt(b, off)
			return b, false, err
		},
		"Acquire": func(r *Region) ([]byte, bool, error) {
			b, err := read(r.Acquire(ctx, off, FrameSize))
			return b, false, err
		},
		"AcquireWrite": func(r *Region) ([]byte, bool, error) {
			pin, err := r.AcquireWrite(ctx, off, FrameSize)
			if err != nil {
				return nil, false, err
			}
			defer pin.Release()
			b := bytes.Clone(pin.Bytes())
			pin.Bytes()[9] = 0xee
			return b, true, nil
		},
		"Bytes": func(r *Region) ([]byte, bool, error) {
			return bytes.Clone(r.Bytes()[off:][:FrameSize]), false, nil
		},
		"store": func(r *Region) ([]byte, bool, error) {
			r.Bytes()[off+9] = 0xee
			b := bytes.Clone(r.Bytes()[off:][:FrameSize])
			b[9] = stampPage(100)[9]
			return b, true, nil
		},
		"View": func(r *Region) (b []byte, _ bool, err error) {
			err = r.View(ctx, func(mem []byte) error { b = bytes.Clone(mem[off:][:FrameSize]); return nil })
			return b, false, err
		},
		"WriteAt": func(r *Region) ([]byte, bool, error) {
			_, err := r.WriteAt([]byte{0xee}, off+9)
			b := stampPage(100)
			return b, true, err
		},
		"whole WriteAt": func(r *Region) ([]byte, bool, error) {
			b := stampPage(100)
			b[9] = 0xee
			_, err := r.WriteAt(b, off)
			return stampPage(100), true, err
		},
		"server": func(r *Region) ([]byte, bool, error) {
			errno := serveRead(r.d, 100)
			return bytes.Clone(r.Bytes()[off:][:FrameSize]), false, errnoOrNil(errno)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, s, _, r := postedRig(t, 512, 128, RegionOptions{})
			if r.Raw() != nil && (name == "Bytes" || name == "store" || name == "View" || name == "server") {
				t.Skip(r.Raw())
			}
			holdPosted(t, s, r)
			defer s.Release()
			b, stored, err := get(r)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, stampPage(100)) {
				t.Error("wrong bytes")
			}
			want := stampPage(100)
			if stored {
				want[9] = 0xee
			}
			if n := s.Counts().Reads; n != 0 {
				t.Errorf("%d reads of what is in memory", n)
			}
			if st := stateOf(r, 100); st != stWriting && st != stWriting|flagRedirtied {
				t.Errorf("state %d while its first write is under way, want Writing", st)
			}
			if k := s.Counts(); k.Overlaps != 0 {
				t.Errorf("two writes of a page at once")
			}
			s.Release()
			if err := r.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(storedPage(m, 100), want) {
				t.Error("the store has something else")
			}
			eventually(t, "the buffer is gone", func() bool { return r.p.unmapped.n.Load() == 0 })
			eventually(t, "all seats are free", func() bool { return len(r.p.posting.seats) == cap(r.p.posting.seats) })
		})
	}
}

func errnoOrNil(errno uintptr) error {
	if errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

// A page may be Posted anew before the seat of its last write is free: who maps it then
// maps what was written last.
func TestPostedAgainBeforeTheSeatIsFree(t *testing.T) {
	ctx := context.Background()
	const page = 100
	m, s, p, r := postedRig(t, 512, 128, RegionOptions{})
	// One write up to where its page is a marker, as in writeDone.
	seat := p.posting.take(false)
	if err := p.waitFrames(r, r.fpp, true); err != nil {
		t.Fatal(err)
	}
	buf := bufs.get(FrameSize)
	clear(buf.mem)
	pw, gen, got := r.d.claim(page, 0)
	if got != claimed {
		t.Fatal("not claimed")
	}
	p.sitPosted(seat, r.d, page, gen, buf)
	if !post(r.d, pw, gen, page) {
		t.Fatal("not posted")
	}
	p.unmapped.ready(p.budget.Load())
	p.keepPosted(r, page, gen, buf)
	if clean, free, _, _ := r.endWrites(page, 1, nil); clean != 1 || free != 1 {
		t.Fatal("not written")
	}
	p.giveCredits(r.fpp)

	holdPosted(t, s, r)
	defer s.Release()
	pin, err := r.Acquire(ctx, page*FrameSize, FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(pin.Bytes(), stampPage(page)) {
		t.Error("what was written before is mapped")
	}
	pin.Release()
	p.endPosted(r, page, gen, buf, seat)
	s.Release()
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(storedPage(m, page), stampPage(page)) {
		t.Error("the store has something else")
	}
	eventually(t, "all seats are free", func() bool { return len(p.posting.seats) == cap(p.posting.seats) })
}

// Generations are used again after 2³² claims, and a write to a store that does not
// answer may be under way for longer than that takes.
func TestPostedPagesWithTheSameGeneration(t *testing.T) {
	_, s, p, r := postedRig(t, 512, 128, RegionOptions{})
	gen := atomic.LoadUint32(&generation.last) + 1000
	buf, seat := bufs.get(FrameSize), p.posting.take(false)
	defer bufs.put(buf)
	clear(buf.mem)
	p.sitPosted(seat, r.d, 99, gen, buf)
	atomic.StoreUint32(&generation.last, gen-1)
	holdPosted(t, s, r)
	defer s.Release()
	if _, w := r.d.look(100); uint32(w>>32) != gen {
		t.Skip("somebody else has claimed a page")
	}
	pin, err := r.Acquire(context.Background(), 100*FrameSize, FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(pin.Bytes(), stampPage(100)) {
		t.Error("the buffer of another page is mapped")
	}
	pin.Release()
	bare.Store64(&p.w.posted[seat-1].gen, 0)
	p.posting.give(seat)
}

// A Sync waits for what is Posted.
func TestSyncWaitsForPostedPages(t *testing.T) {
	m, s, _, r := postedRig(t, 512, 128, RegionOptions{})
	holdPosted(t, s, r)
	defer s.Release()
	op, err := r.SyncEventfd(0, r.Len(), -1)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-op.Done():
		t.Fatal("a Sync has ended before the write")
	case <-time.After(50 * time.Millisecond):
	}
	if _, dirty := r.Residency(0, r.Len()); dirty != FrameSize {
		t.Errorf("%d bytes are dirty", dirty)
	}
	s.Release()
	if err := op.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(storedPage(m, 100), stampPage(100)) {
		t.Error("the page is not in the store")
	}
}

// A write that fails leaves the page dirty and mapped; a Sync tells of it, and the next
// repairs it. So it is where the kernel does not map it at first.
func TestPostedPageWhoseWriteFails(t *testing.T) {
	for name, refusals := range map[string]int32{"mapped": 0, "refused": 3} {
		t.Run(name, func(t *testing.T) {
			m, s, _, r := postedRig(t, 512, 128, RegionOptions{Retry: Retry{Times: -1}})
			s.Inject(store.Fault{Ops: store.OnWrite, Off: 100 * FrameSize, Len: FrameSize, Count: int64(refusals) + 1, Err: unix.EIO})
			var left atomic.Int32
			left.Store(refusals)
			real := mapVia
			mapVia = func(dst uintptr, src unsafe.Pointer, n uintptr, protect bool) uintptr {
				if bare.Load32((*uint32)(unsafe.Pointer(&left))) != 0 {
					bare.Add32((*uint32)(unsafe.Pointer(&left)), ^uint32(0))
					return uintptr(unix.ENOMEM)
				}
				return mapPages(dst, src, n, protect)
			}
			defer func() { mapVia = real }()
			holdPosted(t, s, r)
			done := make(chan error, 1)
			go func() { done <- r.Sync(context.Background()) }()
			s.Release()
			eventually(t, "the page is dirty", func() bool { st := stateOf(r, 100); return st == stDirty || st == stResident })
			b := make([]byte, FrameSize)
			if _, err := r.ReadAt(b, 100*FrameSize); err != nil || !bytes.Equal(b, stampPage(100)) {
				t.Errorf("the page after a failed write: %v", err)
			}
			if err := <-done; err == nil {
				if err = r.Sync(context.Background()); err == nil {
					t.Error("two Syncs, and none tells of the write that failed")
				}
			}
			if err := r.Sync(context.Background()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(storedPage(m, 100), stampPage(100)) {
				t.Error("the page is not in the store")
			}
		})
	}
}

// While writes of a page are held (Resize and Discard cut the store there) it is born
// dirty; and who holds them waits for the write of one that is Posted.
func TestHeldPagesAreNotPosted(t *testing.T) {
	ctx := context.Background()
	m, s, _, r := postedRig(t, 512, 128, RegionOptions{})
	if err := r.quietPage(ctx, 100); err != nil {
		t.Fatal(err)
	}
	writeStamp(t, r, 100)
	if n, st := s.Counts().Writes, stateOf(r, 100); n != 0 || st != stDirty {
		t.Errorf("%d writes, state %d", n, st)
	}
	r.unquiet()
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	s.Hold(store.OnWrite)
	defer s.Release()
	writeStamp(t, r, 200)
	if st := stateOf(r, 200); st != stPosted {
		t.Fatalf("state %d", st)
	}
	done := make(chan error, 1)
	go func() { done <- r.Discard(ctx, 200*FrameSize, FrameSize) }()
	select {
	case <-done:
		t.Fatal("a Discard does not wait for the write")
	case <-time.After(50 * time.Millisecond):
	}
	s.Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b := make([]byte, FrameSize)
	if _, err := r.ReadAt(b, 200*FrameSize); err != nil || !bytes.Equal(b, make([]byte, FrameSize)) || !bytes.Equal(storedPage(m, 200), b) {
		t.Errorf("after a Discard: %v", err)
	}
}

// A page that somebody waits for is mapped: a Posted one has no waiters.
func TestPagesThatAreWaitedForAreNotPosted(t *testing.T) {
	_, _, _, r := postedRig(t, 512, 128, RegionOptions{})
	for _, extra := range []word{flagWaited, pinOne} {
		pw, gen, got := r.d.claim(100, extra)
		if got != claimed {
			t.Fatal("not claimed")
		}
		if post(r.d, pw, gen, 100) {
			t.Errorf("%#x: posted", extra)
		}
		r.d.vacate(pw, 100)
	}
	pw, gen, _ := r.d.claim(100, 0)
	if post(r.d, pw, gen+1, 100) {
		t.Error("one that is not ours any more")
	}
	r.d.vacate(pw, 100)
}

// Regions whose pages must not go to the store yet, or not as they are.
func TestWhosePagesAreNotPosted(t *testing.T) {
	hook := func(int64, []byte) error { return nil }
	for name, o := range map[string]RegionOptions{
		"Private":     {Private: true},
		"NoSteal":     {Writeback: Writeback{NoSteal: true}},
		"BeforeWrite": {Writeback: Writeback{BeforeWrite: func(PageRun) bool { return true }}},
		"Rate":        {Writeback: Writeback{Rate: 1 << 20}},
		"Seal":        {Seal: hook},
		"Verify":      {Verify: hook},
		"large":       {PageSize: 4 * FrameSize},
	} {
		t.Run(name, func(t *testing.T) {
			p, r := rawMap(t, Options{Budget: 128 * FrameSize}, store.NewMemory(512*FrameSize), o)
			defer p.Close()
			if r.posts {
				t.Error("its pages may be posted")
			}
		})
	}
}

// Everybody at once: no write is lost, no page torn, nobody waits for ever, and what
// a Sync has acknowledged is in the store. All buffers and seats come back.
func TestPostedPagesAmongOthers(t *testing.T) {
	for _, frames := range []int64{12, 64, 300} {
		t.Run("", func(t *testing.T) { postedAmongOthers(t, frames) })
	}
}

func postedAmongOthers(t *testing.T, frames int64) {
	const pages, writers = 512, 4
	kept := bufs.kept.Load()
	m := store.NewMemory(pages * FrameSize)
	s := store.NewFaulty(m, store.FaultyOptions{Kernel: true, Jitter: 300 * time.Microsecond})
	p, r := rawMap(t, Options{Budget: frames * FrameSize}, s, RegionOptions{Prefetch: prefetch.None()})
	if !r.posts {
		p.Close()
		t.Skip("pages are not posted here")
	}
	ctx := context.Background()
	var stop atomic.Bool
	var wg sync.WaitGroup
	var counts [pages]atomic.Uint64 // of completed writes
	loop := func(f func(rnd *rand.Rand)) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(rand.Uint64(), 1))
			for !stop.Load() {
				f(rnd)
			}
		})
	}
	whole := func(b []byte, page int64) uint64 {
		n := binary.LittleEndian.Uint64(b)
		for k := 0; k < FrameSize; k += 8 {
			if v := binary.LittleEndian.Uint64(b[k:]); v != n {
				t.Errorf("page %d is torn: %d and, at %d, %d", page, n, k, v)
				break
			}
		}
		return n
	}
	for w := range int64(writers) {
		b := make([]byte, FrameSize)
		loop(func(rnd *rand.Rand) {
			page := rnd.Int64N(pages/writers)*writers + w
			if rnd.IntN(3) == 0 {
				page %= 4 * writers
			}
			n := counts[page].Load() + 1
			for k := 0; k < FrameSize; k += 8 {
				binary.LittleEndian.PutUint64(b[k:], n)
			}
			r.copies.Store(unmappedAfter)
			if _, err := r.WriteAt(b, page*FrameSize); err != nil {
				t.Error(err)
			}
			counts[page].Store(n)
		})
	}
	look := func(get func(page int64, b []byte) error) func(rnd *rand.Rand) {
		b := make([]byte, FrameSize)
		return func(rnd *rand.Rand) {
			page := rnd.Int64N(pages)
			at := counts[page].Load()
			if err := get(page, b); err != nil {
				t.Error(err)
			}
			for k := 0; k < FrameSize; k += 512 { // (who writes to a page that is mapped may be half way)
				if n := binary.LittleEndian.Uint64(b[k:]); n < at {
					t.Errorf("page %d: write %d is lost, there is %d", page, at, n)
				}
			}
		}
	}
	for range 2 {
		loop(look(func(page int64, b []byte) error {
			r.copies.Store(unmappedAfter)
			_, err := r.ReadAt(b, page*FrameSize)
			return err
		}))
	}
	// (A pin does not keep a WriteAt from copying: it may see half of one.)
	loop(func(rnd *rand.Rand) {
		pin, err := r.Acquire(ctx, rnd.Int64N(pages)*FrameSize, FrameSize)
		if err != nil {
			t.Error(err)
			return
		}
		pin.Release()
		time.Sleep(100 * time.Microsecond)
	})
	if r.Raw() == nil {
		loop(func(rnd *rand.Rand) {
			_ = *(*byte)(unsafe.Add(r.base, rnd.Int64N(pages)*FrameSize))
			time.Sleep(100 * time.Microsecond)
		})
	}
	loop(func(rnd *rand.Rand) {
		stealOne(p.w, true, 0)
		r.Advise(rnd.Int64N(pages)*FrameSize, FrameSize, DontNeed)
		r.Residency(0, r.Len())
		time.Sleep(time.Millisecond)
	})
	loop(func(rnd *rand.Rand) {
		var at [pages]uint64
		for i := range at {
			at[i] = counts[i].Load()
		}
		if err := r.Sync(ctx); err != nil {
			t.Error(err)
		}
		for i := range at {
			if n := bare.Load64((*uint64)(unsafe.Pointer(&storedPage(m, int64(i))[0]))); n < at[i] {
				t.Errorf("page %d: a Sync has acknowledged write %d, and the store has %d", i, at[i], n)
			}
		}
		time.Sleep(time.Millisecond)
	})
	if os.Getenv("UFFDPAGER_TORTURE") != "" {
		time.Sleep(10 * time.Second)
	}
	time.Sleep(700 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	if k := s.Counts(); k.Overlaps != 0 {
		t.Errorf("%d times were two writes of a page under way", k.Overlaps)
	}
	if err := r.Sync(ctx); err != nil {
		t.Error(err)
	}
	for i := range counts {
		if n := whole(storedPage(m, int64(i)), int64(i)); n != counts[i].Load() {
			t.Errorf("page %d: the store has write %d of %d", i, n, counts[i].Load())
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if n := load64(&p.w.free); n != p.budget.Load() {
		t.Errorf("%d of %d frames are free", n, p.budget.Load())
	}
	if n := p.credits.left(); n != p.pinnable.Load() {
		t.Errorf("%d of %d credits are left", n, p.pinnable.Load())
	}
	if n := p.unmapped.n.Load(); n != 0 {
		t.Errorf("%d buffers are left", n)
	}
	if n := len(p.posting.seats); n != cap(p.posting.seats) {
		t.Errorf("%d of %d seats are free", n, cap(p.posting.seats))
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "nothing is counted as kept", func() bool { return bufs.kept.Load() <= kept })
}
