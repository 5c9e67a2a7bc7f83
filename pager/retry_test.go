//go:build linux

package pager

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// An error that passes is repeated as often as was said, and nobody is told;
// one that does not pass, or does not pass in time, is told at once.
func TestRetries(t *testing.T) {
	fast := func(times int, errnos ...syscall.Errno) Retry {
		return Retry{Times: times, Pause: time.Microsecond, MaxPause: time.Microsecond, Errnos: errnos}
	}
	for _, c := range []struct {
		name  string
		retry Retry
		errno unix.Errno
		fails int64 // in a row
		want  bool
		tries int64 // of which repetitions
	}{
		{"none needed", Retry{}, unix.ETIMEDOUT, 0, true, 0},
		{"default", Retry{}, unix.ETIMEDOUT, 3, true, 3},
		{"as often as said", fast(7), unix.EAGAIN, 7, true, 7},
		{"once more", fast(7), unix.EAGAIN, 8, false, 7},
		{"never", fast(-1), unix.EAGAIN, 1, false, 0},
		{"does not pass", fast(7), unix.EIO, 1, false, 0},
		{"said to pass", fast(7, unix.EIO, unix.ENXIO), unix.EIO, 5, true, 5},
		{"not among those said to pass", fast(7, unix.EIO), unix.EAGAIN, 1, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, ops := range []store.Ops{store.OnRead, store.OnWrite} {
				p, r, s := mapMemory(t, 100, Options{Budget: 64 * FrameSize}, store.FaultyOptions{}, RegionOptions{Retry: c.retry, Writeback: Writeback{NoSteal: true}})
				if c.fails > 0 {
					s.Inject(store.Fault{Ops: ops, Count: c.fails, Err: c.errno})
				}
				var err error
				if ops == store.OnRead {
					_, err = r.ReadAt(make([]byte, 8), 5*FrameSize)
				} else {
					touchPages(t, r, 5)
					err = r.Sync(context.Background())
				}
				if (err == nil) != c.want || err != nil && !errors.Is(err, c.errno) {
					t.Errorf("%v: %v", ops, err)
				}
				st := p.Stats()
				if st.Retries != c.tries || (st.ReadErrors+st.WriteErrors == 0) != c.want {
					t.Errorf("%v: %d retries, %d read and %d write errors", ops, st.Retries, st.ReadErrors, st.WriteErrors)
				}
			}
		})
	}
}

// A store that goes away and comes back: what is in memory stays and can be
// used, errors name the reason, and afterwards everything gets there – unless a
// flush was among what failed.
func TestStoreThatComesBack(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENXIO, unix.EIO, unix.ENODEV} {
		for _, flushToo := range []bool{false, true} {
			p, r, s := mapMemory(t, 300, Options{Budget: 64 * FrameSize}, store.FaultyOptions{}, RegionOptions{Writeback: Writeback{Age: time.Millisecond}})
			ctx := context.Background()
			touchPages(t, r, 0, 1, 2, 3)
			if err := r.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			s.Inject(store.Fault{Ops: store.OnRead | store.OnWrite | store.OnFlush, Err: errno})
			touchPages(t, r, 2, 3, 4, 5) // 4 and 5 are born without a read
			if _, err := r.ReadAt(make([]byte, 1), 100*FrameSize); !errors.Is(err, errno) {
				t.Errorf("%v: a read of what is not there: %v", errno, err)
			}
			for range 3 {
				err := r.Sync(ctx)
				if !errors.Is(err, errno) {
					t.Errorf("%v: Sync: %v", errno, err)
				}
			}
			if flushToo {
				// Nothing of this page is dirty: the flush is all there is to fail.
				if err := r.SyncRange(ctx, 100*FrameSize, 1); !errors.Is(err, errno) {
					t.Errorf("%v: flush: %v", errno, err)
				}
			}
			b := make([]byte, FrameSize)
			for pg := range int64(6) {
				if _, err := r.ReadAt(b, pg*FrameSize); err != nil || b[0] != byte(pg+1) {
					t.Errorf("%v: page %d in memory: %d, %v", errno, pg, b[0], err)
				}
			}
			s.Clear()
			err := r.Sync(ctx)
			if err != nil && !flushToo {
				err = r.Sync(ctx) // a failure in the background is told of once
			}
			if flushToo && !errors.Is(err, errno) {
				t.Errorf("%v: Sync after a flush has failed: %v", errno, err)
			}
			if !flushToo && err != nil {
				t.Errorf("%v: Sync once the store is back: %v", errno, err)
			}
			if d := p.Stats().Dirty; d != 0 && !flushToo {
				t.Errorf("%v: %d bytes dirty", errno, d)
			}
			if !flushToo {
				if err := r.Close(); err != nil {
					t.Errorf("%v: Close: %v", errno, err)
				}
			}
		}
	}
}

// shortFile maps a file of 16 pages for reading and cuts it to 4.
func shortFile(t *testing.T, mode coro.Mode) (r *Region, restore func()) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "short")
	content := bytes.Repeat([]byte{42}, 16*FrameSize)
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	_, r = mapFile(t, name, Options{Budget: 32 * FrameSize, Park: mode}, RegionOptions{ReadOnly: true, OnReadError: Wait, Prefetch: prefetch.None()})
	if err := unix.Truncate(name, 4*FrameSize); err != nil {
		t.Fatal(err)
	}
	return r, func() {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Error(err)
		}
	}
}

// OnReadError Wait, whichever way raw access waits: it goes on when the page
// can be read, and Close ends it otherwise.
func TestReadErrorsAreWaitedFor(t *testing.T) {
	for _, mode := range []coro.Mode{coro.Auto, coro.Block, coro.Restart} {
		for _, how := range []string{"back", "closed"} {
			t.Run(mode.String()+"/"+how, func(t *testing.T) {
				noCollections(t)
				r, restore := shortFile(t, mode)
				if r.Raw() != nil && (mode != coro.Restart || sp.fd < 0) {
					t.Skip(r.Raw())
				}
				got := make(chan error, 1)
				var b byte
				go func() {
					got <- r.View(context.Background(), func(mem []byte) error { b = mem[9*FrameSize]; return nil })
				}()
				select {
				case err := <-got:
					t.Fatalf("it did not wait: %v", err)
				case <-time.After(3 * readRetry):
				}
				if how == "closed" {
					if err := r.Close(); err != nil {
						t.Error(err)
					}
					if err := <-got; err == nil {
						t.Error("no error")
					}
					return
				}
				restore()
				if err := <-got; err != nil || b != 42 {
					t.Errorf("%d, %v", b, err)
				}
			})
		}
	}
}
