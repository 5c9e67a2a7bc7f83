package pager

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// spanRegion is a region of resident pages, page i full of byte i, of which
// those in dirty have been written to.
func spanRegion(t *testing.T, pages int, dirty ...int) (*Pager, *Region) {
	t.Helper()
	image := make([]byte, pages*FrameSize)
	for i := range image {
		image[i] = byte(i / FrameSize)
	}
	s, _ := memoryStore(image)
	p := newPager(t, Options{Budget: int64(2*pages+64) * FrameSize})
	if sp.fd < 0 || !sp.wp {
		t.Skip("no write-protection here")
	}
	r, err := p.Map(s, RegionOptions{Writeback: Writeback{NoSteal: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(make([]byte, len(image)), 0); err != nil {
		t.Fatal(err)
	}
	for _, i := range dirty {
		fill(t, r, i, byte(100+i))
	}
	return p, r
}

// zeroes opens what the kernel reads zeros from.
func zeroes(t *testing.T) (fd int) {
	t.Helper()
	fd, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// kernelMayWrite: the kernel, which repeats no store, can write to the page.
func kernelMayWrite(t *testing.T, r *Region, fd, page int) bool {
	t.Helper()
	_, err := unix.Read(fd, unsafe.Slice((*byte)(unsafe.Add(r.base, page*FrameSize)), 1))
	if err != nil && err != unix.EFAULT {
		t.Fatal(err)
	}
	return err == nil
}

func stateOf(r *Region, page int) word {
	_, w := r.d.look(uint64(page))
	return w & (stateMask | flagRedirtied)
}

// All pages of a span are copied out in one go, and are clean for the kernel
// afterwards; what lies between is as it was.
func TestSpanCopiesOut(t *testing.T) {
	dirty := []int{2, 3, 10, 20, 21, 22, 40}
	_, r := spanRegion(t, 64, dirty...)
	buf := bufs.get(64 * FrameSize)
	defer bufs.put(buf)
	at := func(page int) unsafe.Pointer { return unsafe.Pointer(&buf.mem[page*FrameSize]) }
	runs := []outRun{{first: 2, n: 2, dst: at(2)}, {first: 10, n: 1, dst: at(10)}, {first: 20, n: 3, dst: at(20)}, {first: 40, n: 1, dst: at(40)}}
	if !copyOutSpan(r.d, &runs[0], len(runs)) {
		t.Fatal("no span is under way, and it says so")
	}
	for _, run := range runs {
		if run.took != run.n {
			t.Errorf("%d pages from %d on, want %d", run.took, run.first, run.n)
		}
	}
	fd := zeroes(t)
	for _, i := range dirty {
		if got := stateOf(r, i); got != stWriting {
			t.Errorf("page %d is in state %d", i, got)
		}
		if want := bytes.Repeat([]byte{byte(100 + i)}, FrameSize); !bytes.Equal(buf.mem[i*FrameSize:(i+1)*FrameSize], want) {
			t.Errorf("the copy of page %d has %d", i, buf.mem[i*FrameSize])
		}
		if kernelMayWrite(t, r, fd, i) {
			t.Errorf("page %d is not protected", i)
		}
	}
	if got := stateOf(r, 15); got != stResident {
		t.Errorf("page 15 is in state %d", got)
	}
	for _, i := range dirty {
		endWrite(r.d, uint64(i), false)
		if !kernelMayWrite(t, r, fd, i) {
			t.Errorf("page %d stays protected after its write failed", i)
		}
	}
}

// A span ends before what must stay writable.
func TestSpanEndsBeforeWritablePages(t *testing.T) {
	_, r := spanRegion(t, 32, 2, 9, 12)
	pin, err := r.AcquireWrite(context.Background(), 5*FrameSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	for _, c := range []struct {
		from, to uint64
		ends     bool
	}{{3, 5, false}, {3, 9, true}, {5, 6, true}, {6, 9, false}, {6, 10, true}, {10, 12, false}, {10, 13, true}, {13, 32, false}} {
		if got := spanEnds(r.d, c.from, c.to); got != c.ends {
			t.Errorf("pages [%d, %d): %v", c.from, c.to, got)
		}
	}
	// Being written, and written to again; being made writable; being mapped.
	pw, w := r.d.look(9)
	for _, c := range []struct {
		w    word
		ends bool
	}{
		{stWriting, false}, {stWriting | flagRedirtied, true}, {stUnlocking, true}, {stInstalling, true},
		{stCopying, true}, {stResident, false}, {stEvicting, false},
	} {
		atomic.StoreUint64(pw, w&^(stateMask|flagRedirtied)|c.w)
		if got := spanEnds(r.d, 9, 10); got != c.ends {
			t.Errorf("a page in state %#x: %v", c.w, got)
		}
	}
	atomic.StoreUint64(pw, w)
}

// A span that cannot be protected leaves its pages Dirty and writable.
func TestSpanThatFails(t *testing.T) {
	_, r := spanRegion(t, 16, 2, 3, 4, 9)
	fd := zeroes(t)
	there := r.d.base
	plain, err := unix.Mmap(-1, 0, 16*FrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(plain)
	runs := []outRun{{first: 2, n: 3}, {first: 9, n: 1}}
	r.d.base = uintptr(unsafe.Pointer(&plain[0])) // nothing that userfaultfd knows
	buf := make([]byte, FrameSize)
	for i := range runs {
		runs[i].dst = unsafe.Pointer(&buf[0])
	}
	done := copyOutSpan(r.d, &runs[0], 2)
	r.d.base = there
	if !done || runs[0].took != 0 || runs[1].took != 0 {
		t.Errorf("%v, %d and %d pages", done, runs[0].took, runs[1].took)
	}
	for _, page := range []int{2, 3, 4, 9} {
		if got := stateOf(r, page); got != stDirty {
			t.Errorf("page %d is in state %#x", page, got)
		}
		if !kernelMayWrite(t, r, fd, page) {
			t.Errorf("page %d stays protected", page)
		}
	}
}

// A page that is about to become writable waits for the span that may not have
// seen that, in every way there is; another page does not.
func TestWritablePagesWaitForTheSpan(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("who waits for a span keeps his P")
	}
	// Nor does he stop for the collector.
	noCollections(t)
	_, r := spanRegion(t, 64, 20)
	if err := r.Advise(30*FrameSize, FrameSize, DontNeed); err != nil {
		t.Fatal(err)
	}
	fd := zeroes(t)
	buf := bufs.get(FrameSize)
	defer bufs.put(buf)
	if copyOut(r.d, 20, 1, unsafe.Pointer(&buf.mem[0])) != 1 {
		t.Fatal("page 20 is not copied")
	}
	ctx := context.Background()
	whole, part := make([]byte, FrameSize), make([]byte, 8)
	for _, c := range []struct {
		what string
		page int
		in   word // the state in which it waits
		do   func()
	}{
		{"a store to a clean page", 10, stUnlocking, func() { r.WriteAt(part, 10*FrameSize) }},
		{"a write pin", 11, stUnlocking, func() {
			if pin, err := r.AcquireWrite(ctx, 11*FrameSize, 1); err == nil {
				pin.Release()
			}
		}},
		{"a write that fails", 20, stUnlocking, func() { endWrite(r.d, 20, false) }},
		{"a page that is born dirty", 30, stInstalling, func() { r.WriteAt(whole, 30*FrameSize) }},
	} {
		atomic.StoreUint64(&r.d.span, 7*spanOne|5<<spanFirst|uint64(c.page-5+1))
		done := make(chan struct{})
		go func() { c.do(); close(done) }()
		for waits := false; !waits; {
			select {
			case <-done:
				waits = true
			default:
				waits = stateOf(r, c.page) == c.in
			}
		}
		for range 100 {
			unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
		if got := stateOf(r, c.page); got != c.in {
			t.Errorf("%s has not waited: it is in state %#x", c.what, got)
		}
		if kernelMayWrite(t, r, fd, c.page) {
			t.Errorf("%s: it is writable within a span", c.what)
		}
		atomic.StoreUint64(&r.d.span, 8*spanOne)
		<-done
		if got := stateOf(r, c.page); got != stDirty || !kernelMayWrite(t, r, fd, c.page) {
			t.Errorf("%s: it is in state %#x afterwards", c.what, got)
		}
	}
	atomic.StoreUint64(&r.d.span, 9*spanOne|5<<spanFirst|7)
	for _, page := range []int64{4, 12} { // beside it
		if _, err := r.WriteAt(part, page*FrameSize); err != nil {
			t.Error(err)
		}
	}
	atomic.StoreUint64(&r.d.span, 10*spanOne)
}

// Writers of every kind beside Syncs of scattered pages: the kernel's writes to
// write-pinned memory never fail, and no store is lost.
func TestSpansBesideWriters(t *testing.T) {
	const pages = 512
	p, r := spanRegion(t, pages)
	ctx := context.Background()
	fd := zeroes(t)
	var stop atomic.Bool
	var spans, wg sync.WaitGroup
	raw := r.Raw() == nil
	counts := make([]atomic.Int64, pages) // how often page i was written
	for g := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 5))
			for !stop.Load() {
				page := 3*rnd.IntN(pages/3) + g // each writer has its pages
				n := counts[page].Add(1)
				runtime.Gosched()
				switch {
				case g == 0:
					pin, err := r.AcquireWrite(ctx, int64(page*FrameSize), FrameSize)
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := unix.Read(fd, pin.Bytes()[8:]); err != nil {
						t.Errorf("the kernel's write to write-pinned memory: %v", err)
						stop.Store(true)
					}
					*(*int64)(unsafe.Pointer(&pin.Bytes()[0])) = n
					pin.Release()
				case g == 1 && raw:
					*(*int64)(unsafe.Pointer(&r.Bytes()[page*FrameSize])) = n
				default:
					var b [8]byte
					*(*int64)(unsafe.Pointer(&b[0])) = n
					if _, err := r.WriteAt(b[:], int64(page*FrameSize)); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 2 { // two at a time: one of them finds a span under way
		spans.Go(func() {
			for range longer(100) {
				if err := r.Sync(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	spans.Wait()
	stop.Store(true)
	wg.Wait()
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	k, _ := r.store.Kernel()
	for page := range pages {
		want := counts[page].Load()
		if got := *(*int64)(unsafe.Pointer(&k.Mem[page*FrameSize])); want != 0 && got != want {
			t.Errorf("page %d of the store was written %d times, %d wanted", page, got, want)
		}
	}
	if err := r.Close(); err != nil && !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if p.Stats().Writebacks == 0 {
		t.Error("nothing was written")
	}
}

// Scattered pages go to the store in few spans: sixty-four of them, eight
// apart, in one; of one in a hundred as many as a span is long; those that are
// further apart than a flush is worth, one by one.
func TestScatteredPagesAreOneSpan(t *testing.T) {
	for _, c := range []struct{ every, in int }{{8, 64}, {100, spanMost/100 + 1}, {spanGap + 1, spanMost/(spanGap+1) + 1}, {spanGap + 2, 0}} {
		var dirty []int
		for i := range 64 {
			dirty = append(dirty, 3+c.every*i)
		}
		p, r := spanRegion(t, 64*c.every+8, dirty...)
		list := p.collectDirty(nil, r.d, 0)
		slices.SortFunc(list, byPage)
		b := newWriteBatch(p.engine)
		before := atomic.LoadUint64(&r.d.span)
		used, started := p.writeSpan(r, list, writeSync, b)
		b.start()
		b.free()
		spans := (atomic.LoadUint64(&r.d.span) - before) / spanOne
		if used != c.in || started != c.in || spans != uint64(min(c.in, 1)) {
			t.Errorf("every %d: %d pages of the list, %d written, %d spans; want %d", c.every, used, started, spans, c.in)
		}
		if err := r.Sync(context.Background()); err != nil {
			t.Error(err)
		}
	}
}
