package hostile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
	"github.com/uffdpager/uffdpager/uffd"
)

// everything reads the region through every way in, and compares.
func everything(t *testing.T, p *pager.Pager, r *pager.Region, seed uint64) {
	t.Helper()
	ctx := context.Background()
	size := r.Len()
	buf := make([]byte, min(size, 10_000))
	budget := p.Stats().Budget
	for round := int64(0); round < 2 || size > budget && p.Stats().ReadBytes <= 10*budget; round++ {
		for off := int64(0); off < size; off += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), size-off)]
			if n, err := r.ReadAt(b, off); n != len(b) || err != nil {
				t.Fatalf("ReadAt at %d: %d, %v", off, n, err)
			}
			if err := fixture.Check(b, off, seed); err != nil {
				t.Fatalf("ReadAt: %v", err)
			}
			n := min(int64(len(b)), p.Stats().Pinnable/2, int64(r.PageSize()))
			pin, err := r.Acquire(ctx, off, n)
			if err != nil {
				t.Fatalf("Acquire at %d: %v", off, err)
			}
			if err := fixture.Check(pin.Bytes(), off, seed); err != nil {
				t.Fatalf("Acquire: %v", err)
			}
			pin.Release()
		}
		if r.Raw() != nil {
			continue
		}
		if err := pager.Guard(func() error { return fixture.Check(r.Bytes(), 0, seed) }); err != nil {
			t.Fatalf("Bytes: %v", err)
		}
		if err := r.View(ctx, func(mem []byte) error { return fixture.Check(mem, 0, seed) }); err != nil {
			t.Fatalf("View: %v", err)
		}
	}
	if s := p.Stats(); s.PeakResident > s.Budget {
		t.Errorf("%d bytes resident at most under a budget of %d", s.PeakResident, s.Budget)
	}
}

// writeAll changes the region through the ways that write, syncs, and compares
// the file; it does nothing until there is a write side.
func writeAll(t *testing.T, dir string) {
	t.Helper()
	if !fixture.CanWrite(t) {
		t.Log("only read: there is no write side yet")
		return
	}
	ctx := context.Background()
	path := fixture.FileIn(t, dir, 64*page+5, 21)
	p := fixture.Pager(t, pager.Options{Budget: 16 * page})
	r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{})
	model := make([]byte, r.Len())
	fixture.Fill(model, 0, 21)
	for i := int64(0); i < 64; i++ {
		off := i*page + 100
		b := []byte(fmt.Sprint("page ", i))
		copy(model[off:], b)
		var err error
		switch k := i % 4; {
		case k == 0 || r.Raw() != nil && k != 1:
			_, err = r.WriteAt(b, off)
		case k == 1:
			var pin pager.Pin
			if pin, err = r.AcquireWrite(ctx, off, int64(len(b))); err == nil {
				copy(pin.Bytes(), b)
				pin.Release()
			}
		case k == 2:
			err = r.Update(ctx, func(mem []byte) error { copy(mem[off:], b); return nil })
		case k == 3:
			err = pager.Guard(func() error { copy(r.Bytes()[off:], b); return nil })
		}
		if err != nil {
			t.Fatalf("writing page %d: %v", i, err)
		}
	}
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err == nil {
		err = fixture.Compare(got, model, 0)
	}
	if err != nil {
		t.Fatalf("the file after Sync: %v", err)
	}
}

// usual is the work done in every place.
func usual(t *testing.T, dir string, wantRaw bool) {
	t.Helper()
	const size, seed = 300*page + 1234, 7
	path := fixture.FileIn(t, dir, size, seed)
	p := fixture.Pager(t, pager.Options{Budget: 32 * page})
	r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true}), pager.RegionOptions{})
	if wantRaw {
		fixture.NeedRaw(t, r)
	}
	everything(t, p, r, seed)
	writeAll(t, dir)
}

func TestUnprivileged(t *testing.T) {
	if !child.In(t) {
		if os.Getuid() != 0 {
			t.Skip("only root can become nobody")
		}
		res := child.Run(t, child.Options{UID: nobody})
		if res.Err != nil {
			t.Fatalf("%v\n%s", res.Err, res.Output)
		}
		return
	}
	if os.Getuid() != nobody {
		t.Fatal("uid is", os.Getuid())
	}
	dir, err := os.MkdirTemp("", "uffdpager-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	usual(t, dir, true)
}

// TestMemoryLimit works in a cgroup that would kill it if it took much more
// than its budget.
func TestMemoryLimit(t *testing.T) {
	if !child.In(t) {
		group := fixture.NewMemoryGroup(t, 96<<20)
		res := child.Run(t, child.Options{Env: []string{group.Env()}, Deadline: 90 * time.Second})
		if res.Err != nil {
			t.Fatalf("%v\n%s", res.Err, res.Output)
		}
		return
	}
	data := fixture.File(t, 256<<20, 7) // more than the limit; not charged to it
	fixture.JoinMemoryGroup(t)
	p := fixture.Pager(t, pager.Options{}) // half of the limit
	if b := p.Stats().Budget; b > 48<<20 || b < 8<<20 {
		t.Errorf("the default budget under a limit of 96 MiB is %d", b)
	}
	r := fixture.Map(t, p, fixture.OpenFile(t, data, store.FileOptions{ReadOnly: true}), pager.RegionOptions{})
	fixture.NeedRaw(t, r)
	mem := r.Bytes()
	for round := range 2 {
		for off := int64(round); off < r.Len(); off += page {
			if mem[off] != fixture.Byte(off, 7) {
				t.Fatalf("wrong at %d", off)
			}
		}
	}
}

// TestLockedMemory works after mlockall(MCL_FUTURE), which fills every new
// mapping and makes MADV_DONTNEED fail.
func TestLockedMemory(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE); err != nil {
		t.Skipf("mlockall: %v", err)
	}
	rss := fixture.Status(t, "VmRSS")
	usual(t, t.TempDir(), true)
	// A region that were filled when it is mapped would show.
	p := fixture.Pager(t, pager.Options{Budget: 32 * page})
	path := filepath.Join(t.TempDir(), "sparse")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4<<30); err != nil {
		t.Fatal(err)
	}
	r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true}), pager.RegionOptions{})
	for off := int64(0); off < r.Len(); off += 16 << 20 {
		if r.Bytes()[off] != 0 {
			t.Fatal("a hole does not read as zeros")
		}
	}
	if now := fixture.Status(t, "VmRSS"); now > rss+256<<10 {
		t.Errorf("resident memory went from %d to %d KiB", rss, now)
	}
}

// TestMasks takes each kernel feature away, and all at once.
func TestMasks(t *testing.T) {
	masks := []string{"-move,-process_madvise,-pagemap_scan,-wp_async,-poison,-wp_unpopulated,-pidfd_self,-dontneed_locked"}
	for _, f := range uffd.Features() {
		masks = append(masks, "-"+f.String())
	}
	for _, mask := range masks {
		t.Run(mask, func(t *testing.T) {
			if child.Isolate(t, child.Options{Env: []string{uffd.MaskEnv + "=" + mask}}) {
				return
			}
			switch mask {
			case "-userfaultfd", "-sigbus":
				withoutRaw(t)
			default:
				usual(t, t.TempDir(), mask != "-wp")
			}
		})
	}
}

// withoutRaw: where there is no userfaultfd, ways 1 and 2 work on plain
// memory, and the others say what is missing.
func withoutRaw(t *testing.T) {
	usual(t, t.TempDir(), false)
	p := fixture.Pager(t, pager.Options{Budget: 32 * page})
	r := fixture.Map(t, p, fixture.Memory(t, 100*page, 1), pager.RegionOptions{})
	if err := r.Raw(); !errors.Is(err, pager.ErrNotSupported) || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Raw: %v, want ErrNotSupported", err)
	}
	if b := r.Bytes(); b != nil {
		t.Errorf("Bytes has %d bytes that nobody serves", len(b))
	}
	ran := false
	fn := func([]byte) error { ran = true; return nil }
	if err := r.View(context.Background(), fn); !errors.Is(err, pager.ErrNotSupported) {
		t.Errorf("View: %v, want ErrNotSupported", err)
	}
	if err := r.Update(context.Background(), fn); !errors.Is(err, pager.ErrNotSupported) {
		t.Errorf("Update: %v, want ErrNotSupported", err)
	}
	if ran {
		t.Error("a closure ran over memory that nobody serves")
	}
	l, err := r.LockEventfd(10, 3*page, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Unlock()
	if err := l.Wait(context.Background()); err != nil {
		t.Error(err)
	}
	pins := make([]pager.Pin, 2)
	if err := r.AcquireV(context.Background(), []pager.Range{{Off: 0, Len: 10}, {Off: 20 * page, Len: page}}, pins); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fixture.Check(pins[0].Bytes(), 0, 1), fixture.Check(pins[1].Bytes(), 20*page, 1)); err != nil {
		t.Error(err)
	}
	pins[0].Release()
	pins[1].Release()
	if pin, ok := r.TryAcquire(11, page); ok {
		pin.Release()
	} else {
		t.Error("TryAcquire of a locked page says no")
	}
}
