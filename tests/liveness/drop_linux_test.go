package liveness

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// fetches are the ways of getting at a page, for those who look at it
// themselves.
var fetches = []struct {
	name string
	raw  bool
	into func(r *pager.Region, b []byte, off int64) error
}{
	{"Acquire", false, func(r *pager.Region, b []byte, off int64) error {
		pin, err := r.Acquire(context.Background(), off, int64(len(b)))
		if err == nil {
			copy(b, pin.Bytes())
			pin.Release()
		}
		return err
	}},
	{"LockEventfd", false, func(r *pager.Region, b []byte, off int64) error {
		l, err := r.LockEventfd(off, int64(len(b)), -1)
		if err != nil {
			return err
		}
		defer l.Unlock()
		if err := l.Wait(context.Background()); err != nil {
			return err
		}
		_, err = r.ReadAt(b, off)
		return err
	}},
	{"ReadAt", false, func(r *pager.Region, b []byte, off int64) error {
		_, err := r.ReadAt(b, off)
		return err
	}},
	{"Bytes", true, func(r *pager.Region, b []byte, off int64) error {
		mem := r.Bytes()
		if int64(len(mem)) < off+int64(len(b)) {
			return errShortened
		}
		return pager.Guard(func() error { copy(b, mem[off:]); return nil })
	}},
	{"View", true, func(r *pager.Region, b []byte, off int64) error {
		return r.View(context.Background(), func(mem []byte) error {
			if int64(len(mem)) < off+int64(len(b)) {
				return errShortened
			}
			copy(b, mem[off:])
			return nil
		})
	}},
}

// words: each word of b is that of page pg, or zero.
func words(b []byte, pg int64) bool {
	want := make([]byte, len(b))
	fixture.Fill(want, pg*page, 1)
	for i := 0; i < len(b); i += 8 {
		if got := string(b[i : i+8]); got != string(want[i:i+8]) && got != string(make([]byte, 8)) {
			return false
		}
	}
	return true
}

// errShortened: the region is shorter by now, which its user has seen.
var errShortened = errors.New("shorter than that")

// TestDropUnderWaiters discards a range, or makes the region shorter, while
// goroutines wait for pages of it on a device that has stopped. Each gets what
// was there, or zeros after a Discard, or is told that the region does not reach
// there any more; and none waits for ever.
func TestDropUnderWaiters(t *testing.T) {
	fixture.NeedWrite(t)
	const pages, first, end = 64, 16, 48
	drops := []struct {
		name   string
		drop   func(r *pager.Region) error
		zeros  func(pg int64) bool // may be, and are afterwards
		beyond func(pg int64) bool // may be an error, and is one afterwards
	}{
		{"Discard", func(r *pager.Region) error {
			return r.Discard(context.Background(), first*page, (end-first)*page)
		}, func(pg int64) bool { return pg >= first && pg < end }, func(int64) bool { return false }},
		{"Resize", func(r *pager.Region) error { return r.Resize(context.Background(), end*page) },
			func(int64) bool { return false }, func(pg int64) bool { return pg >= end }},
	}
	for _, d := range drops {
		for _, way := range fetches {
			t.Run(d.name+"/"+way.name, func(t *testing.T) {
				if child.Isolate(t, child.Options{Procs: 2, Deadline: 30 * time.Second}) {
					return
				}
				p := fixture.Pager(t, pager.Options{Budget: 4 * pages * page})
				s := store.NewFaulty(fixture.Memory(t, pages*page, 1), store.FaultyOptions{Kernel: way.raw})
				t.Cleanup(s.Release)
				r := fixture.Map(t, p, s, quiet)
				if way.raw {
					fixture.NeedRaw(t, r)
					if m := p.Stats().ParkMode; m == coro.Block || m == coro.Restart {
						t.Skipf("raw access does not wait for this store in this mode (%v)", m)
					}
				}
				judge := func(when string, pg int64, b []byte, err error, over bool) {
					zeros := string(b) == string(make([]byte, page))
					data := fixture.Check(b, pg*page, 1) == nil
					switch {
					case d.beyond(pg) && err != nil && !errors.Is(err, pager.ErrClosed):
					case d.beyond(pg) && over:
						t.Errorf("%s: page %d is past the end, and can be read (%v)", when, pg, err)
					case err != nil:
						t.Errorf("%s: page %d: %v", when, pg, err)
					case zeros && d.zeros(pg):
					case d.zeros(pg) && way.raw && !over && words(b, pg): // loads, one after the other, while it is dropped
					case d.zeros(pg) && over || !data:
						t.Errorf("%s: page %d: % x…", when, pg, b[:16])
					}
				}
				// Half of the reads have not begun, half have what was there.
				s.HoldDone(store.OnRead)
				var wg sync.WaitGroup
				for half := range int64(2) {
					for pg := half; pg < pages; pg += 2 {
						wg.Go(func() {
							b := make([]byte, page)
							err := way.into(r, b, pg*page)
							judge("a waiter", pg, b, err, false)
						})
					}
					fixture.Eventually(t, "all wait", func() bool { return p.Stats().Misses == (half+1)*pages/2 })
					s.Hold(store.OnRead)
				}
				dropped := make(chan error, 1)
				go func() { dropped <- d.drop(r) }()
				select {
				case err := <-dropped:
					dropped <- err
				case <-time.After(20 * time.Millisecond):
				}
				s.Release()
				if err := <-dropped; err != nil {
					t.Error(err)
				}
				wg.Wait()
				for pg := range int64(pages) {
					b := make([]byte, page)
					err := way.into(r, b, pg*page)
					judge("afterwards", pg, b, err, true)
				}
			})
		}
	}
}

// cutFile is a writable region over a file that has lost its end, in which raw
// access waits until it can be read.
func cutFile(t *testing.T, pages, left int64) (*pager.Pager, *pager.Region, string) {
	t.Helper()
	path := fixture.File(t, pages*page, 1)
	p := fixture.Pager(t, pager.Options{Budget: 4 * pages * page})
	r, err := p.Map(fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{OnReadError: pager.Wait, Prefetch: prefetch.None()})
	if err != nil {
		t.Fatal(err)
	}
	fixture.NeedRaw(t, r)
	if err := os.Truncate(path, left*page); err != nil {
		t.Fatal(err)
	}
	return p, r, path
}

// TestDropUnderBlockedStores is the same for raw access that cannot be read at
// all, parked in place or with its thread and P held: a Resize to less and Close
// end the wait, a Resize to more gives it zeros, a Discard returns although it
// cannot help.
func TestDropUnderBlockedStores(t *testing.T) {
	fixture.NeedWrite(t)
	const pages, left, at = 16, 4, 9
	for _, park := range []string{"auto", "block"} {
		for _, what := range []string{"shrink", "grow", "discard", "close"} {
			for _, access := range []string{"load", "store"} {
				t.Run(park+"/"+what+"/"+access, func(t *testing.T) {
					if child.Isolate(t, child.Options{Procs: 3, Deadline: 30 * time.Second, Env: []string{"UFFDPAGER_PARK=" + park}}) {
						return
					}
					_, r, path := cutFile(t, pages, left)
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					mem := r.Bytes()
					var b byte
					done := make(chan error, 1)
					go func() {
						done <- pager.Guard(func() error {
							if access == "store" {
								mem[at*page] = 7
							} else {
								b = mem[at*page]
							}
							return nil
						})
					}()
					select {
					case err := <-done:
						t.Fatalf("it did not wait: %v", err)
					case <-time.After(100 * time.Millisecond):
					}
					var fault *pager.FaultError
					switch what {
					case "shrink":
						if err := r.Resize(ctx, (at-1)*page); err != nil {
							t.Fatalf("Resize: %v", err)
						}
						if err := <-done; !errors.As(err, &fault) || errors.Is(err, pager.ErrClosed) {
							t.Errorf("a touch of what is not there any more: %v", err)
						}
					case "grow":
						if err := os.Truncate(path, pages*page); err != nil {
							t.Fatal(err)
						}
						if err := <-done; err != nil || b != 0 {
							t.Errorf("a touch of what is there again: %d, %v", b, err)
						}
					case "discard":
						if err := r.Discard(ctx, (at-1)*page, 3*page); err != nil {
							t.Errorf("Discard: %v", err)
						}
						select {
						case err := <-done:
							done <- err
						case <-time.After(20 * time.Millisecond):
						}
					}
					if err := r.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
					if what == "close" || what == "discard" {
						// A read that fails while the region closes is not waited for
						// any more: its error is the access's.
						if err := <-done; err != nil && !errors.Is(err, pager.ErrClosed) && !errors.Is(err, io.ErrUnexpectedEOF) {
							t.Errorf("Close ends the wait with %v", err)
						} else if err == nil && what == "close" {
							t.Error("Close ends the wait without an error")
						}
					}
				})
			}
		}
	}
}

// TestDropsAmongReaders: ranges are discarded, written anew and cut off while
// others read and store by all ways, parked and blocked. A word is what was
// written to it, or zero; a touch that fails lies past the end; Close ends all.
func TestDropsAmongReaders(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	for _, park := range []string{"auto", "block"} {
		for _, procs := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s/procs=%d", park, procs), func(t *testing.T) {
				if child.Isolate(t, child.Options{Procs: procs, Deadline: time.Minute, Env: []string{"UFFDPAGER_PARK=" + park}}) {
					return
				}
				const pages, shortest = 96, 40
				path := fixture.File(t, pages*page, 0)
				if err := os.WriteFile(path, make([]byte, pages*page), 0o600); err != nil {
					t.Fatal(err)
				}
				p := fixture.Pager(t, pager.Options{Budget: 24 * page})
				r, err := p.Map(fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{Prefetch: prefetch.None()})
				if err != nil {
					t.Fatal(err)
				}
				fixture.NeedRaw(t, r)
				var version atomic.Uint64
				closing := make(chan struct{})
				var wg sync.WaitGroup
				for w := range len(fetches) + 2 {
					way := fetches[w%len(fetches)]
					wg.Go(func() {
						rng := rand.New(rand.NewPCG(seed, uint64(w)))
						b := make([]byte, page)
						for {
							// A thread that waits has its P: the one who drops is to
							// have a turn as well.
							time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
							pg := rng.Int64N(pages)
							err := way.into(r, b, pg*page)
							switch {
							case errors.Is(err, pager.ErrClosed):
								select {
								case <-closing:
								default:
									t.Error("closed before Close")
								}
								return
							case err != nil && pg < shortest:
								t.Errorf("%s of page %d: %v", way.name, pg, err)
								return
							case err != nil:
								continue
							}
							for i := 0; i < page; i += 8 {
								if v := binary.LittleEndian.Uint64(b[i:]); v != 0 && (v>>32 != uint64(pg) || v&(1<<32-1) > version.Load()) {
									t.Errorf("%s of page %d: %#x at %d was never written there", way.name, pg, v, i)
									return
								}
							}
						}
					})
				}
				ctx := context.Background()
				rng := rand.New(rand.NewPCG(seed, 99))
				for i := range 100 {
					size := r.Len() / page
					pg := rng.Int64N(size)
					n := 1 + rng.Int64N(min(16, size-pg))
					var err error
					switch what := rng.IntN(5); what {
					case 0, 1:
						err = r.Discard(ctx, pg*page, n*page)
					case 2:
						err = r.Resize(ctx, (shortest+rng.Int64N(pages-shortest+1))*page)
					default:
						v := version.Add(1)
						b := make([]byte, n*page)
						for k := 0; k < len(b); k += 8 {
							binary.LittleEndian.PutUint64(b[k:], uint64(pg+int64(k/page))<<32|v)
						}
						if what == 3 {
							_, err = r.WriteAt(b, pg*page)
						} else {
							err = pager.Guard(func() error { copy(r.Bytes()[pg*page:], b); return nil })
						}
					}
					if err != nil {
						t.Errorf("step %d: %v", i, err)
					}
				}
				close(closing)
				if err := r.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				wg.Wait()
			})
		}
	}
}
