package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/uffd"
)

// movedRegion maps a file of so many bytes of words that say where they are, read-only,
// in pages of 2 MiB, of which budget fit.
func movedRegion(t *testing.T, bytes int64, budget int64, o RegionOptions) (*Pager, *Region) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "data")
	data := make([]byte, bytes)
	for i := 0; i+8 <= len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Options{Budget: budget * hugeBytes})
	if err != nil {
		t.Fatal(err)
	}
	o.ReadOnly, o.PageSize, o.HugePages = true, hugeBytes, true
	r, err := p.Map(st, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.Close(), p.Close(), st.Close()); err != nil {
			t.Error(err)
		}
	})
	if !r.moves() {
		t.Skip("pages are not moved here: it takes UFFDIO_MOVE of Linux 6.17")
	}
	return p, r
}

// checkWords reads a range and compares it with what movedRegion has written there.
func checkWords(t *testing.T, what string, b []byte, off int64) bool {
	for i := 0; i+8 <= len(b); i += 8 {
		if got, want := binary.LittleEndian.Uint64(b[i:]), uint64(off+int64(i))*0x9e3779b97f4a7c15; got != want {
			t.Errorf("%s at %d: %#x, want %#x", what, off+int64(i), got, want)
			return false
		}
	}
	return true
}

// countMoves counts the bytes that are moved into and out of r.
func countMoves(t *testing.T, r *Region) (in, out *atomic.Int64) {
	in, out = new(atomic.Int64), new(atomic.Int64)
	lo, hi := uintptr(r.base), uintptr(r.base)+uintptr(r.Len())
	moveVia = func(fd int, dst, src, n uintptr, mode uint64) (int64, uintptr) {
		done, errno := uffd.RawMove(fd, dst, src, n, mode)
		if dst >= lo && dst < hi {
			in.Add(done)
		} else if src >= lo && src < hi {
			out.Add(done)
		}
		return done, errno
	}
	t.Cleanup(func() { moveVia = uffd.RawMove })
	return in, out
}

// noIdleBuffers takes out what other tests have left, beyond which buffers get no memory
// from pages that leave.
func noIdleBuffers(t *testing.T) {
	var out []*buffer
	for size := bufferLarge; size <= hugeBytes; size *= 2 {
		for {
			bufs.mu.Lock()
			none := bufs.free[bufferClass(size)] == nil
			bufs.mu.Unlock()
			if none {
				break
			}
			out = append(out, bufs.get(size))
		}
	}
	t.Cleanup(func() {
		for _, b := range out {
			bufs.put(b)
		}
	})
}

// Pages of 2 MiB of a read-only region come and go without being copied, whoever reads
// them in whatever way, and read as the file does; the last one, of which the file has
// only a part, ends in zeros.
func TestLargePagesAreMoved(t *testing.T) {
	const pages, size = 12, 11*hugeBytes + 5*FrameSize + 24
	noIdleBuffers(t)
	_, r := movedRegion(t, size, 5, RegionOptions{Prefetch: prefetch.None()})
	in, out := countMoves(t, r)
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(g)))
			b := make([]byte, 64<<10)
			for range 120 {
				n := 8 * (1 + rnd.Int64N(int64(len(b)/8)))
				off := 8 * rnd.Int64N((size-n)/8)
				var err error
				ok := true
				switch rnd.IntN(4) {
				case 0:
					if _, err = r.ReadAt(b[:n], off); err == nil {
						ok = checkWords(t, "ReadAt", b[:n], off)
					}
				case 1:
					var pin Pin
					if pin, err = r.Acquire(context.Background(), off, n); err == nil {
						ok = checkWords(t, "Acquire", pin.Bytes(), off)
						pin.Release()
					}
				case 2:
					err = r.View(context.Background(), func(m []byte) error {
						ok = checkWords(t, "View", m[off:off+n], off)
						return nil
					})
				case 3:
					if r.Raw() != nil {
						continue
					}
					err = Guard(func() error {
						copy(b, r.Bytes()[off:off+n])
						return nil
					})
					if err == nil {
						ok = checkWords(t, "Bytes", b[:n], off)
					}
				}
				if err != nil || !ok {
					t.Errorf("at %d: %v", off, err)
					return
				}
			}
		})
	}
	wg.Wait()
	// The memory behind the file's end.
	err := r.View(context.Background(), func(m []byte) error {
		if rest := m[size:cap(m)]; len(rest) > 0 && bytes.Count(rest, []byte{0}) != len(rest) {
			t.Error("behind the end of the file there is something")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// What threads that wait have read themselves is copied, and so are pages that they,
	// or the rescuer, have taken over from a read: on a busy machine, not a few.
	reads := int64(r.p.Stats().Reads) - int64(bare.Load64(&r.p.w.served))
	t.Logf("%d reads; %d pages moved in, %d out", reads, in.Load()/hugeBytes, out.Load()/hugeBytes)
	if in.Load() < reads*hugeBytes/4 {
		t.Errorf("of %d pages read, %d were moved in", reads, in.Load()/hugeBytes)
	}
	if out.Load() < (reads-pages)*hugeBytes/8 {
		t.Errorf("of more than %d pages that left, %d were moved out", reads-pages, out.Load()/hugeBytes)
	}
}

// A page that was moved in is as protected as one that was copied.
func TestMovedPagesAreProtected(t *testing.T) {
	_, r := movedRegion(t, 4*hugeBytes, 8, RegionOptions{Prefetch: prefetch.None()})
	in, _ := countMoves(t, r)
	fd := zeroes(t)
	for page := range 4 {
		pin, err := r.Acquire(context.Background(), int64(page)*hugeBytes, hugeBytes)
		if err != nil {
			t.Fatal(err)
		}
		// (In frames, because the kernel protects each for itself if it broke the page up.)
		for _, at := range []int{0, 1, 255, 511} {
			b := pin.Bytes()[at*FrameSize:][:8]
			if n, err := unix.Read(fd, b); err != unix.EFAULT {
				t.Errorf("page %d: the kernel may write to frame %d: %d, %v", page, at, n, err)
			}
		}
		pin.Release()
	}
	if rescued := int64(bare.Load64(&r.p.w.rescued)); in.Load() < (4-rescued)*hugeBytes {
		t.Errorf("%d bytes were moved in, %d pages rescued", in.Load(), rescued)
	}
}

// What cannot be moved, all of it or a part, is copied, and what cannot be moved out is
// thrown away.
func TestWhatCannotBeMovedIsCopied(t *testing.T) {
	for _, c := range []struct {
		what  string
		part  uintptr // of each call is done, in frames
		calls int64   // that do something, of each region
		errno unix.Errno
	}{
		{"pinned", 0, 0, unix.EBUSY},
		{"not of this kind", 0, 0, unix.EINVAL},
		{"a part", 3, 1 << 40, unix.EINVAL},
		{"in parts", 128, 1 << 40, unix.EAGAIN},
		{"now and then", 512, 5, unix.EBUSY},
	} {
		t.Run(c.what, func(t *testing.T) {
			_, r := movedRegion(t, 8*hugeBytes, 4, RegionOptions{Prefetch: prefetch.None()})
			var calls atomic.Int64
			moveVia = func(fd int, dst, src, n uintptr, mode uint64) (int64, uintptr) {
				if calls.Add(1) > c.calls || c.part == 0 {
					return 0, uintptr(c.errno)
				}
				done, errno := uffd.RawMove(fd, dst, src, min(n, c.part*FrameSize), mode)
				if errno == 0 && uintptr(done) < n {
					errno = uintptr(c.errno)
				}
				return done, errno
			}
			t.Cleanup(func() { moveVia = uffd.RawMove })
			b := make([]byte, hugeBytes)
			fd := zeroes(t)
			for lap := range 3 {
				for page := range int64(8) {
					pin, err := r.Acquire(context.Background(), page*hugeBytes, hugeBytes)
					if err != nil {
						t.Fatal(err)
					}
					copy(b, pin.Bytes())
					for _, at := range []int{0, 2, 3, 127, 128, 511} {
						if _, err := unix.Read(fd, pin.Bytes()[at*FrameSize:][:8]); err != unix.EFAULT {
							t.Errorf("page %d: the kernel may write to frame %d: %v", page, at, err)
						}
					}
					pin.Release()
					if !checkWords(t, c.what, b, page*hugeBytes) {
						t.Fatalf("lap %d", lap)
					}
				}
			}
			if calls.Load() == 0 {
				t.Error("nothing was to be moved")
			}
		})
	}
}

// What the kernel says it has not moved may have been: it is read again.
func TestMovedAndDenied(t *testing.T) {
	for _, part := range []uintptr{hugeBytes, 3 * FrameSize, 0} {
		for _, errno := range []unix.Errno{unix.EEXIST, unix.ENOENT, unix.ENOMEM} {
			_, r := movedRegion(t, 6*hugeBytes, 4, RegionOptions{Prefetch: prefetch.None()})
			in := int64(0)
			moveVia = func(fd int, dst, src, n uintptr, mode uint64) (int64, uintptr) {
				if part > 0 {
					if done, e := uffd.RawMove(fd, dst, src, part, mode); done == 0 && e != 0 {
						return done, e // it is busy, which may be said, and is asked again
					}
				}
				if dst-uintptr(r.base) < uintptr(r.Len()) {
					in++
				}
				return 0, uintptr(errno)
			}
			t.Cleanup(func() { moveVia = uffd.RawMove })
			b := make([]byte, hugeBytes)
			for range 2 {
				for page := range int64(6) {
					if _, err := r.ReadAt(b, page*hugeBytes); err != nil {
						t.Fatal(err)
					}
					if !checkWords(t, errno.Error(), b, page*hugeBytes) {
						return
					}
				}
			}
			if reads := int64(r.p.Stats().Reads); in == 0 || reads <= in {
				t.Errorf("%d reads, although %d pages were denied", reads, in)
			}
		}
	}
}

// A page that was moved and cannot be protected is an error, and gone; the next who
// wants it reads it anew.
func TestMovedAndNotProtected(t *testing.T) {
	_, r := movedRegion(t, 4*hugeBytes, 8, RegionOptions{Prefetch: prefetch.None()})
	left := refuseToProtect(t, 1)
	b := make([]byte, 64)
	page := int64(0)
	for ; page < 4; page++ {
		_, err := r.ReadAt(b, page*hugeBytes)
		if left.Load() > 0 {
			continue // the rescuer has read this one, and copied it
		}
		if !errors.Is(err, unix.ENOMEM) {
			t.Errorf("ReadAt of a page that was not protected: %v", err)
		}
		break
	}
	if page == 4 {
		t.Fatal("nothing was to be protected")
	}
	if _, err := r.ReadAt(b, page*hugeBytes); err != nil {
		t.Error(err)
	}
	checkWords(t, "again", b, page*hugeBytes)
}

// A policy that looks at pages finds them in the read buffer: they are copied then.
func TestPagesThatAreLookedAtAreNotMoved(t *testing.T) {
	var seen atomic.Int64
	_, r := movedRegion(t, 4*hugeBytes, 8, RegionOptions{Prefetch: prefetch.DataFunc(func(e prefetch.Event, plan *prefetch.Plan) {
		if e.Kind == prefetch.Arrived {
			seen.Add(1)
			checkWords(t, "what the policy sees", e.Data, e.Page*hugeBytes)
		}
	})})
	b := make([]byte, 8)
	for page := range int64(4) {
		if _, err := r.ReadAt(b, page*hugeBytes); err != nil {
			t.Fatal(err)
		}
	}
	if seen.Load() != 4 {
		t.Errorf("the policy has seen %d pages of 4", seen.Load())
	}
}

// A scan by ReadAt, which copies from the buffers of what was read ahead where they
// are kept (shelf.go), does not from those whose memory is a page now.
func TestScanOfMovedPages(t *testing.T) {
	_, r := movedRegion(t, 24*hugeBytes, 16, RegionOptions{})
	in, _ := countMoves(t, r)
	b := make([]byte, 128<<10)
	for range 2 {
		for off := int64(0); off < r.Len(); off += int64(len(b)) {
			if _, err := r.ReadAt(b, off); err != nil {
				t.Fatal(err)
			}
			if !checkWords(t, "ReadAt", b, off) {
				return
			}
		}
	}
	if in.Load() == 0 || r.p.Stats().Prefetch.Issued == 0 {
		t.Errorf("%d bytes were moved, %d pages read ahead", in.Load(), r.p.Stats().Prefetch.Issued)
	}
}

// Buffers whose memory has become pages are used again, and are not counted as memory.
func TestEmptyBuffers(t *testing.T) {
	var bp bufferPool
	a, b := bp.get(hugeBytes), bp.get(hugeBytes)
	if uintptr(unsafe.Pointer(&a.mem[0]))%hugeBytes != 0 || uintptr(unsafe.Pointer(&b.mem[0]))%hugeBytes != 0 {
		t.Error("a buffer is not aligned")
	}
	a.spent = true
	bp.put(a)
	if got := bp.bytes.Load(); got != hugeBytes {
		t.Errorf("%d bytes are counted beside an empty buffer", got)
	}
	var s spares
	s.take(&bp)
	if s.n != 1 || s.bufs[0] != a {
		t.Fatalf("%d spares", s.n)
	}
	s.used = 1
	s.give(&bp)
	if got := bp.bytes.Load(); got != 2*hugeBytes || bp.large != hugeBytes || s.n != 0 {
		t.Errorf("%d bytes are counted, %d idle, when it has got memory", got, bp.large)
	}
	if bp.get(hugeBytes) != a {
		t.Error("it is not the next")
	}
	a.spent = true
	bp.put(a)
	bp.large = bufferKeep // enough is idle
	if s.take(&bp); s.n != 0 {
		t.Errorf("%d spares beyond what may be idle", s.n)
	}
	bp.large = 0
	if bp.get(hugeBytes) != a || a.spent {
		t.Error("an empty buffer is not used again")
	}
	bp.unmap(a)
	bp.unmap(b)
}

// Pages that cannot be huge, or not be moved, are refused.
func TestHugePagesOfWhat(t *testing.T) {
	p, err := New(Options{Budget: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, o := range []RegionOptions{
		{HugePages: true, PageSize: hugeBytes},
		{HugePages: true, ReadOnly: true},
		{HugePages: true, ReadOnly: true, PageSize: hugeBytes / 2},
		{HugePages: true, Private: true, PageSize: hugeBytes},
	} {
		if o.Private && noProtection() != nil {
			continue // refused for that
		}
		if r, err := p.Map(store.NewMemory(hugeBytes), o); err == nil || !strings.Contains(err.Error(), "HugePages") {
			t.Errorf("%+v: %v", o, err)
			if err == nil {
				r.Close()
			}
		}
	}
	// Without it pages of that size are copied.
	r, err := p.Map(store.NewMemory(hugeBytes), RegionOptions{ReadOnly: true, PageSize: hugeBytes})
	if err != nil {
		t.Fatal(err)
	}
	if r.moves() {
		t.Error("pages are moved although nobody asked for it")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestReleases(t *testing.T) {
	for release, want := range map[string]bool{
		"6.17": true, "6.17.0-rc1": true, "6.18.5-generic": true, "7.0.1": true, "10.2": true, "6.17-rc1": true, "6.100+": true,
		"6.16.9": false, "5.19.0": false, "6.8.0-1018-aws": false, "6": false, "": false, "x.y": false, "6.": false,
	} {
		if got := atLeast(release, [2]int{6, 17}); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}
