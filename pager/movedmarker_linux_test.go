package pager

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/uffd"
)

// Markers of pages that are moved: the buffer of their read is kept.

// still waits until nothing is on its way in.
func still(t *testing.T, p *Pager) {
	t.Helper()
	eventually(t, "nothing is under way", func() bool {
		return p.inflight.Load() == 0 && p.jobs.pending.Load() == 0 && p.aheadPages.Load() == 0
	})
}

// A reader of raw memory that leaves the device the time it takes waits for it at the
// beginning, and then for none of its pages.
func TestScanOfMovedPagesWaitsForNone(t *testing.T) {
	const pages = 32
	// Before there are goroutines of the pager, which do not wait for anything to look.
	var in atomic.Int64
	moveVia = func(fd int, dst, src, n uintptr, mode uint64) (int64, uintptr) {
		done, errno := uffd.RawMove(fd, dst, src, n, mode)
		if inArena(dst) {
			in.Add(done)
		}
		return done, errno
	}
	t.Cleanup(func() { moveVia = uffd.RawMove })
	p, r := movedRegion(t, pages*hugeBytes, 32, RegionOptions{})
	if r.Raw() != nil || p.Stats().ParkMode != coro.InPlace {
		t.Skip("raw access does not park here")
	}
	mem := r.Bytes()
	for page := int64(0); page < pages; page++ {
		off := page * hugeBytes
		if !checkWords(t, "Bytes", mem[off:off+64], off) || !checkWords(t, "Bytes", mem[off+hugeBytes-64:off+hugeBytes], off+hugeBytes-64) {
			return
		}
		still(t, p)
	}
	s := p.Stats()
	own := int64(bare.Load64(&p.w.served)) + s.Rescued // who reads for himself is none of ours
	t.Logf("%d misses, %d late, %d joined, %d reads, %d by threads that waited", s.Misses, s.Prefetch.Late, s.Joined, s.Reads, own)
	// (Six, by which the scan is found; one or two more on a busy machine under the race
	// detector. Without the markers it is every second.)
	if waited := s.Misses + s.Prefetch.Late - own; waited > pages/3 {
		t.Errorf("%d of %d pages were waited for", waited, pages)
	}
	if s.ReadBytes > (pages+own)*hugeBytes {
		t.Errorf("%d bytes were read of %d", s.ReadBytes, pages*hugeBytes)
	}
	if moved := in.Load() / hugeBytes; moved < pages-own {
		t.Errorf("%d of %d pages were moved", moved, pages)
	}
}

// Buffers of markers that nobody touches are bounded, hold frames of the budget, and are
// in nobody's way; when their pages are gone, whoever took them, so are they.
func TestMovedMarkersGiveWay(t *testing.T) {
	const pages, budget = 36, 32
	const limit = budget / movedShare
	for _, c := range []struct {
		what string
		do   func(p *Pager, r *Region) error
		left int
	}{
		{"nothing", func(*Pager, *Region) error { return nil }, limit},
		{"SetBudget", func(p *Pager, _ *Region) error { return p.SetBudget(8 * hugeBytes) }, 8},
		{"Acquire", func(p *Pager, r *Region) error {
			pin, err := r.Acquire(context.Background(), 0, p.Stats().Pinnable)
			if err != nil {
				return err
			}
			defer pin.Release()
			b := make([]byte, 8)
			for off := p.Stats().Pinnable; off < r.Len(); off += hugeBytes {
				if _, err := r.ReadAt(b, off); err != nil {
					return err
				}
				checkWords(t, "ReadAt", b, off)
			}
			return nil
		}, limit},
		{"theft", func(p *Pager, r *Region) error {
			for stealOne(p.w, true, 0) { // as the fault server does under pressure
			}
			p.w.wake()
			eventually(t, "the housekeeper sweeps", func() bool { return p.keptMarkers() == 0 })
			return nil
		}, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			before := buffersOut()
			// (Close is the Cleanup's.)
			p, r := movedRegion(t, pages*hugeBytes, budget, RegionOptions{Prefetch: &markAfter{mark: 2}})
			b := make([]byte, 8)
			for page := int64(0); page < pages; page += 9 {
				if _, err := r.ReadAt(b, page*hugeBytes); err != nil {
					t.Fatal(err)
				}
				still(t, p)
			}
			if n := p.keptMarkers(); n != limit {
				t.Errorf("%d markers are kept, want %d", n, limit)
			}
			if out := buffersOut() - before; out != int64(p.keptMarkers())*hugeBytes {
				t.Errorf("%d bytes of buffers are out, of %d markers", out, p.keptMarkers())
			}
			if s := p.Stats(); s.PeakResident > s.Budget {
				t.Errorf("%d bytes resident, the budget is %d", s.PeakResident, s.Budget)
			}
			if err := c.do(p, r); err != nil {
				t.Error(err)
			}
			if n := p.keptMarkers(); n > c.left {
				t.Errorf("%d markers are kept, want at most %d", n, c.left)
			}
			if !within(t, 30*time.Second, "Close", func() {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}) {
				return
			}
			if n, out := p.keptMarkers(), buffersOut()-before; n != 0 || out != 0 {
				t.Errorf("%d markers and %d bytes of buffers are left of a closed pager", n, out)
			}
		})
	}
}

// Whoever comes to pages that are markers at the moment, in whatever way and however
// many at once, reads what the file holds; also when the kernel says of a marker that it
// has not been moved.
func TestMovedMarkersUnderWork(t *testing.T) {
	const pages = 24
	for _, denies := range []bool{false, true} {
		before := buffersOut()
		p, r := movedRegion(t, pages*hugeBytes, 16, RegionOptions{Prefetch: &markAfter{mark: 1}})
		var calls, denied atomic.Int64
		moveVia = func(fd int, dst, src, n uintptr, mode uint64) (int64, uintptr) {
			if denies && dst-uintptr(r.base) < uintptr(r.Len()) && calls.Add(1)%3 == 0 {
				if done, e := uffd.RawMove(fd, dst, src, n, mode); done == 0 && e != 0 {
					return done, e
				}
				denied.Add(1)
				return 0, uintptr(unix.EEXIST)
			}
			return uffd.RawMove(fd, dst, src, n, mode)
		}
		t.Cleanup(func() { moveVia = uffd.RawMove })
		var wg sync.WaitGroup
		for g := range uint64(4) {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(9, g))
				b := make([]byte, 64)
				page := rnd.Int64N(pages)
				for range 60 {
					if page++; rnd.IntN(6) == 0 {
						page = rnd.Int64N(pages)
					}
					off := page%pages*hugeBytes + 8*rnd.Int64N((hugeBytes-64)/8)
					var err error
					switch what := rnd.IntN(3); {
					case what == 0:
						_, err = r.ReadAt(b, off)
					case what == 1 || r.Raw() != nil:
						var pin Pin
						if pin, err = r.Acquire(context.Background(), off, 64); err == nil {
							copy(b, pin.Bytes())
							pin.Release()
						}
					default:
						err = Guard(func() error { copy(b, r.Bytes()[off:off+64]); return nil })
					}
					if err != nil || !checkWords(t, "somebody", b, off) {
						t.Errorf("at %d: %v", off, err)
						return
					}
				}
			})
		}
		wg.Wait()
		if denies && denied.Load() == 0 {
			t.Error("nothing was denied")
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if out := buffersOut() - before; out != 0 {
			t.Errorf("%d bytes of buffers are left", out)
		}
	}
}

// A marker that the kernel says it has not moved is read again for who has touched
// it, which is news to the policy all the same.
func TestMovedMarkerAndDenied(t *testing.T) {
	policy := &markAfter{mark: 0}
	p, r := movedRegion(t, 12*hugeBytes, 32, RegionOptions{Prefetch: policy})
	b := make([]byte, 64)
	if _, err := r.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	still(t, p)
	if n := p.keptMarkers(); n != 1 {
		t.Fatalf("%d markers are kept", n)
	}
	moveVia = func(fd int, dst, src, n uintptr, mode uint64) (int64, uintptr) {
		uffd.RawMove(fd, dst, src, n, mode)
		return 0, uintptr(unix.EEXIST)
	}
	t.Cleanup(func() { moveVia = uffd.RawMove })
	reads := p.Stats().Reads
	if _, err := r.ReadAt(b, hugeBytes); err != nil {
		t.Fatal(err)
	}
	checkWords(t, "the marker", b, hugeBytes)
	still(t, p)
	if n := p.Stats().Reads; n != reads+1 {
		t.Errorf("%d reads more, want 1", n-reads)
	}
	policy.mu.Lock()
	defer policy.mu.Unlock()
	if len(policy.touched) != 1 || policy.touched[0] != 1 {
		t.Errorf("the policy was told of touches of %v", policy.touched)
	}
}
