//go:build linux

package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// A user's page checksums: the last four bytes of a page are the CRC of the
// rest; a page of zeros is one that was discarded or never written.
var errUser = errors.New("the user's own checksum is wrong")

type pageSums struct {
	whole    int64 // pages that are whole; the last one may not be
	verified atomic.Int64
	sealed   atomic.Int64
	sealErr  atomic.Pointer[error]
}

func (s *pageSums) verify(page int64, data []byte) error {
	s.verified.Add(1)
	n := len(data) - 4
	if page >= s.whole || bytes.Count(data, []byte{0}) == len(data) {
		return nil
	}
	if crc32.ChecksumIEEE(data[:n]) != binary.LittleEndian.Uint32(data[n:]) {
		return errUser
	}
	return nil
}

func (s *pageSums) seal(page int64, data []byte) error {
	s.sealed.Add(1)
	if e := s.sealErr.Load(); e != nil {
		return *e
	}
	if n := len(data) - 4; page < s.whole {
		binary.LittleEndian.PutUint32(data[n:], crc32.ChecksumIEEE(data[:n]))
	}
	return nil
}

// Verify sees every page that is read, by whatever way in, and Seal every page
// that is written; hits see neither.
func TestVerifyAndSeal(t *testing.T) {
	for _, ps := range []int64{FrameSize, 64 << 10} {
		for _, mode := range []coro.Mode{coro.Auto, coro.Block} {
			t.Run(fmt.Sprintf("%d/%v", ps, mode), func(t *testing.T) {
				const pages = 40
				size := pages*ps + 100
				sums := &pageSums{whole: pages}
				content := make([]byte, size)
				for pg := range int64(pages) {
					b := content[pg*ps : (pg+1)*ps]
					for i := range b {
						b[i] = byte(pg) + 1
					}
					_ = sums.seal(pg, b)
				}
				sums.sealed.Store(0)
				const bad = 7
				content[bad*ps+5] ^= 1
				name := filepath.Join(t.TempDir(), "data")
				if err := os.WriteFile(name, content, 0o600); err != nil {
					t.Fatal(err)
				}
				p, r := mapFile(t, name, Options{Budget: 64 * ps, Park: mode}, RegionOptions{
					PageSize: int(ps), Verify: sums.verify, Seal: sums.seal, Prefetch: prefetch.None(), Writeback: Writeback{NoSteal: true}})
				ctx := context.Background()
				b := make([]byte, ps)
				is := func(way string, err error) {
					t.Helper()
					var f *FaultError
					if !errors.Is(err, errUser) || !errors.As(err, &f) || f.Offset/ps != bad {
						t.Errorf("%s: %v, want the user's error as a fault of page %d", way, err, bad)
					}
				}
				_, err := r.ReadAt(b, bad*ps)
				is("ReadAt", err)
				n, err := r.ReadAt(make([]byte, 3*ps), (bad-2)*ps)
				is("ReadAt across", err)
				if n != int(2*ps) {
					t.Errorf("ReadAt across: %d bytes before the page that is wrong", n)
				}
				_, err = r.Acquire(ctx, (bad-1)*ps, 3*ps)
				is("Acquire", err)
				_, err = r.WriteAt([]byte{1}, bad*ps+1)
				is("WriteAt of a part", err)
				l, err := r.LockEventfd(bad*ps, 1, -1)
				if err != nil {
					t.Fatal(err)
				}
				is("LockEventfd", l.Wait(ctx))
				seen := sums.verified.Load()
				r.Prefetch([]int64{bad * ps, (bad + 1) * ps}, ps)
				if _, err := r.ReadAt(b, (bad+1)*ps); err != nil || b[0] != bad+2 {
					t.Errorf("the neighbour: %d, %v", b[0], err)
				}
				eventually(t, "it is read ahead", func() bool { return sums.verified.Load() > seen })
				if p.noRaw() == nil && !errors.Is(r.Raw(), ErrCannotPark) || r.Raw() == nil {
					t.Errorf("Raw: %v", r.Raw())
				}
				if sp.trap {
					raw := func(pg int64) error { return Guard(func() error { b[0] = r.Bytes()[pg*ps]; return nil }) }
					if s := p.Stats(); s.ParkMode == coro.InPlace {
						is("a load", raw(bad))
						if err := raw(20); err != nil || b[0] != 21 {
							t.Errorf("a load of a page that is right: %d, %v", b[0], err)
						}
					} else {
						want := ErrCannotPark
						if s.ParkMode == coro.Restart {
							want = errRestart
						}
						if err := raw(21); !errors.Is(err, want) {
							t.Errorf("a load that cannot be parked: %v, want %v", err, want)
						}
					}
				}

				// Hits see nothing.
				if _, err := r.ReadAt(b, 0); err != nil {
					t.Fatal(err)
				}
				before := sums.verified.Load()
				for range 100 {
					if _, err := r.ReadAt(b, 0); err != nil {
						t.Fatal(err)
					}
					pin, err := r.Acquire(ctx, 0, ps)
					if err != nil {
						t.Fatal(err)
					}
					pin.Release()
				}
				if n := sums.verified.Load() - before; n != 0 {
					t.Errorf("%d calls of Verify for hits", n)
				}

				// A page that is written whole is not read, so not verified.
				for i := range b {
					b[i] = 99
				}
				if _, err := r.WriteAt(b, bad*ps); err != nil {
					t.Fatal(err)
				}
				if _, err := r.WriteAt([]byte("tail"), pages*ps+50); err != nil {
					t.Fatal(err)
				}
				if _, err := r.WriteAt([]byte("part"), 3*ps); err != nil {
					t.Fatal(err)
				}
				if err := r.Discard(ctx, 10*ps, 2*ps); err != nil {
					t.Fatal(err)
				}
				if n := sums.sealed.Load(); n != 0 {
					t.Errorf("%d pages sealed before anything was written", n)
				}
				// A Seal that fails keeps the page, and the next one seals it.
				fails := error(unix.ENOKEY)
				sums.sealErr.Store(&fails)
				if err := r.Sync(ctx); !errors.Is(err, unix.ENOKEY) {
					t.Errorf("Sync with a Seal that fails: %v", err)
				}
				sums.sealErr.Store(nil)
				sums.sealed.Store(0)
				if err := r.Sync(ctx); err != nil {
					if err = r.Sync(ctx); err != nil {
						t.Fatal(err)
					}
				}
				if n := sums.sealed.Load(); n != 3 {
					t.Errorf("%d pages sealed, want 3", n)
				}
				file, err := os.ReadFile(name)
				if err != nil || int64(len(file)) != size {
					t.Fatalf("%d bytes, %v", len(file), err)
				}
				for pg := range int64(pages) {
					if err := sums.verify(pg, file[pg*ps:(pg+1)*ps]); err != nil {
						t.Errorf("page %d of the file: %v", pg, err)
					}
				}
				if file[10*ps] != 0 || file[bad*ps] != 99 || string(file[3*ps:3*ps+4]) != "part" || string(file[pages*ps+50:pages*ps+54]) != "tail" {
					t.Error("the file is not what was written")
				}
				// And is accepted when it comes in again.
				if err := r.Advise(0, r.Len(), DontNeed); err != nil {
					t.Fatal(err)
				}
				before = sums.verified.Load()
				if _, err := r.ReadAt(make([]byte, size), 0); err != nil {
					t.Error(err)
				}
				if n := sums.verified.Load() - before; n < pages {
					t.Errorf("%d pages verified, want all %d that were dropped", n, pages)
				}
			})
		}
	}
}

// Pages that the store has nothing of are no pages to verify, and a page that
// is wrong is counted and told like one that cannot be read.
func TestVerifyOfWhatIsNotThere(t *testing.T) {
	var told atomic.Int64
	var calls atomic.Int64
	p, err := New(Options{Budget: 64 * FrameSize, Events: &EventListener{ReadError: func(*Region, int64, int64, error) { told.Add(1) }}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var arrived atomic.Int64
	seen := prefetch.DataFunc(func(e prefetch.Event, _ *prefetch.Plan) {
		if e.Kind == prefetch.Arrived {
			arrived.Add(1)
			if e.Page == 2 {
				t.Error("a policy was shown the bytes of a page that Verify refused")
			}
		}
	})
	r, err := p.Map(store.NewMemory(4*FrameSize), RegionOptions{MaxSize: 40 * FrameSize, Prefetch: seen, Verify: func(pg int64, _ []byte) error {
		calls.Add(1)
		if pg == 2 {
			return errUser
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Resize(context.Background(), 40*FrameSize); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(make([]byte, 8), 20*FrameSize); err != nil {
		t.Error(err)
	}
	if calls.Load() != 0 {
		t.Error("Verify was shown a page of which the store has nothing")
	}
	if _, err := r.ReadAt(make([]byte, 8), 2*FrameSize); !errors.Is(err, errUser) {
		t.Error(err)
	}
	if _, err := r.ReadAt(make([]byte, 8), 3*FrameSize); err != nil || arrived.Load() == 0 {
		t.Errorf("%v, %d pages shown to the policy", err, arrived.Load())
	}
	for end := time.Now().Add(10 * time.Second); told.Load() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if s := p.Stats(); s.ReadErrors != 1 || told.Load() != 1 {
		t.Errorf("%d read errors, told %d times", s.ReadErrors, told.Load())
	}
}
