package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestRawStoresAtTheLimit: as much is dirty as may be, and nothing may be
// written, because of NoSteal or because BeforeWrite says so. WriteAt is told
// ErrBudget. A raw store waits until something is written if its goroutine can
// be parked; on a thread that cannot wait for Go code it is a fault sooner or
// later, with ErrBudget, or with ErrCannotPark at once if the store has no form without Go.
// Nothing reaches the store by any of it.
func TestRawStoresAtTheLimit(t *testing.T) {
	fixture.NeedWrite(t)
	for _, why := range []string{"NoSteal", "BeforeWrite"} {
		for _, kernel := range []bool{true, false} {
			for _, park := range []string{"auto", "block"} {
				t.Run(fmt.Sprintf("%s/kernel=%v/%s", why, kernel, park), func(t *testing.T) {
					if child.Isolate(t, child.Options{Procs: 3, Deadline: 30 * time.Second, Env: []string{"UFFDPAGER_PARK=" + park}}) {
						return
					}
					const pages = 100
					var may atomic.Bool
					w := pager.Writeback{Age: time.Nanosecond}
					if why == "NoSteal" {
						w.NoSteal = true
					} else {
						w.BeforeWrite = func(pager.PageRun) bool { return may.Load() }
					}
					p := fixture.Pager(t, pager.Options{Budget: 24 * page, StallLimit: 50 * time.Millisecond})
					below := store.NewMemory(pages * page)
					k, _ := below.Kernel()
					s := store.NewFaulty(below, store.FaultyOptions{Kernel: kernel})
					r, err := p.Map(s, pager.RegionOptions{Prefetch: prefetch.None(), Writeback: w})
					if err != nil {
						t.Fatal(err)
					}
					if kernel {
						fixture.NeedRaw(t, r)
					} else if !errors.Is(r.Raw(), pager.ErrCannotPark) {
						t.Errorf("Raw: %v, want ErrCannotPark", r.Raw())
					}
					// Clean pages that are there, for the raw stores; then WriteAt
					// until there is no room.
					for pg := range int64(8) {
						if _, err := r.ReadAt(make([]byte, 1), pg*page); err != nil {
							t.Fatal(err)
						}
					}
					dirty := int64(0)
					for pg := int64(20); err == nil; pg++ {
						if _, err = r.WriteAt(bytes.Repeat([]byte{9}, page), pg*page); err == nil {
							dirty++
						}
					}
					if !errors.Is(err, pager.ErrBudget) || dirty != p.Stats().Pinnable/page {
						t.Fatalf("WriteAt of page %d: %v, want ErrBudget after %d", dirty, err, p.Stats().Pinnable/page)
					}
					store := func(pg int64) error { return pager.Guard(func() error { r.Bytes()[pg*page] = 7; return nil }) }
					done := make(chan error, 1)
					go func() { done <- store(3) }()
					stored := true
					switch {
					case park == "auto":
						select {
						case err := <-done:
							t.Fatalf("a store by a goroutine that can be parked did not wait: %v", err)
						case <-time.After(200 * time.Millisecond):
						}
					case kernel:
						// Some are let through, for they hold a P; not so many that
						// nothing could be read any more.
						err, n := <-done, int64(0)
						for pg := int64(4); err == nil && pg < 20; pg++ {
							n++
							err = store(pg)
						}
						if !errors.Is(err, pager.ErrBudget) || n >= 24-dirty {
							t.Errorf("stores by a thread that waits: %v after %d, want ErrBudget", err, n)
						}
						stored = n > 0
						done <- nil
					default:
						stored = false
						if err := <-done; !errors.Is(err, pager.ErrCannotPark) {
							t.Errorf("a store by a thread that must not wait: %v, want ErrCannotPark", err)
						}
					}
					if c := s.Counts(); c.Writes != 0 || !bytes.Equal(k.Mem, make([]byte, pages*page)) {
						t.Errorf("%d writes, and the store has changed: %v", c.Writes, !bytes.Equal(k.Mem, make([]byte, pages*page)))
					}
					if err := pager.Guard(func() error {
						if v := r.Bytes()[22*page]; v != 9 {
							t.Errorf("a page that is dirty: %d", v)
						}
						for pg := int64(50); kernel && pg < pages; pg++ {
							if v := r.Bytes()[pg*page]; v != 0 {
								t.Errorf("a page that was never written: %d", v)
							}
						}
						return nil
					}); err != nil {
						t.Errorf("reading: %v", err)
					}
					may.Store(true)
					if err := r.Sync(context.Background()); err != nil {
						t.Error(err)
					}
					if stored {
						if err := <-done; err != nil {
							t.Errorf("the store that waited: %v", err)
						}
					}
					if _, err := r.WriteAt([]byte{5}, 90*page); err != nil {
						t.Errorf("after Sync: %v", err)
					}
					if err := r.Sync(context.Background()); err != nil {
						t.Error(err)
					}
					if k.Mem[20*page] != 9 || k.Mem[90*page] != 5 || stored && k.Mem[3*page] != 7 {
						t.Errorf("the store has %d, %d and %d", k.Mem[20*page], k.Mem[90*page], k.Mem[3*page])
					}
					if err := r.Close(); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// brokenFile is a region over a file whose descriptor can be made one that
// cannot be read, so that reads by whomever fail with EBADF, and whole again.
func brokenFile(t *testing.T, retry pager.Retry) (p *pager.Pager, r *pager.Region, breakIt, mendIt func()) {
	t.Helper()
	const pages = 32
	path := fixture.File(t, pages*page, 1)
	s := fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true})
	k, ok := s.Kernel()
	if !ok || k.FD < 0 {
		t.Fatal("a file without a descriptor")
	}
	good, err := unix.Dup(k.FD)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(good), unix.Close(bad) })
	become := func(fd int) {
		if err := unix.Dup3(fd, k.FD, unix.O_CLOEXEC); err != nil {
			t.Error(err)
		}
	}
	p = fixture.Pager(t, pager.Options{Budget: 64 * page})
	r = fixture.Map(t, p, s, pager.RegionOptions{Prefetch: prefetch.None(), Retry: retry})
	fixture.NeedRaw(t, r)
	return p, r, func() { become(bad) }, func() { become(good) }
}

// TestRawReadsAreRepeated: a page that cannot be read because of an error that
// passes is read again, also by a thread that waits without a P; as often as was
// said, and not for errors that do not pass.
func TestRawReadsAreRepeated(t *testing.T) {
	often := pager.Retry{Times: 100_000, Pause: time.Millisecond, MaxPause: 2 * time.Millisecond, Errnos: []unix.Errno{unix.EBADF}}
	few := often
	few.Times = 3
	others := often
	others.Errnos = []unix.Errno{unix.EIO}
	for _, park := range []string{"auto", "block"} {
		for _, c := range []struct {
			name  string
			retry pager.Retry
			waits bool
		}{{"passes", often, true}, {"three times", few, false}, {"another errno", others, false}, {"default", pager.Retry{}, false}} {
			t.Run(park+"/"+c.name, func(t *testing.T) {
				if child.Isolate(t, child.Options{Procs: 3, Deadline: 30 * time.Second, Env: []string{"UFFDPAGER_PARK=" + park}}) {
					return
				}
				_, r, breakIt, mendIt := brokenFile(t, c.retry)
				b := make([]byte, page)
				load := func(pg int64) error {
					return pager.Guard(func() error { copy(b, r.Bytes()[pg*page:(pg+1)*page]); return fixture.Check(b, pg*page, 1) })
				}
				breakIt()
				done := make(chan error, 1)
				go func() { done <- load(7) }()
				if c.waits {
					select {
					case err := <-done:
						t.Fatalf("it was not tried again: %v", err)
					case <-time.After(100 * time.Millisecond):
					}
					mendIt()
					if err := <-done; err != nil {
						t.Errorf("once the error has passed: %v", err)
					}
				} else {
					isFault(t, "load", <-done, 7, unix.EBADF)
					isFault(t, "another load", load(7), 7, unix.EBADF)
					mendIt()
				}
				for _, pg := range []int64{7, 8} {
					if err := load(pg); err != nil {
						t.Errorf("page %d afterwards: %v", pg, err)
					}
				}
			})
		}
	}
}
