//go:build linux

package pager

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// summedFile opens a file of that many bytes, in which every byte tells its
// page, with checksums beside it.
func summedFile(t testing.TB, name string, create bool) *store.Checksummed {
	t.Helper()
	data, err := store.OpenFile(name, store.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sums, err := store.OpenFile(name+".sums", store.FileOptions{Create: true, Size: store.SumsSize(data.Size())})
	if err != nil {
		t.Fatal(err)
	}
	c, err := store.NewChecksummed(data, sums, store.ChecksumOptions{Create: create})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func pageByte(page int) byte { return byte(page*7 + 1) }

func pagesFile(t testing.TB, size int) string {
	t.Helper()
	b := make([]byte, size)
	for i := range b {
		b[i] = pageByte(i / FrameSize)
	}
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// A block that is not what its sum says is an error to whoever touches it, in
// whatever way; its neighbours, read together with it, are not concerned; the
// fault server finds it as well; and raw access stays.
func TestChecksumsOnEveryWayIn(t *testing.T) {
	const pages = 200
	for _, mode := range []coro.Mode{coro.Auto, coro.Block} {
		for _, ps := range []int{FrameSize, 64 << 10} {
			t.Run(fmt.Sprintf("%v/%d", mode, ps), func(t *testing.T) {
				name := pagesFile(t, pages*FrameSize+100)
				summedFile(t, name, true).Close()
				f, err := os.OpenFile(name, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				wrong := map[int]bool{17: true, 90: true, 200: true} // the last one is part of a page
				for pg := range wrong {
					if _, err := f.WriteAt([]byte{0}, int64(pg)*FrameSize+50); err != nil {
						t.Fatal(err)
					}
				}
				p, err := New(Options{Budget: 32 * int64(ps), Park: mode})
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				r, err := p.Map(summedFile(t, name, false), RegionOptions{PageSize: ps})
				if err != nil {
					t.Fatal(err)
				}
				raw := hasRaw(t, r)
				bad := func(pg int) bool { // some block of the region's page is wrong
					for w := range wrong {
						if w*FrameSize/ps == pg*FrameSize/ps {
							return true
						}
					}
					return false
				}
				for pg := range pages + 1 {
					off, n := int64(pg*FrameSize), int64(min(FrameSize, pages*FrameSize+100-pg*FrameSize))
					var b [FrameSize]byte
					ways := map[string]error{}
					_, ways["ReadAt"] = r.ReadAt(b[:n], off)
					pin, err := r.Acquire(context.Background(), off, n)
					ways["Acquire"] = err
					pin.Release()
					if raw {
						ways["load"] = Guard(func() error { b[0] = r.Bytes()[off]; return nil })
						ways["copy"] = Guard(func() error { copy(b[:], r.Bytes()[off:off+n]); return nil })
					}
					for way, err := range ways {
						var fault *FaultError
						switch {
						case bad(pg) && (!errors.Is(err, store.ErrChecksum) || !errors.Is(err, unix.EBADMSG) || !errors.As(err, &fault)):
							t.Errorf("%s of page %d: %v, want a FaultError with ErrChecksum", way, pg, err)
						case !bad(pg) && (err != nil || b[0] != pageByte(pg) || b[n-1] != pageByte(pg)):
							t.Errorf("%s of page %d: %d, %v", way, pg, b[0], err)
						}
					}
				}
				if s := p.Stats(); mode == coro.Block && raw && s.Faults.Served == 0 && s.Misses == 0 {
					t.Error("the fault server has read nothing")
				}
				// Written whole, it is good again.
				whole := make([]byte, ps)
				if _, err := r.WriteAt(whole, 90*FrameSize/int64(ps)*int64(ps)); err != nil {
					t.Fatal(err)
				}
				if err := r.Sync(context.Background()); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// Writers in every way, little memory, collections, no parking: pages leave and
// come back with their sums right, and so does the file when it is mapped anew.
func TestChecksumsUnderPressure(t *testing.T) {
	for _, mode := range []coro.Mode{coro.Auto, coro.Block} {
		t.Run(mode.String(), func(t *testing.T) {
			const pages = 300
			name := pagesFile(t, pages*FrameSize)
			p, err := New(Options{Budget: 48 * FrameSize, Park: mode})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			r, err := p.Map(summedFile(t, name, true), RegionOptions{Prefetch: prefetch.None(), Writeback: Writeback{Age: time.Millisecond}})
			if err != nil {
				t.Fatal(err)
			}
			var model [pages]byte
			for pg := range model {
				model[pg] = pageByte(pg)
			}
			blocks := p.Stats().ParkMode == coro.Block
			var refused atomic.Int64
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(w), 1))
					for i := range 400 {
						pg := rnd.IntN(pages/4)*4 + w
						off := int64(pg)*FrameSize + 100
						v := byte(i)
						err := Guard(func() error {
							var b [1]byte
							if _, err := r.ReadAt(b[:], off); err != nil || b[0] != model[pg] {
								return fmt.Errorf("page %d has %d, want %d: %w", pg, b[0], model[pg], err)
							}
							if i%2 == 0 && r.Raw() == nil {
								err := Guard(func() error { r.Bytes()[off] = v; return nil })
								if !blocks || !errors.Is(err, ErrBudget) {
									return err
								}
								// Every P was held by a store that waited for room,
								// which takes Go code here (docs/limits.md).
								refused.Add(1)
							}
							_, err := r.WriteAt([]byte{v}, off)
							return err
						})
						if err != nil {
							t.Error(err)
							return
						}
						model[pg] = v
						if i%50 == 0 {
							runtime.GC()
							if err := r.Sync(context.Background()); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			wg.Wait()
			t.Logf("%d raw stores found no room", refused.Load())
			if err := r.Discard(context.Background(), 8*FrameSize, 20*FrameSize); err != nil {
				t.Error(err)
			}
			clear(model[8:28])
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			r, err = p.Map(summedFile(t, name, false), RegionOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var b [1]byte
			for pg := range model {
				if _, err := r.ReadAt(b[:], int64(pg)*FrameSize+100); err != nil || b[0] != model[pg] {
					t.Errorf("page %d: %d, want %d, %v", pg, b[0], model[pg], err)
				}
			}
		})
	}
}
