package hostile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// holds says whether a store, mapped anew with its journal, is want.
func holds(t *testing.T, path, journal string, want []byte) {
	t.Helper()
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	r, err := p.Map(fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{Durability: pager.Atomic, Journal: pager.JournalOptions{Path: journal}})
	if err != nil {
		t.Errorf("Map: %v", err)
		return
	}
	got := make([]byte, len(want))
	if _, err := r.ReadAt(got, 0); err != nil {
		t.Error(err)
	} else if err := fixture.Compare(got, want, 0); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// TestJournalOnAFullFileSystem: the file system of the journal becomes full in
// a Commit. The commit fails and says why, and nothing of it reaches the file;
// what was written can still be read, and is committed once there is room. What
// was committed before is there if the process ends instead.
func TestJournalOnAFullFileSystem(t *testing.T) {
	fixture.NeedWrite(t)
	for _, room := range []bool{true, false} {
		name := "room is made"
		if !room {
			name = "closed"
		}
		t.Run(name, func(t *testing.T) {
			if child.Isolate(t, child.Options{}) {
				return
			}
			dir := t.TempDir()
			mount := func(size string, flags uintptr) error {
				return unix.Mount("uffdpager", dir, "tmpfs", flags, "size="+size)
			}
			if err := mount("6m", 0); err != nil {
				t.Skipf("no tmpfs can be mounted: %v", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			const size = 12 << 20
			path, journal := fixture.File(t, size, 7), filepath.Join(dir, "journal")
			before := make([]byte, size)
			fixture.Fill(before, 0, 7)
			p := fixture.Pager(t, pager.Options{Budget: 4 * size})
			r, err := p.Map(fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{
				Durability: pager.Atomic, Prefetch: prefetch.None(),
				Journal: pager.JournalOptions{Path: journal, Limit: 64 << 20, Interval: -1},
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx := context.Background()
			if _, err := r.WriteAt(make([]byte, 3*page), 5*page); err != nil {
				t.Fatal(err)
			}
			clear(before[5*page : 8*page])
			if err := r.Commit(ctx); err != nil {
				t.Fatalf("a commit that fits: %v", err)
			}
			after := make([]byte, size)
			fixture.Fill(after, 0, 8)
			if _, err := r.WriteAt(after, 0); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				var f *pager.FaultError
				if err := r.Commit(ctx); !errors.Is(err, unix.ENOSPC) || !errors.As(err, &f) {
					t.Fatalf("a commit that does not fit: %v, want ENOSPC", err)
				}
			}
			got := make([]byte, size)
			if _, err := r.ReadAt(got, 0); err != nil {
				t.Errorf("reading what could not be committed: %v", err)
			} else if err := fixture.Compare(got, after, 0); err != nil {
				t.Error(err)
			}
			if !room {
				if err := r.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				holds(t, path, journal, before)
				return
			}
			if err := mount("64m", unix.MS_REMOUNT); err != nil {
				t.Fatal(err)
			}
			if err := r.Commit(ctx); err != nil {
				t.Fatalf("once there is room: %v", err)
			}
			if err := r.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			holds(t, path, journal, after)
		})
	}
}

// TestCheckpointToADeviceThatIsFull: the device of an Atomic region takes
// nothing more. Commits go on, for the journal lies elsewhere; Close says that
// it could not bring them to the device, and keeps them; Map says the same until
// there is room, and then they are there.
func TestCheckpointToADeviceThatIsFull(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{}) {
		return
	}
	const size, kept = 4 << 20, 512 << 10
	dev, more := fullPool(t, size, kept)
	journal := filepath.Join(t.TempDir(), "journal")
	want := make([]byte, size)
	p := fixture.Pager(t, pager.Options{Budget: 2 * size})
	options := pager.RegionOptions{
		Durability: pager.Atomic, Prefetch: prefetch.None(),
		Journal: pager.JournalOptions{Path: journal, Interval: -1},
	}
	r, err := p.Map(fixture.OpenFile(t, dev, store.FileOptions{}), options)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	full := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
			t.Errorf("%s over a device that is full: %v, want ENOSPC or EIO", what, err)
		}
	}
	for seed := range uint64(3) {
		b := want[kept+16*page : 1<<20]
		fixture.Fill(b, kept+16*page, 6+seed)
		if _, err := r.WriteAt(b, kept+16*page); err != nil {
			t.Fatal(err)
		}
		if err := r.Commit(ctx); err != nil {
			t.Fatalf("Commit: %v", err)
		}
	}
	got := make([]byte, size)
	if _, err := r.ReadAt(got, 0); err != nil {
		t.Errorf("reading what is committed: %v", err)
	} else if err := fixture.Compare(got, want, 0); err != nil {
		t.Error(err)
	}
	full("Close", r.Close())
	r, err = p.Map(fixture.OpenFile(t, dev, store.FileOptions{}), options)
	if full("Map", err); err == nil {
		_ = r.Close()
	}
	if err := more(); err != nil {
		t.Fatal(err)
	}
	holds(t, dev, journal, want)
}

// TestNoJournalBesideADevice: what lies beside a device is memory, so no journal is
// made there, and that of a region over a device has to be somewhere else.
func TestNoJournalBesideADevice(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{}) {
		return
	}
	const size = 1 << 20
	dev := loopDevice(t, fixture.File(t, size, 7))
	p := fixture.Pager(t, pager.Options{Budget: size})
	_, err := p.Map(fixture.OpenFile(t, dev, store.FileOptions{}), pager.RegionOptions{Durability: pager.Atomic})
	if err == nil || !strings.Contains(err.Error(), "Journal.Path") {
		t.Errorf("Map: %v", err)
	}
	if _, err := os.Stat(dev + ".journal"); err == nil {
		t.Errorf("there is %s.journal", dev)
		os.Remove(dev + ".journal")
	}
	r, err := p.Map(fixture.OpenFile(t, dev, store.FileOptions{}), pager.RegionOptions{
		Durability: pager.Atomic, MaxSize: 2 * size, Journal: pager.JournalOptions{Path: filepath.Join(t.TempDir(), "journal")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Resize(context.Background(), 2*size); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Resize of a device: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
