package pager

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// absentRegion is a region of which nothing is resident, page i full of i+1.
func absentRegion(t *testing.T, pages int, o RegionOptions) (*Pager, *Region, *store.Faulty) {
	t.Helper()
	image := make([]byte, pages*FrameSize)
	for i := range image {
		image[i] = byte(i/FrameSize) + 1
	}
	s := store.NewFaulty(store.NewMemoryOf(image), store.FaultyOptions{Kernel: true})
	p := newPager(t, Options{Budget: int64(2*pages+64) * FrameSize})
	if sp.fd < 0 || !sp.wp {
		t.Skip("no write-protection here")
	}
	if o.Prefetch == nil {
		o.Prefetch = prefetch.None()
	}
	r, err := p.Map(s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Release)
	return p, r, s
}

// waitsWithin runs do while the pages are in a span that is being protected, and
// returns the state in which the page waits for it to end (or has come to without
// waiting), and whether the kernel may write to it then. It should be in, which the
// page must have come to.
func waitsWithin(t *testing.T, r *Region, fd, page int, in word, do func()) (state word, writable bool) {
	t.Helper()
	// Who waits for a span keeps his P, and does not stop for the collector.
	noCollections(t)
	number := atomic.LoadUint64(&r.d.span)>>52 + 1
	atomic.StoreUint64(&r.d.span, number*spanOne|uint64(page)<<spanFirst|1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	begun := time.Now()
	for waits := false; !waits; {
		select {
		case <-done:
			waits = true
		default:
			waits = stateOf(r, page)&stateMask == in || time.Since(begun) > 2*time.Second
		}
	}
	for range 100 {
		unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	state, writable = stateOf(r, page)&stateMask, kernelMayWrite(t, r, fd, page)
	atomic.StoreUint64(&r.d.span, (number+1)*spanOne)
	<-done
	return state, writable
}

// A page that is read to be written to becomes writable once, when it is mapped:
// it is not mapped protected and unprotected by another call. Who makes a page
// writable waits for spans, so the state in which he does tells which of the two
// it is.
func TestReadToBeWrittenIsBornDirty(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("who waits for a span keeps his P")
	}
	ctx := context.Background()
	fd := zeroes(t)
	pin := func(t *testing.T, r *Region, off, n int64) {
		pin, err := r.AcquireWrite(ctx, off, n)
		if err != nil {
			t.Error(err)
			return
		}
		for i := 0; i < len(pin.Bytes()); i += FrameSize {
			pin.Bytes()[i] = 0xee
		}
		pin.Release()
	}
	for _, c := range []struct {
		what string
		in   word // the state in which page 9 waits
		o    RegionOptions
		do   func(t *testing.T, p *Pager, r *Region, s *store.Faulty)
	}{
		{"AcquireWrite", stInstalling, RegionOptions{}, func(t *testing.T, p *Pager, r *Region, s *store.Faulty) { pin(t, r, 9*FrameSize, 1) }},
		{"AcquireWrite of three pages", stInstalling, RegionOptions{}, func(t *testing.T, p *Pager, r *Region, s *store.Faulty) { pin(t, r, 8*FrameSize, 3*FrameSize) }},
		{"WriteAt of a part", stInstalling, RegionOptions{}, func(t *testing.T, p *Pager, r *Region, s *store.Faulty) {
			if _, err := r.WriteAt([]byte{0xee}, 9*FrameSize); err != nil {
				t.Error(err)
			}
		}},
		{"a raw store", stInstalling, RegionOptions{}, func(t *testing.T, p *Pager, r *Region, s *store.Faulty) {
			r.Bytes()[9*FrameSize] = 0xee
		}},
		{"a writer that joins a reader", stInstalling, RegionOptions{}, func(t *testing.T, p *Pager, r *Region, s *store.Faulty) {
			s.HoldDone(store.OnRead)
			defer s.Release()
			var wg sync.WaitGroup
			wg.Go(func() { r.ReadAt(make([]byte, 1), 9*FrameSize) })
			eventually(t, "the reader's read", func() bool { return s.Counts().Held == 1 })
			wg.Go(func() { pin(t, r, 9*FrameSize, 1) })
			eventually(t, "the writer waits for it", func() bool { return p.Stats().Joined == 1 })
			eventually(t, "and says that it is one", func() bool { _, w := r.d.look(9); return w&flagForStore != 0 })
			s.Release()
			wg.Wait()
		}},
		{"a page that is rescued", stInstalling, RegionOptions{}, func(t *testing.T, p *Pager, r *Region, s *store.Faulty) {
			s.HoldDone(store.OnRead)
			defer s.Release()
			var wg sync.WaitGroup
			wg.Go(func() { pin(t, r, 9*FrameSize, 1) })
			eventually(t, "the read", func() bool { return s.Counts().Held == 1 })
			if rescueLoad(p.w, uint64(r.d.index)<<(seatRunBits+seatPageBits)|9<<seatRunBits) != 1 {
				t.Error("not rescued")
			}
			s.Release()
			wg.Wait()
		}},
		// The first touch of what was read ahead is news for the policy.
		{"a page that was read ahead", stUnlocking, RegionOptions{}, func(t *testing.T, p *Pager, r *Region, s *store.Faulty) {
			p.addJob(aheadJob{r: r, next: 9, end: 10})
			p.pumpNow()
			eventually(t, "it is there", func() bool { return stateOf(r, 9) == stResident })
			pin(t, r, 9*FrameSize, 1)
		}},
		// A large page comes frame by frame.
		{"a page of four frames", stUnlocking, RegionOptions{PageSize: 4 * FrameSize}, func(t *testing.T, p *Pager, r *Region, s *store.Faulty) {
			pin(t, r, 36*FrameSize, 1)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			c.o.Writeback.NoSteal = true
			p, r, s := absentRegion(t, 64, c.o)
			if c.what == "a page that is rescued" {
				needRaw(t, r) // else there is no rescue
			}
			if c.what == "a raw store" && (r.Raw() != nil || p.Stats().ParkMode != coro.InPlace) {
				t.Skip("a store that blocks its thread has its page read by the fault server")
			}
			state, writable := waitsWithin(t, r, fd, 9, c.in, func() { c.do(t, p, r, s) })
			if state != c.in || writable {
				t.Errorf("waits in state %d, writable: %v; want state %d", state, writable, c.in)
			}
			s.Release() // if it is the test that has ended early
			first := 9 * r.PageSize()
			if got := stateOf(r, 9); got != stDirty {
				t.Errorf("it is in state %#x afterwards", got)
			}
			mem := make([]byte, FrameSize)
			if _, err := r.ReadAt(mem, int64(first)); err != nil {
				t.Fatal(err)
			}
			if mem[0] != 0xee || !bytes.Equal(mem[1:], bytes.Repeat([]byte{byte(first/FrameSize) + 1}, FrameSize-1)) {
				t.Errorf("it reads as % x…", mem[:4])
			}
			if !kernelMayWrite(t, r, fd, first/FrameSize) {
				t.Error("it is not writable")
			}
			if st := p.Stats(); st.Pinned != 0 || st.Dirty < int64(r.PageSize()) {
				t.Errorf("%d bytes pinned, %d dirty", st.Pinned, st.Dirty)
			}
			if r.pinned() {
				return // Close would wait for ever
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if left := p.credits.left(); left != p.pinnable.Load() {
				t.Errorf("%d credits of %d are left", left, p.pinnable.Load())
			}
		})
	}
}

// Whether a page is mapped as Dirty is settled by its word when it becomes
// Installing: there must be a pin, for its credit, and no cut. Both who maps pages
// from a read and the fault server go by that.
func TestWhatIsBornDirty(t *testing.T) {
	_, r, _ := absentRegion(t, 64, RegionOptions{Writeback: Writeback{NoSteal: true}})
	d := r.d
	fd := zeroes(t)
	src := bufs.get(FrameSize)
	defer bufs.put(src)
	page := 0
	for _, c := range []struct {
		what  string
		extra word
		cut   uint32
		dirty bool
	}{
		{"pinned for a store", pinOne | flagForStore, 0, true},
		{"and waited for", pinOne | flagForStore | flagWaited, 0, true},
		{"not pinned", flagForStore | flagWaited, 0, false},
		{"not for a store", pinOne, 0, false},
		{"read ahead, and not touched", pinOne | flagForStore | flagPrefetched, 0, false},
		{"while a commit takes its cut", pinOne | flagForStore, 1, false},
	} {
		for _, server := range []bool{false, true} {
			if server && r.Raw() != nil {
				continue
			}
			if !r.p.w.takeFrames(1) || c.extra&pinMask != 0 && !r.p.credits.take(1) {
				t.Fatal("no room")
			}
			page++
			pw, gen, got := d.claim(uint64(page), c.extra)
			if got != claimed {
				t.Fatal("not claimed")
			}
			dirty := load64(&d.dirty)
			atomic.StoreUint32(&d.cut, c.cut)
			if server {
				if e := fillPage(d, pw, uint64(page), gen, noticeLoaded); e != 0 {
					t.Fatal(errnoError(e))
				}
			} else {
				var res [1]installResult
				installGroup(d, uint64(page), &gen, 1, unsafe.Pointer(&src.mem[0]), false, &res[0])
				if res[0].code != installDone || res[0].old&^genMask&^stateMask != c.extra {
					t.Errorf("%s: %+v", c.what, res[0])
				}
			}
			atomic.StoreUint32(&d.cut, 0)
			want := word(stResident)
			if c.dirty {
				want = stDirty
			}
			if w := *pw; w&stateMask != want || w&(flagForStore|flagWaited) != 0 || w&pinMask != c.extra&pinMask {
				t.Errorf("%s (server: %v): the word is %#x", c.what, server, w)
			}
			if kernelMayWrite(t, r, fd, page) != c.dirty {
				t.Errorf("%s (server: %v): writable: %v", c.what, server, !c.dirty)
			}
			if marked := r.dirtyMark(page); marked != c.dirty || (load64(&d.dirty) != dirty) != c.dirty {
				t.Errorf("%s (server: %v): marked as dirty: %v, counted: %d", c.what, server, marked, load64(&d.dirty)-dirty)
			}
			if c.extra&pinMask != 0 {
				r.unpin(pageRange{uint64(page), 1}, false)
			}
		}
	}
	// All of them leave, with the credits they have.
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if p := r.p; p.credits.left() != p.pinnable.Load() || load64(&p.w.kept) != 0 || load64(&p.w.dirty) != 0 {
		t.Errorf("%d credits of %d are left, %d kept, %d frames dirty", p.credits.left(), p.pinnable.Load(), load64(&p.w.kept), load64(&p.w.dirty))
	}
}

func (r *Region) dirtyMark(page int) bool {
	leaf := uint32(atomic.LoadUint64(r.d.dirEntry(uint64(page)))) & dirLeafMask
	return atomic.LoadUint64(&metaOf(leaf).dirty)>>(page&(leafPages-1))&1 != 0
}

// The pages of one read are mapped as each of them is to be. If the kernel
// refuses one, those before it that are writable stay: they may have been stored
// to.
func TestBornAmongOthers(t *testing.T) {
	_, r, _ := absentRegion(t, 64, RegionOptions{Writeback: Writeback{NoSteal: true}})
	d := r.d
	fd := zeroes(t)
	mem, err := unix.Mmap(-1, 0, 8*FrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	for i := range mem {
		mem[i] = byte(100 + i/FrameSize)
	}
	read := func(first int, wants string) (res [8]installResult) {
		var gens [8]uint32
		for i, c := range wants {
			extra := word(0)
			if c == 'w' {
				extra = pinOne | flagForStore
				r.p.credits.take(1)
			}
			r.p.w.takeFrames(1)
			_, gens[i], _ = d.claim(uint64(first+i), extra)
		}
		installGroup(d, uint64(first), &gens[0], len(wants), unsafe.Pointer(&mem[0]), false, &res[0])
		return res
	}
	writable := func(page int) bool { return kernelMayWrite(t, r, fd, page) }
	for i, res := range read(8, "wrrwwrww") {
		want := "wrrwwrww"[i] == 'w'
		if res.code != installDone || writable(8+i) != want || (stateOf(r, 8+i) == stDirty) != want {
			t.Errorf("page %d: %+v, state %#x, to be written to: %v", i, res, stateOf(r, 8+i), want)
		}
		if got := *(*byte)(unsafe.Add(r.base, (8+i)*FrameSize+1)); got != byte(100+i) {
			t.Errorf("page %d reads as %d", i, got)
		}
	}
	if err := unix.Mprotect(mem[2*FrameSize:4*FrameSize], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		first int
		wants string
		there int
	}{{24, "wwww", 2}, {32, "rrrr", 0}} {
		for i, res := range read(c.first, c.wants) {
			page, want := c.first+i, uint32(installDone)
			switch {
			case i >= len(c.wants):
				continue
			case i >= c.there:
				want = installFailed
			}
			_, w := d.look(uint64(page))
			if res.code != want || want == installFailed && (unix.Errno(res.errno) != unix.EFAULT || w&stateMask != stLoading || r.dirtyMark(page) || writable(page)) {
				t.Errorf("%s: page %d: %+v, word %#x, marked as dirty: %v; want code %d", c.wants, i, res, w, r.dirtyMark(page), want)
			}
			if want == installDone && (w&stateMask != stDirty || !writable(page)) {
				t.Errorf("%s: page %d: word %#x", c.wants, i, w)
			}
			if w&stateMask == stLoading {
				r.p.failPage(r, uint64(page), uint32(w>>32), stLoading, unix.EFAULT)
			}
		}
	}
	r.eachPage(func(page uint64, w word) {
		if w&pinMask != 0 {
			r.unpin(pageRange{page, 1}, false)
		}
	})
}

// A page of several frames that is written whole comes one frame after the other.
// If the kernel refuses one, the others go again: nobody may have stored to them.
func TestLargePagesAreOpenedWhole(t *testing.T) {
	p, r, _ := absentRegion(t, 64, RegionOptions{PageSize: 4 * FrameSize, Writeback: Writeback{NoSteal: true}})
	d := r.d
	mem, err := unix.Mmap(-1, 0, 4*FrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	for i := range mem {
		mem[i] = byte(100 + i/FrameSize)
	}
	if err := unix.Mprotect(mem[3*FrameSize:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	fd := zeroes(t)
	taken, stored := 0, false // back; what was stored to before
	unmap := unmapVia
	unmapVia = func(addr, n uintptr) {
		if addr == d.addr(2) {
			_, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), addr, 1)
			taken, stored = taken+1, stored || e == 0
		}
		unmap(addr, n)
	}
	defer func() { unmapVia = unmap }()
	if !p.w.takeFrames(4) || !p.credits.take(4) {
		t.Fatal("no room")
	}
	pw, gen, got := d.claim(2, 0)
	if got != claimed {
		t.Fatal("not claimed")
	}
	_, e, _ := bornWhole(d, pw, gen, 2, unsafe.Pointer(&mem[0]), false)
	if unix.Errno(e) != unix.EFAULT || *pw&stateMask != stLoading || r.dirtyMark(2) || taken != 1 {
		t.Errorf("%v, the word is %#x, marked as dirty: %v, taken back %d times", unix.Errno(e), *pw, r.dirtyMark(2), taken)
	}
	if stored {
		t.Error("what was stored to a frame of it is gone with it")
	}
	if err := unix.Mprotect(mem[3*FrameSize:], unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	if _, e, _ := bornWhole(d, pw, gen, 2, unsafe.Pointer(&mem[0]), false); e != 0 || *pw&stateMask != stDirty || !r.dirtyMark(2) {
		t.Errorf("%v, the word is %#x, marked as dirty: %v", unix.Errno(e), *pw, r.dirtyMark(2))
	}
	for frame := range 4 {
		if got := *(*byte)(unsafe.Add(r.base, (8+frame)*FrameSize+1)); got != byte(100+frame) || !kernelMayWrite(t, r, fd, 8+frame) {
			t.Errorf("frame %d reads as %d, or is not writable", frame, got)
		}
	}
}

// The pin whose credit will be the page's stays until the page is Dirty.
func TestPinsStayWhileAPageIsBorn(t *testing.T) {
	_, r, _ := absentRegion(t, 8, RegionOptions{Writeback: Writeback{NoSteal: true}})
	if err := r.pinPages(context.Background(), pageRange{1, 1}, true); err != nil {
		t.Fatal(err)
	}
	pw, w := r.d.look(1)
	if w&stateMask != stDirty || w&pinMask != pinOne {
		t.Fatalf("the word is %#x", w)
	}
	left := r.p.credits.left()
	atomic.StoreUint64(pw, w&^stateMask|stInstalling|flagForStore)
	free := make(chan bool)
	go func() { free <- r.unpinPage(1) }() // as Close does with the pins of those who wait
	for range 100 {
		unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		runtime.Gosched()
	}
	if got := atomic.LoadUint64(pw); got&pinMask != pinOne {
		t.Errorf("the pin is gone: %#x", got)
	}
	setState(pw, stInstalling, stDirty, flagForStore, 0)
	if <-free {
		t.Error("the credit of a dirty page is said to be free")
	}
	if got := atomic.LoadUint64(pw); got&(stateMask|pinMask) != stDirty || r.p.credits.left() != left {
		t.Errorf("the word is %#x afterwards, and %d credits are left of %d", got, r.p.credits.left(), left)
	}
}

// A cut waits for a page that is being born dirty: whoever maps it has looked for
// the cut before it began, and what is stored to the page may be older.
func TestCutWaitsForPagesBeingBorn(t *testing.T) {
	p := newPager(t, Options{Budget: 256 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 64, RegionOptions{})
	fill(t, r, 3, 7)
	pw, w := r.d.look(3)
	c := r.newCut()
	for state, waits := range map[word]bool{
		stInstalling: true, stUnlocking: true, stDirty: true, stCopying: true, stWriting: true,
		stMissing: false, stLoading: false, stResident: false, stEvicting: false, stFailed: false,
	} {
		atomic.StoreUint64(pw, w&^stateMask|state)
		if got := c.misses(3); got != waits {
			t.Errorf("state %d: %v", state, got)
		}
	}
	atomic.StoreUint64(pw, w)
}

// Who gives up waiting for a page that he wanted to write to leaves it dirty, and
// nothing else: a Commit, for which he is not inside the gate any more, and Sync
// write it as it was read.
func TestGivingUpAWriteLeavesThePage(t *testing.T) {
	for _, o := range []RegionOptions{{}, {Durability: Atomic}} {
		if o.Durability == Atomic {
			if noProtection() != nil {
				continue
			}
			o.Journal.Store = store.NewMemory(8192)
		}
		p, r, s := absentRegion(t, 16, o)
		s.HoldDone(store.OnRead)
		defer s.Release()
		ctx, cancel := context.WithCancel(context.Background())
		failed := make(chan error)
		go func() { _, err := r.AcquireWrite(ctx, 5*FrameSize, 1); failed <- err }()
		eventually(t, "the read", func() bool { return s.Counts().Held == 1 })
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		s.Release()
		eventually(t, "the page is there, and pinned by nobody", func() bool {
			_, w := r.d.look(5)
			return present(w) && w&pinMask == 0
		})
		if got := stateOf(r, 5); got != stDirty {
			t.Errorf("state %#x", got)
		}
		if err := r.Sync(context.Background()); err != nil {
			t.Error(err)
		}
		mem := make([]byte, FrameSize)
		if _, err := r.ReadAt(mem, 5*FrameSize); err != nil || !bytes.Equal(mem, bytes.Repeat([]byte{6}, FrameSize)) {
			t.Errorf("% x…, %v", mem[:4], err)
		}
		if st := p.Stats(); st.Dirty != 0 || st.Pinned != 0 {
			t.Errorf("%d bytes are dirty, %d pinned", st.Dirty, st.Pinned)
		}
	}
}

// Who waits in ReadAt for a page that comes writable copies from the page, which
// may have been stored to by then, and not from where it was read to.
func TestBornPagesAreNotLent(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // the reader runs when this goroutine waits
	const rounds = 20
	p, r, s := absentRegion(t, rounds, RegionOptions{Writeback: Writeback{NoSteal: true}})
	fresh := 0
	for page := range int64(rounds) {
		s.HoldDone(store.OnRead)
		defer s.Release()
		wrote, got := make(chan error), make(chan byte)
		go func() {
			pin, err := r.AcquireWrite(context.Background(), page*FrameSize, 1)
			pin.Release()
			wrote <- err
		}()
		eventually(t, "the read", func() bool { return s.Counts().Held == 1 })
		go func() {
			var b [1]byte
			r.ReadAt(b[:], page*FrameSize)
			got <- b[0]
		}()
		eventually(t, "the reader waits for it", func() bool { return p.Stats().Joined == page+1 })
		s.Release()
		*(*byte)(unsafe.Add(r.base, page*FrameSize)) = 0xee
		if <-got == 0xee {
			fresh++
		} // else it was faster
		if err := <-wrote; err != nil {
			t.Error(err)
		}
	}
	if fresh == 0 {
		t.Errorf("%d readers have all seen what the page was when it was read", rounds)
	}
}

// A page has left and is there again when those are told who waited for it the
// first time: whoever is told now may wait for what it has become.
func TestAnOldBufferIsNotLent(t *testing.T) {
	p, r, _ := absentRegion(t, 8, RegionOptions{})
	if err := r.need(3); err != nil {
		t.Fatal(err)
	}
	_, w := r.d.look(3)
	for gen, lent := range map[uint32]bool{uint32(w >> 32): true, uint32(w>>32) - 1: false} {
		op := newOp(r)
		op.one[0] = pageRange{3, 1}
		op.ranges = op.one[:]
		op.borrows, op.single = true, true
		op.left.Store(1)
		r.active.Add(1)
		p.enlist(op.waiterFor(3))
		buf := bufs.get(FrameSize)
		p.settleFrom(r, 3, gen, buf, 0)
		got, _, err := op.waitLoan()
		if err != nil || (got != nil) != lent {
			t.Errorf("generation %d, the page's is %d: lent: %v, %v", gen, w>>32, got != nil, err)
		}
		bufs.put(got)
		bufs.put(buf)
	}
}

// Close takes the pins of those who wait for a page off its word while the page
// is on its way; a read that fails then takes no credit with it.
func TestCloseUnderAFailingRead(t *testing.T) {
	p, r, s := absentRegion(t, 16, RegionOptions{})
	s.Inject(store.Fault{Ops: store.OnRead, Off: 5 * FrameSize, Len: FrameSize, Err: unix.EIO})
	s.HoldDone(store.OnRead)
	defer s.Release()
	ended := make(chan error, 2)
	for _, acquire := range []func(context.Context, int64, int64) (Pin, error){r.Acquire, r.AcquireWrite} {
		go func() { _, err := acquire(context.Background(), 5*FrameSize, 1); ended <- err }()
	}
	eventually(t, "both wait for the read", func() bool { return s.Counts().Held == 1 && p.Stats().Joined == 1 })
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	for range 2 {
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	}
	if _, w := r.d.look(5); w&(pinMask|flagKept) != 0 || w&stateMask != stLoading {
		t.Errorf("the word is %#x: only what is resident keeps a credit", w)
	}
	s.Release()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if p.credits.left() != p.pinnable.Load() || load64(&p.w.kept) != 0 {
		t.Errorf("%d credits of %d are left, and %d are kept by nobody", p.credits.left(), p.pinnable.Load(), load64(&p.w.kept))
	}
}

// Writers of every kind at the same pages, which come and leave all the while:
// each has eight bytes of every page. What one stores while a page is being mapped
// for another is not lost, to memory or to the store.
func TestStoresToPagesBeingBorn(t *testing.T) {
	const pages, writers = 192, 5
	s := store.NewMemory(pages * FrameSize)
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, err := p.Map(s, RegionOptions{Prefetch: prefetch.None()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	raw := r.Raw() == nil
	var counts [writers][pages]uint64
	var wg sync.WaitGroup
	for g := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 17))
			at := rnd.IntN(pages)
			for range longer(3000) {
				at = (at + rnd.IntN(8)) % pages // near each other, so that they meet
				n, off := counts[g][at]+1, int64(at*FrameSize+64*g)
				counts[g][at] = n
				switch {
				case g%3 == 0:
					pin, err := r.AcquireWrite(ctx, off, 8)
					if err != nil {
						t.Error(err)
						return
					}
					v := (*uint64)(unsafe.Pointer(&pin.Bytes()[0]))
					if *v != n-1 {
						t.Errorf("page %d: writer %d finds %d, has written %d", at, g, *v, n-1)
					}
					*v = n
					pin.Release()
				case g%3 == 1 && raw:
					v := (*uint64)(unsafe.Pointer(&r.Bytes()[off]))
					if n%2 == 0 { // else the store is what finds it absent
						if *v != n-1 {
							t.Errorf("page %d: writer %d finds %d, has written %d", at, g, *v, n-1)
						}
					}
					*v = n
				default:
					var b [8]byte
					*(*uint64)(unsafe.Pointer(&b)) = n
					if _, err := r.WriteAt(b[:], off); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	stop := make(chan struct{})
	var syncs sync.WaitGroup
	syncs.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := r.Sync(ctx); err != nil {
					t.Error(err)
				}
			}
		}
	})
	wg.Wait()
	close(stop)
	syncs.Wait()
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	k, _ := s.Kernel()
	for g := range writers {
		for page := range pages {
			if got := *(*uint64)(unsafe.Pointer(&k.Mem[page*FrameSize+64*g])); got != counts[g][page] {
				t.Errorf("page %d of the store has %d of writer %d, who has written %d", page, got, g, counts[g][page])
			}
		}
	}
}
