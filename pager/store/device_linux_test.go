package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// loopDevice attaches a file of that size to a loop device.
func loopDevice(t *testing.T, sector int, size int64) (dev, backing string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a loop device needs root")
	}
	backing = tempFile(t, nil)
	if err := os.Truncate(backing, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", fmt.Sprint(sector), backing).CombinedOutput()
	if err != nil {
		t.Skipf("losetup: %v: %s", err, out)
	}
	lines := strings.Fields(string(out)) // a warning may come first
	dev = lines[len(lines)-1]
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return dev, backing
}

func TestBlockDevice(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		for _, direct := range []Direct{DirectRequire, DirectOff} {
			t.Run(fmt.Sprintf("%d/%d", sector, direct), func(t *testing.T) { blockDevice(t, sector, direct) })
		}
	}
}

func blockDevice(t *testing.T, sector int, direct Direct) {
	const size = 4<<20 + 4096
	dev, backing := loopDevice(t, sector, size)
	s := mustOpen(t, dev, FileOptions{Direct: direct})
	defer s.Close() // before the device goes
	if s.Size() != size || s.Direct() != (direct == DirectRequire) || s.Direct() && s.BlockSize() != sector {
		t.Fatalf("Size %d, BlockSize %d, Direct %v", s.Size(), s.BlockSize(), s.Direct())
	}
	r := newRig(t, aio.LinuxAIO)
	buf, model := pages(t, size+4096), stamped(size, 4)
	copy(buf, model)
	r.write(s, 0, buf) // runs past the end of the device
	if err := r.flush(s); err != nil {
		t.Fatal(err)
	}
	check := func(what string) {
		t.Helper()
		clear(buf)
		if n := r.read(s, 0, buf); n != size || !bytes.Equal(buf[:size], model) {
			t.Fatalf("%s: read %d bytes, or wrong ones", what, n)
		}
	}
	check("after writing")
	if n := r.read(s, size, buf[:4096]); n != 0 {
		t.Errorf("read past the end: %d", n)
	}
	before := blocksOf(t, backing)
	for _, d := range [][2]int64{{8192, 1 << 20}, {100, 50}, {2<<20 + 100, 9000}, {3<<20 - 1, 2}, {size - 700, 1 << 30}, {size, 9}, {5, 0}} {
		if err := s.Discard(d[0], d[1]); err != nil {
			t.Fatalf("Discard(%d, %d): %v", d[0], d[1], err)
		}
		clear(model[d[0]:min(d[0]+d[1], size)])
		check(fmt.Sprintf("Discard(%d, %d)", d[0], d[1]))
	}
	if err := r.flush(s); err != nil {
		t.Fatal(err)
	}
	if after := blocksOf(t, backing); after >= before {
		t.Errorf("Discard gave nothing back: %d blocks before, %d after", before, after)
	}
	if err := s.Truncate(size); err != nil {
		t.Errorf("Truncate to the length it has: %v", err)
	}
	if err := s.Truncate(size / 2); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Truncate of a device: %v", err)
	}
}

func TestAWritableDeviceHasOneOwner(t *testing.T) {
	dev, _ := loopDevice(t, 512, 1<<20)
	s := mustOpen(t, dev, FileOptions{})
	defer s.Close()
	if _, err := OpenFile(dev, FileOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("second writer: %v", err)
	}
	// The same device by a node of its own is another inode: only O_EXCL sees it.
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(t.TempDir(), "node")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)); err == nil {
		if s, err := OpenFile(node, FileOptions{}); !errors.Is(err, ErrBusy) || !errors.Is(err, unix.EBUSY) {
			if errors.Is(err, unix.EACCES) {
				t.Skip("no device nodes here")
			}
			t.Errorf("second writer by another node: %v %v", s, err)
		}
	}
	mustOpen(t, dev, FileOptions{ReadOnly: true}).Close()
	if _, err := OpenFile(dev, FileOptions{Size: 2 << 20, Lock: LockNever}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a device shorter than asked for: %v", err)
	}
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := NewFile(f, FileOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("NewFile: %v", err)
	}
	s.Close()
	n, err := NewFile(f, FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	dev2, _ := loopDevice(t, 512, 0)
	if s, err := OpenFile(dev2, FileOptions{ReadOnly: true}); !errors.Is(err, ErrEmpty) {
		t.Errorf("a device without a medium: %v %v", s, err)
	}
}
