//go:build linux

package pager

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// spilled is how many places of a Private region are taken, by the map and by
// the counter.
func spilled(r *Region) (mapped, counted int64) {
	for page := range r.d.pages {
		if r.d.place(page) != 0 {
			mapped++
		}
	}
	return mapped, load64(&r.d.sideUsed)
}

// fileHas is how many pages of the spill file are not zeros.
func fileHas(t *testing.T, r *Region) (n int64) {
	t.Helper()
	buf := bufs.get(FrameSize)
	defer bufs.put(buf)
	page := buf.mem[:FrameSize]
	zero := make([]byte, FrameSize)
	for i := range r.d.pages {
		if _, err := unix.Pread(int(r.d.sideFD), page, int64(i)*FrameSize); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(page, zero) {
			n++
		}
	}
	return n
}

// mapPrivate maps a Private region of pages of zeros.
func mapPrivate(t *testing.T, pages int64, o Options, ro RegionOptions) *Region {
	t.Helper()
	needProtection(t)
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	ro.Private, ro.Prefetch, ro.SpillDir = true, prefetch.None(), t.TempDir()
	r, err := p.Map(store.NewMemory(pages*FrameSize), ro)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The spill file never has more than SpillLimit, whoever writes to it and however
// many pages at a time; who wants to write more is told, and loses nothing.
func TestSpillLimitIsExact(t *testing.T) {
	const pages, limit = 600, 37
	for _, raw := range []bool{false, true} {
		r := mapPrivate(t, pages, Options{Budget: 128 * FrameSize, StallLimit: 50 * time.Millisecond},
			RegionOptions{SpillLimit: limit*FrameSize + 100, Writeback: Writeback{Age: time.Nanosecond}})
		if raw && r.Raw() != nil {
			t.Skip(r.Raw())
		}
		enough := 8
		if raw && r.p.Stats().ParkMode != coro.InPlace {
			enough = 0 // each store that is refused keeps its thread, and a P, for two seconds
		}
		var mu sync.Mutex
		good := map[int64]bool{}
		refused := 0
		var wg sync.WaitGroup
		for w := range int64(4) {
			wg.Go(func() {
				b := bytes.Repeat([]byte{byte(w) + 1}, FrameSize)
				for pg := w * pages / 4; pg < (w+1)*pages/4; pg++ {
					var err error
					if raw {
						err = Guard(func() error { copy(r.Bytes()[pg*FrameSize:], b); return nil })
					} else {
						_, err = r.WriteAt(b, pg*FrameSize)
					}
					mu.Lock()
					if err == nil {
						good[pg] = true
					} else if refused++; !errors.Is(err, ErrBudget) {
						t.Errorf("page %d: %v", pg, err)
					}
					stop := refused > enough
					mu.Unlock()
					if stop {
						return
					}
				}
			})
		}
		wg.Wait()
		if refused == 0 {
			t.Error("nobody was refused: the limit was never reached")
		}
		eventually(t, "the writes have ended", func() bool { return r.write.inflight.Load() == 0 })
		mapped, counted := spilled(r)
		if mapped != limit || counted != limit {
			t.Errorf("raw %v: %d pages spilled, %d counted; want %d", raw, mapped, counted, limit)
		}
		if n := fileHas(t, r); n > limit {
			t.Errorf("raw %v: the file has %d pages", raw, n)
		}
		b := make([]byte, FrameSize)
		for pg := range good {
			if _, err := r.ReadAt(b, pg*FrameSize); err != nil || b[0] != byte(pg/(pages/4))+1 || b[FrameSize-1] != b[0] {
				t.Fatalf("raw %v: page %d: %d, %v", raw, pg, b[0], err)
			}
		}
		// What is cut off has no place any more.
		if err := r.Resize(context.Background(), 0); err != nil {
			t.Fatal(err)
		}
		if mapped, counted := spilled(r); mapped != 0 || counted != 0 {
			t.Errorf("raw %v: after Resize to 0: %d pages spilled, %d counted", raw, mapped, counted)
		}
	}
}

// A write to the spill file that fails gives its place back.
func TestSpillWritesThatFail(t *testing.T) {
	const pages, limit = 300, 60
	r := mapPrivate(t, pages, Options{Budget: 32 * FrameSize}, RegionOptions{SpillLimit: limit * FrameSize, Writeback: Writeback{Age: time.Nanosecond}})
	bad := store.NewFaulty(r.write.side, store.FaultyOptions{Seed: 3})
	r.write.side = bad
	atomic.AndUint32(&r.d.flags, ^uint32(descServeDirty)) // the fault server would go past it
	bad.Inject(store.Fault{Ops: store.OnWrite, Prob: 0.5, Err: unix.EIO})
	for round := range byte(3) {
		b := bytes.Repeat([]byte{round + 1}, FrameSize)
		for pg := range int64(limit) {
			if _, err := r.WriteAt(b, pg*3*FrameSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "the writes have ended", func() bool { return r.write.inflight.Load() == 0 })
	if bad.Counts().Failed == 0 {
		t.Error("no write has failed")
	}
	if mapped, counted := spilled(r); mapped != counted || mapped == 0 {
		t.Errorf("%d pages spilled, %d counted", mapped, counted)
	}
	b := make([]byte, FrameSize)
	for pg := range int64(limit) {
		if _, err := r.ReadAt(b, pg*3*FrameSize); err != nil || b[0] != 3 {
			t.Errorf("page %d: %d, %v", pg*3, b[0], err)
		}
	}
}
