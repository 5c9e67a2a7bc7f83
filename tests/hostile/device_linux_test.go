package hostile

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// faulty makes a region over a store that does as it is told.
func faulty(t *testing.T, budget, pages int64, o store.FaultyOptions) (*pager.Pager, *pager.Region, *store.Faulty) {
	t.Helper()
	p := fixture.Pager(t, pager.Options{Budget: budget * page})
	s := store.NewFaulty(fixture.Memory(t, pages*page, 1), o)
	t.Cleanup(func() { s.Clear(); s.Release() })
	return p, fixture.Map(t, p, s, pager.RegionOptions{Prefetch: prefetch.None()}), s
}

// isFault fails unless err is a FaultError about this page with this errno.
func isFault(t *testing.T, what string, err error, pg int64, errno unix.Errno) {
	t.Helper()
	var fault *pager.FaultError
	switch {
	case !errors.As(err, &fault):
		t.Errorf("%s: %v, want a FaultError", what, err)
	case !errors.Is(err, errno):
		t.Errorf("%s: %v, want %v", what, err, errno)
	case fault.Offset/page != pg:
		t.Errorf("%s: the fault names offset %d, which is not on page %d", what, fault.Offset, pg)
	}
}

// TestReadErrors: a page that cannot be read is an error to whoever wanted it,
// through every way in, each time anew, until it can be read.
func TestReadErrors(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EIO, unix.ENODATA, unix.ETIMEDOUT} {
		t.Run(fmt.Sprint(int(errno)), func(t *testing.T) {
			if child.Isolate(t, child.Options{}) {
				return
			}
			p, r, s := faulty(t, 32, 100, store.FaultyOptions{})
			s.Inject(store.Fault{Ops: store.OnRead, Off: 7 * page, Len: page, Err: errno})
			for range 3 {
				for way, err := range failures(r, 7*page, page) {
					if r.Raw() != nil && errors.Is(err, pager.ErrCannotPark) {
						continue // raw access to a store without a kernel form
					}
					isFault(t, way, err, 7, errno)
				}
			}
			// The neighbours are not concerned, except in a range with it.
			b := make([]byte, 10*page)
			if _, err := r.ReadAt(b[:7*page], 0); err != nil {
				t.Errorf("the pages before: %v", err)
			} else if err := fixture.Check(b[:7*page], 0, 1); err != nil {
				t.Error(err)
			}
			n, err := r.ReadAt(b, 3*page)
			isFault(t, "ReadAt across", err, 7, errno)
			if n != 4*page {
				t.Errorf("ReadAt across: %d bytes before the fault, want %d", n, 4*page)
			} else if err := fixture.Check(b[:n], 3*page, 1); err != nil {
				t.Error(err)
			}
			if p.Stats().ReadErrors == 0 {
				t.Error("Stats counts no read error")
			}
			s.Clear()
			if _, err := r.ReadAt(b[:page], 7*page); err != nil {
				t.Errorf("once it can be read: %v", err)
			} else if err := fixture.Check(b[:page], 7*page, 1); err != nil {
				t.Error(err)
			}
			if s := p.Stats(); s.Pinned != 0 {
				t.Errorf("%d bytes pinned", s.Pinned)
			}
		})
	}
}

// TestRandomReadErrors: one read in five fails, at random, among many readers:
// each gets his bytes or the error, and nobody waits for ever.
func TestRandomReadErrors(t *testing.T) {
	seed := fixture.Seed(t)
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	_, r, s := faulty(t, 16, 200, store.FaultyOptions{Seed: seed, Faults: []store.Fault{
		{Ops: store.OnRead, Prob: 0.15, Err: unix.EIO},
		{Ops: store.OnRead, Prob: 0.05, Short: 100}, // as if the file ended
	}})
	errs := make(chan error, 16)
	for i := range 16 {
		go func() {
			failed, good := 0, 0
			b := make([]byte, page)
			for k := range 200 {
				off := int64((i*53+k*7)%200) * page
				_, err := r.ReadAt(b, off)
				var fault *pager.FaultError
				switch {
				case err == nil:
					good++
					if err := fixture.Check(b, off, 1); err != nil {
						errs <- err
						return
					}
				case errors.As(err, &fault):
					failed++
				default:
					errs <- err
					return
				}
			}
			if failed == 0 || good == 0 {
				errs <- fmt.Errorf("%d reads failed, %d did not", failed, good)
				return
			}
			errs <- nil
		}()
	}
	for range 16 {
		if err := <-errs; err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	if c := s.Counts(); c.InFlight != 0 {
		t.Errorf("%d reads in flight", c.InFlight)
	}
}

// TestRawReadErrors: the same for faults, over a device that fails. The file
// ends before the region does, which a file does when it is cut under it.
func TestRawReadErrors(t *testing.T) {
	for _, park := range []string{"auto", "block"} {
		for _, procs := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/procs=%d", park, procs), func(t *testing.T) {
				if child.Isolate(t, child.Options{Procs: procs, Env: []string{"UFFDPAGER_PARK=" + park}}) {
					return
				}
				fixture.CollectGarbage(t)
				path := fixture.File(t, 100*page, 3)
				p := fixture.Pager(t, pager.Options{Budget: 32 * page})
				r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true}), pager.RegionOptions{Prefetch: prefetch.None()})
				fixture.NeedRaw(t, r)
				if m := p.Stats().ParkMode; park == "block" && m != coro.Block {
					t.Errorf("UFFDPAGER_PARK=block, and the mode is %v", m)
				}
				if err := unix.Truncate(path, 50*page); err != nil {
					t.Fatal(err)
				}
				errs := make(chan error, 8)
				for i := range int64(8) {
					go func() {
						b := make([]byte, page)
						for k := range int64(100) {
							pg := (i*13 + k*7) % 100
							err := pager.Guard(func() error {
								copy(b, r.Bytes()[pg*page:(pg+1)*page])
								return fixture.Check(b, pg*page, 3)
							})
							var fault *pager.FaultError
							if isFault := errors.As(err, &fault); isFault != (pg >= 50) || !isFault && err != nil {
								errs <- fmt.Errorf("page %d of 50: %w", pg, err)
								return
							}
						}
						errs <- nil
					}()
				}
				for range 8 {
					if err := <-errs; err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// TestWriteErrors: what cannot be written stays, is told to the next Sync, and
// is written when it can be.
func TestWriteErrors(t *testing.T) {
	fixture.NeedWrite(t)
	for _, errno := range []unix.Errno{unix.EIO, unix.ENOSPC} {
		for _, short := range []int{0, 512} {
			t.Run(fmt.Sprintf("%d/short=%d", int(errno), short), func(t *testing.T) {
				if child.Isolate(t, child.Options{}) {
					return
				}
				ctx := context.Background()
				p, r, s := faulty(t, 32, 100, store.FaultyOptions{})
				s.Inject(store.Fault{Ops: store.OnWrite, Off: 7 * page, Len: page, Err: errno, Short: short})
				b := make([]byte, page)
				fixture.Fill(b, 0, 55)
				for _, pg := range []int64{3, 7, 11} {
					if _, err := r.WriteAt(b, pg*page); err != nil {
						t.Fatal(err)
					}
				}
				err := r.Sync(ctx)
				isFault(t, "Sync", err, 7, errno)
				isFault(t, "SyncRange", r.SyncRange(ctx, 7*page, page), 7, errno)
				if err := r.SyncRange(ctx, 3*page, page); err != nil {
					t.Errorf("SyncRange of a page that can be written: %v", err)
				}
				// Pressed out by others, it must not be lost.
				for i := range int64(100) {
					if _, err := r.ReadAt(make([]byte, 1), i*page); err != nil {
						t.Fatalf("reading page %d beside a page that cannot be written: %v", i, err)
					}
				}
				got := make([]byte, page)
				if _, err := r.ReadAt(got, 7*page); err != nil {
					t.Fatal(err)
				}
				if err := fixture.Compare(got, b, 0); err != nil {
					t.Errorf("the page that cannot be written: %v", err)
				}
				if p.Stats().WriteErrors == 0 || p.Stats().Dirty == 0 {
					t.Errorf("%d write errors, %d bytes dirty", p.Stats().WriteErrors, p.Stats().Dirty)
				}
				s.Clear()
				// An error that nobody has been told of may still come once.
				if err := r.Sync(ctx); err != nil {
					if err := r.Sync(ctx); err != nil {
						t.Errorf("once it can be written: %v", err)
					}
				}
				if n := p.Stats().Dirty; n != 0 {
					t.Errorf("%d bytes dirty after Sync", n)
				}
			})
		}
	}
}

// TestFailedFlushIsSticky: after a flush has failed nobody knows what the
// device has, and no later one makes it good.
func TestFailedFlushIsSticky(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{}) {
		return
	}
	ctx := context.Background()
	p := fixture.Pager(t, pager.Options{Budget: 32 * page})
	s := store.NewFaulty(fixture.Memory(t, 200*page, 1), store.FaultyOptions{})
	r, err := p.Map(s, pager.RegionOptions{Prefetch: prefetch.None()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.WriteAt(make([]byte, page), 0); err != nil {
		t.Fatal(err)
	}
	s.Inject(store.Fault{Ops: store.OnFlush, Count: 1, Err: unix.EIO})
	oops(t, "Sync", r.Sync(ctx), unix.EIO)
	s.Clear()
	// All that was there leaves; nothing is dirty; flushes work again.
	for i := range int64(200) {
		if _, err := r.ReadAt(make([]byte, 1), i*page); err != nil {
			t.Fatal(err)
		}
	}
	oops(t, "Sync after a failed flush", r.Sync(ctx), unix.EIO)
	if _, err := r.WriteAt(make([]byte, page), 5*page); err != nil {
		t.Fatalf("writing goes on: %v", err)
	}
	oops(t, "Sync of something new", r.Sync(ctx), unix.EIO)
	oops(t, "SyncRange", r.SyncRange(ctx, 5*page, page), unix.EIO)
	op, err := r.SyncEventfd(5*page, page, -1)
	if err == nil {
		err = op.Wait(ctx)
	}
	oops(t, "SyncEventfd", err, unix.EIO)
	oops(t, "Close", r.Close(), unix.EIO)
}

// TestShortWritesAreFinished: a device may take less than it was given.
func TestShortWritesAreFinished(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{}) {
		return
	}
	_, r, s := faulty(t, 32, 100, store.FaultyOptions{Faults: []store.Fault{{Ops: store.OnWrite, Count: 20, Short: 1000}}})
	b := make([]byte, 60*page)
	fixture.Fill(b, 0, 9)
	if _, err := r.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(context.Background()); err != nil {
		// A short write may be an error once; it may not be forgotten.
		if err := r.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 60*page)
	if _, err := r.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if err := fixture.Compare(got, b, 0); err != nil {
		t.Error(err)
	}
	if s.Counts().Shortened == 0 {
		t.Error("no write was short")
	}
}
