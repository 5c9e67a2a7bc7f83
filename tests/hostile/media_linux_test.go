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
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestOddSizes: the last page is as long as the file, the rest of it zeros
// that never reach the file.
func TestOddSizes(t *testing.T) {
	for _, size := range []int64{1, 2, 511, 512, 513, page - 1, page, page + 1, 5*page + 3} {
		for _, ps := range []int{4 << 10, 64 << 10, 2 << 20} {
			t.Run(fmt.Sprintf("%d/%d", size, ps), func(t *testing.T) {
				path := fixture.File(t, size, 3)
				p := fixture.Pager(t, pager.Options{Budget: 8 * int64(ps)})
				r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true}), pager.RegionOptions{PageSize: ps})
				fixture.NeedRaw(t, r)
				if n := len(r.Bytes()); r.Len() != size || int64(n) != size {
					t.Fatalf("Len is %d, Bytes has %d; want %d", r.Len(), n, size)
				}
				everything(t, p, r, 3)
				if n, err := r.ReadAt(make([]byte, 10), size-1); n != 1 || err == nil {
					t.Errorf("ReadAt across the end: %d, %v", n, err)
				}
				if info, err := os.Stat(path); err != nil || info.Size() != size {
					t.Errorf("the file has %d bytes now (%v)", info.Size(), err)
				}
			})
		}
	}
}

// TestOddSizesWritten: the last byte can be written, and the file stays as
// long as it is.
func TestOddSizesWritten(t *testing.T) {
	fixture.NeedWrite(t)
	for _, size := range []int64{1, 511, 513, page + 1, 5*page + 3} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			path := fixture.File(t, size, 3)
			p := fixture.Pager(t, pager.Options{Budget: 8 * page})
			r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{})
			r.Bytes()[size-1] = 0xaa
			if err := r.Sync(context.Background()); err != nil {
				t.Fatal(err)
			}
			want := make([]byte, size)
			fixture.Fill(want, 0, 3)
			want[size-1] = 0xaa
			got, err := os.ReadFile(path)
			if err == nil {
				err = fixture.Compare(got, want, 0)
			}
			if err != nil {
				t.Fatalf("the file after Sync: %v", err)
			}
		})
	}
}

func TestTmpfs(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	dir, err := os.MkdirTemp("/dev/shm", "uffdpager-")
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	defer os.RemoveAll(dir)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Skipf("/dev/shm is no tmpfs (%v)", err)
	}
	usual(t, dir, true)
}

// loopDevice attaches a file to a free loop device.
func loopDevice(t *testing.T, path string) string {
	t.Helper()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no loop devices: %v", err)
	}
	defer ctl.Close()
	back, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	for range 20 { // somebody else may take the one that was free
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skipf("no free loop device: %v", err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Skipf("no loop device: %v", err)
		}
		err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(back.Fd()))
		if err == nil {
			t.Cleanup(func() {
				if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
					t.Errorf("detach %s: %v", name, err)
				}
				_ = dev.Close()
			})
			return name
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			t.Skipf("attach %s: %v", name, err)
		}
	}
	t.Skip("all loop devices are taken")
	return ""
}

func TestBlockDevice(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	const size = 2 << 20
	dev := loopDevice(t, fixture.File(t, size, 9))
	p := fixture.Pager(t, pager.Options{Budget: 32 * page})
	r := fixture.Map(t, p, fixture.OpenFile(t, dev, store.FileOptions{ReadOnly: true}), pager.RegionOptions{})
	fixture.NeedRaw(t, r)
	if r.Len() != size {
		t.Fatalf("Len is %d, want %d", r.Len(), size)
	}
	everything(t, p, r, 9)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if !fixture.CanWrite(t) {
		t.Log("only read: there is no write side yet")
		return
	}
	w := fixture.Map(t, p, fixture.OpenFile(t, dev, store.FileOptions{}), pager.RegionOptions{})
	ctx := context.Background()
	want := make([]byte, size)
	fixture.Fill(want, 0, 9)
	copy(want[page-3:], "across two pages")
	if _, err := w.WriteAt([]byte("across two pages"), page-3); err != nil {
		t.Fatal(err)
	}
	clear(want[10*page : 90*page])
	if err := w.Discard(ctx, 10*page, 80*page); err != nil {
		t.Fatal(err)
	}
	if err := w.Resize(ctx, size+page); err == nil {
		t.Error("a device grew")
	}
	if err := w.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dev)
	if err == nil {
		err = fixture.Compare(got, want, 0)
	}
	if err != nil {
		t.Fatalf("the device after Sync: %v", err)
	}
}

// TestShrinkingFile: pages that were there when the file was mapped and are
// not there any more are errors, not zeros.
func TestShrinkingFile(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	path := filepath.Join(t.TempDir(), "shrinks")
	if err := os.Rename(fixture.File(t, 100*page, 3), path); err != nil {
		t.Fatal(err)
	}
	p := fixture.Pager(t, pager.Options{Budget: 32 * page})
	r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true}), pager.RegionOptions{})
	fixture.NeedRaw(t, r)
	b := make([]byte, page)
	if _, err := r.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 50*page+10); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(b, 40*page); err != nil {
		t.Errorf("a page that is still there: %v", err)
	} else if err := fixture.Check(b, 40*page, 3); err != nil {
		t.Error(err)
	}
	for _, off := range []int64{50 * page, 70 * page, 99 * page} {
		for name, err := range failures(r, off, page) {
			var fault *pager.FaultError
			if !errors.As(err, &fault) {
				t.Errorf("%s at %d, beyond the end of the file: %v, want a FaultError", name, off, err)
			} else if fault.Offset/page != off/page {
				t.Errorf("%s at %d: the fault names %d", name, off, fault.Offset)
			}
		}
	}
}

// failures reads a range that should fail, through every way in.
func failures(r *pager.Region, off, n int64) map[string]error {
	ctx := context.Background()
	out := map[string]error{}
	_, out["ReadAt"] = r.ReadAt(make([]byte, n), off)
	pin, err := r.Acquire(ctx, off, n)
	if err == nil {
		pin.Release()
	}
	out["Acquire"] = err
	pins := make([]pager.Pin, 1)
	if out["AcquireV"] = r.AcquireV(ctx, []pager.Range{{Off: off, Len: n}}, pins); out["AcquireV"] == nil {
		pins[0].Release()
	}
	if l, err := r.LockEventfd(off, n, -1); err != nil {
		out["LockEventfd"] = err
	} else {
		out["LockEventfd"] = l.Wait(ctx)
		l.Unlock()
	}
	if r.Raw() == nil {
		buf := make([]byte, n)
		out["Bytes: load"] = pager.Guard(func() error { buf[0] = r.Bytes()[off]; return nil })
		out["Bytes: copy"] = pager.Guard(func() error { copy(buf, r.Bytes()[off:off+n]); return nil })
		out["View"] = r.View(ctx, func(mem []byte) error { copy(buf, mem[off:off+n]); return nil })
		out["View that swallows"] = r.View(ctx, func(mem []byte) (err error) {
			defer func() { _ = recover() }()
			copy(buf, mem[off:off+n])
			return nil
		})
	}
	return out
}
