//go:build linux

package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

func writableFile(t testing.TB, size int64, po Options, ro RegionOptions) (*Pager, *Region, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	p, r := mapFile(t, name, po, ro)
	return p, r, name
}

// Writers own one word of every page each and increment it in every way there
// is, under a budget far smaller than the file, with syncs and budget changes
// going on. Not one increment may be lost, in memory or in the file.
func TestNoUpdateIsLost(t *testing.T) {
	const pages, writers, rounds = 512, 8, 3000
	p, r, name := writableFile(t, pages*FrameSize, Options{Budget: 48 * FrameSize}, RegionOptions{Writeback: Writeback{DirtyShare: 0.1, Age: 20 * time.Millisecond}})
	ways := []int{1, 2}
	if hasRaw(t, r) {
		ways = append(ways, 0)
	}
	if sp.trap && sp.wp {
		ways = append(ways, 3)
	}
	ctx := context.Background()
	var want [writers][pages]uint64
	var wg, bg sync.WaitGroup
	var stop atomic.Bool
	bg.Go(func() {
		for !stop.Load() {
			if err := r.Sync(ctx); err != nil {
				t.Errorf("Sync: %v", err)
			}
			if err := p.SetBudget(int64(32+rand.IntN(64)) * FrameSize); err != nil {
				t.Errorf("SetBudget: %v", err)
			}
			time.Sleep(time.Millisecond)
		}
	})
	for w := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 7))
			for i := range rounds {
				page := rnd.IntN(pages)
				off := int64(page*FrameSize + w*64)
				want[w][page]++
				var b [8]byte
				switch ways[i%len(ways)] {
				case 0:
					mem := r.Bytes()[off : off+8]
					binary.LittleEndian.PutUint64(mem, binary.LittleEndian.Uint64(mem)+1)
				case 1:
					pin, err := r.AcquireWrite(ctx, off, 8)
					if err != nil {
						t.Errorf("AcquireWrite: %v", err)
						return
					}
					binary.LittleEndian.PutUint64(pin.Bytes(), binary.LittleEndian.Uint64(pin.Bytes())+1)
					pin.Release()
				case 2:
					if _, err := r.ReadAt(b[:], off); err != nil {
						t.Errorf("ReadAt: %v", err)
					}
					binary.LittleEndian.PutUint64(b[:], binary.LittleEndian.Uint64(b[:])+1)
					if _, err := r.WriteAt(b[:], off); err != nil {
						t.Errorf("WriteAt: %v", err)
					}
				case 3:
					if err := r.Update(ctx, func(mem []byte) error {
						copy(b[:], mem[off:])
						binary.LittleEndian.PutUint64(b[:], binary.LittleEndian.Uint64(b[:])+1)
						copy(mem[off:], b[:])
						return nil
					}); err != nil {
						t.Errorf("Update: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	stop.Store(true)
	bg.Wait()
	check := func(what string, read func(off int64) uint64) {
		for w := range writers {
			for page := range pages {
				if v := read(int64(page*FrameSize + w*64)); v != want[w][page] {
					t.Errorf("%s: writer %d page %d: %d, want %d", what, w, page, v, want[w][page])
					return
				}
			}
		}
	}
	mem := contentOf(t, r)
	check("memory", func(off int64) uint64 { return binary.LittleEndian.Uint64(mem[off:]) })
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	check("file", func(off int64) uint64 { return binary.LittleEndian.Uint64(file[off:]) })
	t.Logf("\n%v", p.Stats())
}

func TestExactCountersOfWholePageWrites(t *testing.T) {
	const budget, pages = 2048, 4096
	p, r, _ := writableFile(t, pages*FrameSize, Options{Budget: budget * FrameSize, EvictBatch: 1},
		RegionOptions{Prefetch: prefetch.None(), Evict: evict.NewFIFO(), Writeback: Writeback{Age: -1, DirtyShare: 0.99}})
	b := make([]byte, FrameSize)
	for i := range pages {
		binary.LittleEndian.PutUint64(b, uint64(i)+1)
		if n, err := r.WriteAt(b, int64(i)*FrameSize); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
	}
	if s := p.Stats(); s.Reads != 0 {
		t.Errorf("%d reads while writing whole pages", s.Reads)
	}
	for i := range pages {
		if _, err := r.ReadAt(b, int64(i)*FrameSize); err != nil || binary.LittleEndian.Uint64(b) != uint64(i)+1 {
			t.Fatalf("page %d: %v", i, err)
		}
	}
	s := p.Stats()
	if s.Writebacks != pages || s.Reads != pages || s.Evictions != 2*pages-s.Resident/FrameSize {
		t.Errorf("writebacks %d (want %d), reads %d (want %d), evictions %d (want %d)", s.Writebacks, pages, s.Reads, pages, s.Evictions, 2*pages-s.Resident/FrameSize)
	}
}

func TestResizeAndDiscard(t *testing.T) {
	ctx := context.Background()
	_, r, name := writableFile(t, 10*FrameSize+100, Options{Budget: 64 * FrameSize}, RegionOptions{MaxSize: 64 * FrameSize})
	model, mem := make([]byte, r.Len(), 64*FrameSize), r.Bytes()
	fill := func(off, n int, v byte) {
		for i := range n {
			model[off+i] = v
		}
		if _, err := r.WriteAt(model[off:off+n], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	same := func(step string) {
		t.Helper()
		if r.Len() != int64(len(model)) || !bytes.Equal(contentOf(t, r), model) {
			t.Fatalf("%s: memory differs from the model", step)
		}
		if err := r.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		if f, err := os.ReadFile(name); err != nil || !bytes.Equal(f, model) {
			i := 0
			for i < min(len(f), len(model)) && f[i] == model[i] {
				i++
			}
			t.Fatalf("%s: the file (%d bytes) differs from the model (%d) at %d: %v", step, len(f), len(model), i, err)
		}
	}
	resize := func(n int) {
		t.Helper()
		if err := r.Resize(ctx, int64(n)); err != nil {
			t.Fatal(err)
		}
		if n > len(model) {
			old := len(model)
			model = model[:n]
			clear(model[old:])
		}
		model = model[:n]
	}
	discard := func(off, n int) {
		t.Helper()
		if err := r.Discard(ctx, int64(off), int64(n)); err != nil {
			t.Fatal(err)
		}
		clear(model[off : off+n])
	}
	fill(0, len(model), 1)
	same("fill")
	resize(40 * FrameSize)
	same("grow")
	fill(20*FrameSize+7, 3*FrameSize, 2)
	same("write to new pages")
	discard(FrameSize+10, 3*FrameSize)
	same("discard")
	resize(5*FrameSize + 17)
	same("shrink")
	if sp.fd >= 0 {
		if err := Guard(func() error { sink += mem[6*FrameSize]; return nil }); !errors.Is(err, errRange) {
			t.Errorf("a touch past the end: %v", err)
		}
	}
	resize(30 * FrameSize)
	same("grow again: old bytes must not come back")
	fill(0, len(model), 3)
	discard(0, len(model))
	same("discard all")
}

var sink byte

func TestPrivateRegionKeepsItsChangesToItself(t *testing.T) {
	name, want := stampFile(t, 256*FrameSize)
	model := bytes.Clone(want)
	p, r := mapFile(t, name, Options{Budget: 16 * FrameSize}, RegionOptions{Private: true, Prefetch: prefetch.None()})
	raw := hasRaw(t, r)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		off, n := rnd.IntN(len(model)), rnd.IntN(9000)
		n = min(n, len(model)-off)
		switch rnd.IntN(3) {
		case 0:
			for i := range n {
				model[off+i] = byte(rnd.Uint32())
			}
			if _, err := r.WriteAt(model[off:off+n], int64(off)); err != nil {
				t.Fatal(err)
			}
		case 1:
			if n > 0 && raw {
				model[off]++
				r.Bytes()[off]++
			}
		case 2:
			var got []byte
			if raw {
				got = r.Bytes()[off : off+n]
			} else {
				got = make([]byte, n)
				if _, err := r.ReadAt(got, int64(off)); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, model[off:off+n]) {
				t.Fatalf("differs at %d+%d", off, n)
			}
		}
	}
	if p.Stats().Writebacks == 0 {
		t.Error("nothing was spilled: the test shows nothing")
	}
	if f, _ := os.ReadFile(name); !bytes.Equal(f, want) {
		t.Error("the file has changed")
	}
}

// Who writes a page whole, and finds that it is being read, is not concerned if that
// read fails: he needs nothing of what was there.
func TestWholeWritesDoNotInheritReadErrors(t *testing.T) {
	_, r, s := mapMemory(t, 64, Options{Budget: 32 * FrameSize}, store.FaultyOptions{Kernel: true}, RegionOptions{Writeback: Writeback{NoSteal: true}})
	s.Inject(store.Fault{Ops: store.OnRead, Off: 9 * FrameSize, Len: FrameSize, Err: unix.EIO})
	s.Hold(store.OnRead)
	defer s.Release()
	read := make(chan error, 1)
	go func() {
		_, err := r.ReadAt(make([]byte, 8), 9*FrameSize)
		read <- err
	}()
	eventually(t, "the read", func() bool { return s.Counts().Held == 1 })
	want := bytes.Repeat([]byte{7}, FrameSize)
	written := make(chan error, 1)
	go func() {
		_, err := r.WriteAt(want, 9*FrameSize)
		written <- err
	}()
	eventually(t, "the writer has found it", func() bool { return r.p.Stats().Joined == 1 })
	s.Release()
	if err := <-read; !errors.Is(err, unix.EIO) {
		t.Errorf("ReadAt: %v", err)
	}
	if err := <-written; err != nil {
		t.Errorf("WriteAt of a whole page whose read has failed: %v", err)
	}
	got := make([]byte, FrameSize)
	if _, err := r.ReadAt(got, 9*FrameSize); err != nil || !bytes.Equal(got, want) {
		t.Errorf("it reads as % x…: %v", got[:4], err)
	}
	// A part of a page needs what was there.
	s.Inject(store.Fault{Ops: store.OnRead, Off: 20 * FrameSize, Len: FrameSize, Err: unix.EIO})
	if _, err := r.WriteAt([]byte{1}, 20*FrameSize); !errors.Is(err, unix.EIO) {
		t.Errorf("WriteAt of a part of a page that cannot be read: %v", err)
	}
}
