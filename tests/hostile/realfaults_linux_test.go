package hostile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestDeviceThatIsCut: a block device whose medium ends in the middle, and is
// whole again later.
func TestDeviceThatIsCut(t *testing.T) {
	for _, park := range []string{"auto", "block"} {
		t.Run(park, func(t *testing.T) {
			if child.Isolate(t, child.Options{Env: []string{"UFFDPAGER_PARK=" + park}}) {
				return
			}
			const size = 1 << 20
			back := fixture.File(t, size, 5)
			dev := loopDevice(t, back)
			p := fixture.Pager(t, pager.Options{Budget: 16 * page})
			r := fixture.Map(t, p, fixture.OpenFile(t, dev, store.FileOptions{ReadOnly: true}), pager.RegionOptions{Prefetch: prefetch.None()})
			b := make([]byte, page)
			if err := os.Truncate(back, size/2); err != nil {
				t.Fatal(err)
			}
			for _, off := range []int64{size / 2, size - page} {
				for way, err := range failures(r, off, page) {
					isFault(t, way, err, off/page, unix.EIO)
				}
			}
			if _, err := r.ReadAt(b, size/2-page); err != nil {
				t.Errorf("before the cut: %v", err)
			} else if err := fixture.Check(b, size/2-page, 5); err != nil {
				t.Error(err)
			}
			whole := make([]byte, size)
			fixture.Fill(whole, 0, 5)
			if err := os.WriteFile(back, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			for off := int64(0); off < size; off += page {
				if _, err := r.ReadAt(b, off); err != nil {
					t.Fatalf("whole again: %v", err)
				} else if err := fixture.Check(b, off, 5); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// fullPool is a thinly provisioned device of size bytes over a pool that has
// room for its first kept bytes and for nothing else, until more is called.
//
// Nobody may write across the end of what is kept: a loop device says of a
// write of which it could do a part that it is done (Linux 6.18).
func fullPool(t *testing.T, size, kept int64) (dev string, more func() error) {
	t.Helper()
	dir := t.TempDir()
	mount := func(size string, flags uintptr) error {
		return unix.Mount("uffdpager", dir, "tmpfs", flags, "size="+size)
	}
	if err := mount("2m", 0); err != nil {
		t.Skipf("no tmpfs can be mounted: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	back := filepath.Join(dir, "pool")
	if err := errors.Join(os.WriteFile(back, make([]byte, kept), 0o600), os.Truncate(back, size)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, page))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return loopDevice(t, back), func() error { return mount("64m", unix.MS_REMOUNT) }
}

// TestDeviceThatIsFull: a thinly provisioned device whose pool is full, and is
// enlarged later. What could not be written is kept, and gets there.
func TestDeviceThatIsFull(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{}) {
		return
	}
	const size, kept, gap = 4 << 20, 512 << 10, 16 * page
	dev, more := fullPool(t, size, kept)
	p := fixture.Pager(t, pager.Options{Budget: 2 * size})
	s, err := store.OpenFile(dev, store.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Map(s, pager.RegionOptions{Prefetch: prefetch.None()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx := context.Background()
	want := make([]byte, 3<<20)
	fixture.Fill(want, 0, 6)
	clear(want[kept-gap : kept+gap])
	for _, part := range [][2]int{{0, kept - gap}, {kept + gap, len(want)}} {
		if _, err := r.WriteAt(want[part[0]:part[1]], int64(part[0])); err != nil {
			t.Fatal(err)
		}
	}
	var f *pager.FaultError
	err = r.Sync(ctx)
	if !errors.As(err, &f) || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
		t.Fatalf("Sync to a full device: %v, want ENOSPC or EIO", err)
	}
	got := make([]byte, len(want))
	if _, err := r.ReadAt(got, 0); err != nil {
		t.Errorf("reading what could not be written: %v", err)
	} else if err := fixture.Compare(got, want, 0); err != nil {
		t.Error(err)
	}
	if err := more(); err != nil {
		t.Fatal(err)
	}
	if err = r.Sync(ctx); err != nil {
		err = r.Sync(ctx) // a failure in the background is told of once
	}
	if f.Op == "flush" {
		if err == nil {
			t.Error("a failed flush is forgotten")
		}
		return
	}
	if err != nil {
		t.Fatalf("once there is room: %v", err)
	}
	file, err := os.ReadFile(dev)
	if err == nil {
		err = fixture.Compare(file[:len(want)], want, 0)
	}
	if err != nil {
		t.Fatal(fmt.Errorf("the medium after Sync: %w", err))
	}
}
