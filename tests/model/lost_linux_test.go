package model

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/ccode"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestNoUpdateIsLost lets eight writers change their own 512 bytes of every
// page, in every way there is to write memory, while the pages they share are
// written back, synced, evicted and read again. Every writer knows what its
// bytes must be.
func TestNoUpdateIsLost(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	for _, procs := range []int{1, 2, 8} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: procs, Deadline: duration(60*time.Second, 10*time.Minute)}) {
				return
			}
			fixture.CollectGarbage(t)
			loseNothing(t, seed, duration(2*time.Second, 3*time.Minute))
		})
	}
}

const (
	lostPages  = 256
	lostBudget = 40
	writers    = 8
)

func loseNothing(t *testing.T, seed uint64, lasts time.Duration) {
	dir := t.TempDir()
	path := fixture.FileIn(t, dir, lostPages*pager.FrameSize, seed)
	p := fixture.Pager(t, pager.Options{Budget: lostBudget * pager.FrameSize})
	r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{
		Writeback: pager.Writeback{DirtyShare: 0.1, Age: time.Millisecond},
	})
	fixture.NeedRaw(t, r)
	model := make([]byte, r.Len())
	fixture.Fill(model, 0, seed)
	source := newDMA(t, dir)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// So long, and then until enough has moved: the machine may be slow.
	enough := func() bool {
		s := p.Stats()
		return s.ReadBytes > 10*lostBudget*pager.FrameSize && s.Writebacks > 10*lostBudget
	}
	go func() {
		time.Sleep(lasts)
		for end := time.Now().Add(30 * time.Second); !enough() && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	var wg sync.WaitGroup
	errs := make([]error, writers+2)
	var writes atomic.Int64
	for i := range writers {
		wg.Go(func() {
			l := &loser{newGenerator(seed, uint64(i)), r, model, i, source}
			for ctx.Err() == nil && errs[i] == nil {
				errs[i] = pager.Guard(l.step)
				writes.Add(1)
			}
			cancel()
		})
	}
	// All the while everything is synced, and the budget breathes.
	wg.Go(func() {
		for ctx.Err() == nil && errs[writers] == nil {
			if err := r.Sync(ctx); err != nil && ctx.Err() == nil {
				errs[writers] = fmt.Errorf("Sync: %w", err)
			}
		}
	})
	wg.Go(func() {
		g := newGenerator(seed, writers)
		for ctx.Err() == nil && errs[writers+1] == nil {
			if err := p.SetBudget(int64(lostBudget/2+g.intn(lostBudget/2, "")) * pager.FrameSize); err != nil {
				errs[writers+1] = fmt.Errorf("SetBudget: %w", err)
			}
			time.Sleep(time.Millisecond)
		}
	})
	wg.Wait()
	stats := p.Stats()
	for i, err := range errs {
		if err != nil {
			t.Errorf("seed %d, goroutine %d: %v", seed, i, err)
		}
	}
	if t.Failed() {
		t.Fatalf("%v", stats)
	}
	if err := r.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err == nil {
		err = fixture.Compare(got, model, 0)
	}
	if err != nil {
		t.Fatalf("seed %d: after Sync the file: %v\n%v", seed, err, stats)
	}
	if !enough() {
		t.Errorf("hardly anything moved: %d reads, %d writebacks", stats.Reads, stats.Writebacks)
	}
	t.Logf("%d writes, %d reads, %d writebacks, %d evictions", writes.Load(), stats.Reads, stats.Writebacks, stats.Evictions)
}

// loser is one writer.
type loser struct {
	generator
	r      *pager.Region
	model  []byte
	slot   int
	source *dma
}

func (l *loser) step() error {
	off := int64(l.intn(lostPages, "page"))*pager.FrameSize + int64(l.slot)*slotSize
	model := l.model[off : off+slotSize]
	mem := l.r.Bytes()[off : off+slotSize]
	if err := fixture.Compare(mem, model, off); err != nil {
		return err
	}
	word := func(b []byte, i int) *uint64 { return (*uint64)(unsafe.Pointer(&b[8*i])) }
	i := l.intn(slotSize/8, "word")
	next := binary.NativeEndian.Uint64(model[8*i:]) + 1
	how := l.intn(8, "way")
	if how == 7 && (!ccode.Have || runtime.GOARCH != "amd64") {
		how = 0
	}
	switch how {
	case 7: // C writes
		pin, err := l.r.AcquireWrite(context.Background(), off+int64(8*i), 8)
		if err != nil {
			return fmt.Errorf("AcquireWrite: %w", err)
		}
		ccode.AddOne((*[8]byte)(pin.Bytes()))
		pin.Release()
	case 0:
		atomic.AddUint64(word(mem, i), 1)
	case 1:
		*word(mem, i)++
	case 2:
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], next)
		copy(mem[8*i:], b[:])
	case 3:
		if err := l.r.Update(context.Background(), func(all []byte) error {
			*word(all[off:off+slotSize], i)++
			return nil
		}); err != nil {
			return fmt.Errorf("Update: %w", err)
		}
	case 4:
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], next)
		if _, err := l.r.WriteAt(b[:], off+int64(8*i)); err != nil {
			return fmt.Errorf("WriteAt: %w", err)
		}
	default: // the kernel writes: read(2) through the page cache, or DMA
		pin, err := l.r.AcquireWrite(context.Background(), off, slotSize)
		if err != nil {
			return fmt.Errorf("AcquireWrite: %w", err)
		}
		defer pin.Release()
		block := l.intn(dmaBlocks, "block")
		fd := l.source.cached
		if how == 6 {
			fd = l.source.direct
		}
		if n, err := unix.Pread(fd, pin.Bytes(), int64(block)*slotSize); err != nil || n != slotSize {
			return fmt.Errorf("read(2) into a write pin: %d, %w", n, err)
		}
		fixture.Fill(model, int64(block)*slotSize, dmaSeed)
		return fixture.Compare(pin.Bytes(), model, off)
	}
	binary.NativeEndian.PutUint64(model[8*i:], next)
	return nil
}

const (
	dmaBlocks = 64
	dmaSeed   = 4711
)

// dma is a file that is read into write-pinned memory.
type dma struct{ cached, direct int }

func newDMA(t *testing.T, dir string) *dma {
	t.Helper()
	path := filepath.Join(dir, "dma")
	b := make([]byte, dmaBlocks*slotSize)
	fixture.Fill(b, 0, dmaSeed)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(flags int) int {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
		if err != nil {
			t.Fatalf("open with flags %#x: %v", flags, err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	d := &dma{cached: open(0)}
	d.direct = open(unix.O_DIRECT)
	return d
}

// TestDMAUnderWritebackReachesTheStore has a transfer under way into a page
// while that page is written back: the bytes that land afterwards are not
// known to the page tables, and must be written all the same.
func TestDMAUnderWritebackReachesTheStore(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{}) {
		return
	}
	const size = 1 << 20
	dir := t.TempDir()
	path := fixture.FileIn(t, dir, size, 1)
	from := fixture.FileIn(t, dir, size, 2)
	fd, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no O_DIRECT in %s: %v", dir, err)
	}
	defer unix.Close(fd)
	p := fixture.Pager(t, pager.Options{Budget: 4 * size})
	r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{})
	ctx := context.Background()
	for round := range 50 {
		var want [size]byte
		if _, err := r.WriteAt(want[:], 0); err != nil {
			t.Fatal(err)
		}
		pin, err := r.AcquireWrite(ctx, 0, size)
		if err != nil {
			t.Fatal(err)
		}
		started := make(chan struct{})
		landed := make(chan error, 1)
		go func() {
			close(started)
			n, err := unix.Pread(fd, pin.Bytes(), 0)
			if err == nil && n != size {
				err = fmt.Errorf("short read: %d", n)
			}
			landed <- err
		}()
		<-started
		if err := r.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		if err := <-landed; err != nil {
			t.Fatal(err)
		}
		pin.Release()
		if err := r.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		fixture.Fill(want[:], 0, 2)
		got, err := os.ReadFile(path)
		if err == nil {
			err = fixture.Compare(got, want[:], 0)
		}
		if err != nil {
			t.Fatalf("round %d: the file after Release and Sync: %v", round, err)
		}
	}
}
