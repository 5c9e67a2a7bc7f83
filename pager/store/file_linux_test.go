package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/aio"
)

func TestOpenRefusesWhatCannotBeAStore(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: sock}); err != nil {
		t.Fatal(err)
	}
	empty := writeFile(t, filepath.Join(dir, "empty"), nil)
	full := writeFile(t, filepath.Join(dir, "full"), make([]byte, 100))
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	ro := FileOptions{ReadOnly: true}
	for _, c := range []struct {
		name, path string
		o          FileOptions
		want       error
	}{
		{"empty path", "", FileOptions{}, fs.ErrNotExist},
		{"missing file", missing, FileOptions{}, fs.ErrNotExist},
		{"missing file, read-only", missing, ro, fs.ErrNotExist},
		{"missing directory", filepath.Join(missing, "x"), FileOptions{Create: true, Size: 1}, fs.ErrNotExist},
		{"a file as directory", filepath.Join(full, "x"), FileOptions{}, unix.ENOTDIR},
		{"NUL in the path", "a\x00b", FileOptions{}, unix.EINVAL},
		{"too long a name", strings.Repeat("x", 300), FileOptions{}, unix.ENAMETOOLONG},
		{"a ring of links", loop, FileOptions{}, unix.ELOOP},
		{"directory", dir, FileOptions{}, unix.EISDIR},
		{"directory, read-only", dir, ro, unix.EISDIR},
		{"directory, create", dir, FileOptions{Create: true, Size: 4096}, unix.EISDIR},
		{"empty file", empty, FileOptions{}, ErrEmpty},
		{"empty file, read-only", empty, ro, ErrEmpty},
		{"FIFO", fifo, FileOptions{}, ErrNotSupported},
		{"FIFO, read-only", fifo, ro, ErrNotSupported},
		{"socket", sock, FileOptions{}, unix.ENXIO},
		{"character device", "/dev/zero", FileOptions{}, errors.ErrUnsupported},
		{"negative size", full, FileOptions{Size: -1}, unix.EINVAL},
		{"create without size", missing, FileOptions{Create: true}, unix.EINVAL},
		{"create read-only", missing, FileOptions{Create: true, Size: 1, ReadOnly: true}, unix.EINVAL},
		{"size read-only", full, FileOptions{Size: 1, ReadOnly: true}, unix.EINVAL},
		{"shorter than asked for", full, FileOptions{Size: 101}, unix.EINVAL},
		{"a size no file can have", missing, FileOptions{Create: true, Size: 1<<63 - 1}, unix.EFBIG},
		{"unknown Direct", full, FileOptions{Direct: 9}, unix.EINVAL},
		{"unknown Lock", full, FileOptions{Lock: 9}, unix.EINVAL},
	} {
		before := openFDs(t)
		s, err := OpenFile(c.path, c.o)
		if s != nil {
			s.Close()
			t.Errorf("%s: got a store", c.name)
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		} else if err != nil && !strings.HasPrefix(err.Error(), "store: ") {
			t.Errorf("%s: error %q does not say where it comes from", c.name, err)
		}
		if after := openFDs(t); after != before {
			t.Errorf("%s: %d descriptors leaked", c.name, after-before)
		}
		if _, err := os.Lstat(missing); err == nil {
			t.Errorf("%s: left a file behind", c.name)
			os.Remove(missing)
		}
	}
}

func openFDs(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// A store over a file of any length reads its tail as zeros, writes it without
// growing the file, and touches nothing else.
func TestAnyLength(t *testing.T) {
	places := map[string]func(testing.TB) string{"disk": func(t testing.TB) string { return t.TempDir() }, "tmpfs": tmpfs}
	modes := map[string]Direct{"auto": DirectAuto, "off": DirectOff}
	for place, dir := range places {
		for mode, direct := range modes {
			for _, kind := range []aio.Kind{aio.Threads, aio.LinuxAIO, aio.IOURing} {
				for _, size := range []int{1, 511, 512, 513, 4095, 4096, 4097, 4608, 5000, 65536, 65537, 99999} {
					t.Run(fmt.Sprintf("%s/%s/%v/%d", place, mode, kind, size), func(t *testing.T) {
						anyLength(t, filepath.Join(dir(t), "data"), size, direct, newRig(t, kind))
					})
				}
			}
		}
	}
}

func anyLength(t *testing.T, path string, size int, direct Direct, r *rig) {
	old := stamped(size, 1)
	writeFile(t, path, old)
	s := mustOpen(t, path, FileOptions{Direct: direct})
	if s.Size() != int64(size) || !s.Writable() || s.String() != path {
		t.Fatalf("Size %d, Writable %v, %s", s.Size(), s.Writable(), s)
	}
	if bs := s.BlockSize(); bs < 1 || bs&(bs-1) != 0 || bs > 4096 {
		t.Fatalf("BlockSize %d", bs)
	}
	const page = 4096
	whole := (size + page - 1) &^ (page - 1)
	buf := pages(t, whole+page)

	// All in one op, beyond the end.
	for i := range buf {
		buf[i] = 0
	}
	if n := r.read(s, 0, buf); n != size || !bytes.Equal(buf[:size], old) {
		t.Fatalf("read returned %d of %d bytes, or wrong ones", n, size)
	}
	if n := r.read(s, int64(whole), buf[:page]); n != 0 {
		t.Fatalf("read past the end returned %d bytes", n)
	}
	// Page by page, with what lies past the end not zero: it must not arrive.
	now := stamped(size, 2)
	for off := 0; off < whole; off += page {
		stamp(buf[:page], int64(off), 2)
		r.write(s, int64(off), buf[:page])
	}
	r.write(s, int64(whole), buf[:page]) // wholly past the end
	if err := r.flush(s); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, path); !bytes.Equal(got, now) {
		t.Fatalf("after page writes: %d bytes, want %d; equal %v", len(got), size, bytes.Equal(got, now))
	}
	// In one op across the tail.
	stamp(buf[:whole], 0, 3)
	r.write(s, 0, buf[:whole])
	if got := contents(t, path); !bytes.Equal(got, stamped(size, 3)) {
		t.Fatal("after one write across the tail the file is wrong")
	}
	if n := r.read(s, 0, buf); n != size || !bytes.Equal(buf[:size], stamped(size, 3)) {
		t.Fatal("what was written does not read back")
	}
}

// Neighbours of the tail, and the tail itself, are written at the same time
// through different ways into the file.
func TestTailWritesAndReadsMixUnderLoad(t *testing.T) {
	const size = 5*4096 + 700
	rounds := 60
	if os.Getenv("UFFDPAGER_TORTURE") != "" {
		rounds = 20000
	}
	path := tempFile(t, stamped(size, 0))
	s := mustOpen(t, path, FileOptions{})
	r := newRig(t, aio.LinuxAIO)
	w, in := pages(t, 6*4096), pages(t, 6*4096)
	for round := 1; round <= rounds; round++ {
		var ops []*aio.Op
		for p := 0; p < 6; p++ {
			b := w[p*4096:][:4096]
			stamp(b, int64(p*4096), byte(round*2))
			ops = append(ops, &aio.Op{Code: aio.Write, Off: int64(p * 4096), Buf: b})
		}
		r.do(s, ops...)
		for _, op := range ops {
			if op.Err != nil || op.N != 4096 {
				t.Fatalf("write at %d: N %d, %v", op.Off, op.N, op.Err)
			}
		}
		var n int
		ops = ops[:0]
		for p := 0; p < 6; p++ {
			ops = append(ops, &aio.Op{Code: aio.Read, Off: int64(p * 4096), Buf: in[p*4096:][:4096]})
		}
		r.do(s, ops...)
		for _, op := range ops {
			n += op.N
		}
		if n != size || !bytes.Equal(in[:size], stamped(size, byte(round*2))) {
			t.Fatalf("round %d: read %d bytes, or wrong ones", round, n)
		}
	}
}

func TestAFileThatShrinksEndsReadsShort(t *testing.T) {
	for _, direct := range []Direct{DirectAuto, DirectOff} {
		path := tempFile(t, stamped(5*4096, 1))
		s := mustOpen(t, path, FileOptions{ReadOnly: true, Direct: direct})
		if err := os.Truncate(path, 4096+100); err != nil {
			t.Fatal(err)
		}
		r := newRig(t, aio.Threads)
		buf := pages(t, 8192)
		if s.Size() != 5*4096 {
			t.Fatalf("Size follows the file: %d", s.Size())
		}
		if n := r.read(s, 4096, buf[:4096]); n != 100 {
			t.Errorf("direct %v: cut page: N %d, want 100", s.Direct(), n)
		}
		if n := r.read(s, 4*4096, buf[:4096]); n != 0 {
			t.Errorf("direct %v: lost page: N %d, want 0", s.Direct(), n)
		}
	}
}

func TestAFileThatGrowsBehindOurBackShowsNothingPastSize(t *testing.T) {
	for _, direct := range []Direct{DirectAuto, DirectOff} {
		path := tempFile(t, stamped(4096+100, 1))
		s := mustOpen(t, path, FileOptions{ReadOnly: true, Direct: direct})
		writeFile(t, path, stamped(5*4096, 1))
		buf := pages(t, 8192)
		n := newRig(t, aio.Threads).read(s, 4096, buf)
		if n != 100 || !bytes.Equal(buf[:100], stamped(4196, 1)[4096:]) || bytes.ContainsFunc(buf[100:], func(r rune) bool { return r != 0 }) {
			t.Errorf("direct %v: N %d; bytes past Size shown", s.Direct(), n)
		}
	}
}

func TestDirectIsRequiredOrSaidToBeOff(t *testing.T) {
	path := tempFile(t, make([]byte, 8192))
	off := mustOpen(t, path, FileOptions{ReadOnly: true, Direct: DirectOff})
	if k, ok := off.Kernel(); !ok || k.Direct || off.Direct() || off.WhyBuffered() == nil || off.BlockSize() != 1 || k.FD < 0 {
		t.Errorf("DirectOff: %+v, %v, block %d", k, off.WhyBuffered(), off.BlockSize())
	}
	s, err := OpenFile(path, FileOptions{ReadOnly: true, Direct: DirectRequire})
	if err != nil {
		t.Skipf("no O_DIRECT in the temporary directory: %v", err)
	}
	defer s.Close()
	k, ok := s.Kernel()
	if flags, err := unix.FcntlInt(uintptr(k.FD), unix.F_GETFL, 0); err != nil || !ok || !k.Direct || flags&unix.O_DIRECT == 0 || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("DirectRequire: %+v, flags %#x, %v", k, flags, err)
	}
}

// procfs takes no O_DIRECT and is everywhere, but its files have no length;
// sysfs files have one.
func TestAutoFallsBackToThePageCache(t *testing.T) {
	const path = "/sys/kernel/notes"
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		t.Skip("no " + path)
	}
	if s, err := OpenFile(path, FileOptions{ReadOnly: true, Direct: DirectRequire}); err == nil {
		s.Close()
		t.Fatal("DirectRequire on sysfs succeeded")
	} else if !errors.Is(err, unix.EINVAL) {
		t.Errorf("DirectRequire on sysfs: %v does not unwrap to EINVAL", err)
	}
	s := mustOpen(t, path, FileOptions{ReadOnly: true})
	if s.Direct() || s.WhyBuffered() == nil {
		t.Fatal("sysfs is direct")
	}
	buf := make([]byte, s.Size())
	if n := newRig(t, aio.Threads).read(s, 0, buf); n != len(buf) || !bytes.Equal(buf, contents(t, path)) {
		t.Errorf("read %d of %d bytes, or wrong ones", n, len(buf))
	}
}

func TestReadOnlyStoreRefusesWrites(t *testing.T) {
	path := tempFile(t, stamped(5000, 1))
	s := mustOpen(t, path, FileOptions{ReadOnly: true})
	r := newRig(t, aio.Threads)
	for _, off := range []int64{0, 4096, 8192} {
		op := &aio.Op{Code: aio.Write, Off: off, Buf: pages(t, 4096)}
		if r.do(s, op); !errors.Is(op.Err, ErrReadOnly) || op.N != 0 {
			t.Errorf("write at %d: N %d, %v", off, op.N, op.Err)
		}
	}
	if err := r.flush(s); !errors.Is(err, ErrReadOnly) {
		t.Errorf("flush: %v", err)
	}
	if err := s.Truncate(1); !errors.Is(err, ErrReadOnly) {
		t.Errorf("truncate: %v", err)
	}
	if err := s.Discard(0, 1); !errors.Is(err, ErrReadOnly) {
		t.Errorf("discard: %v", err)
	}
	if !bytes.Equal(contents(t, path), stamped(5000, 1)) {
		t.Error("the file has changed")
	}
}

func TestNonsenseOpsFailAndDoNoHarm(t *testing.T) {
	path := tempFile(t, stamped(5000, 1))
	s := mustOpen(t, path, FileOptions{})
	r := newRig(t, aio.Threads)
	for _, off := range []int64{-1, -4096, 1<<63 - 1, 1<<63 - 4096} {
		for _, code := range []aio.Code{aio.Read, aio.Write} {
			op := &aio.Op{Code: code, Off: off, Buf: pages(t, 4096)}
			r.do(s, op)
			if past := code == aio.Write && off > 0 || code == aio.Read && off > 0; op.Err == nil && !past {
				t.Errorf("%v at %d: no error", code, off)
			}
		}
	}
	for _, bad := range [][2]int64{{-1, 1}, {0, -1}, {1 << 62, 1<<63 - 1}} {
		if err := s.Discard(bad[0], bad[1]); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Discard(%d, %d): %v", bad[0], bad[1], err)
		}
	}
	if err := s.Truncate(-1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Truncate(-1): %v", err)
	}
	if !bytes.Equal(contents(t, path), stamped(5000, 1)) {
		t.Error("the file has changed")
	}
}

func TestUseAfterCloseIsAnError(t *testing.T) {
	s := mustOpen(t, tempFile(t, make([]byte, 8192)), FileOptions{})
	r := newRig(t, aio.Threads)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, code := range []aio.Code{aio.Read, aio.Write, aio.Flush} {
		op := &aio.Op{Code: code, Buf: pages(t, 4096)}
		if r.do(s, op); !errors.Is(op.Err, fs.ErrClosed) {
			t.Errorf("%v: %v", code, op.Err)
		}
	}
	if err := s.Truncate(1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("truncate: %v", err)
	}
	if err := s.Discard(0, 1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("discard: %v", err)
	}
	if _, ok := s.Kernel(); ok {
		t.Error("a closed store has a kernel form")
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new")
	s, err := OpenFile(path, FileOptions{Create: true, Size: 10000})
	if err != nil {
		t.Fatal(err)
	}
	if s.Size() != 10000 || len(contents(t, path)) != 10000 {
		t.Errorf("Size %d, file %d", s.Size(), len(contents(t, path)))
	}
	s.Close()
	// Again, smaller: what is there stays.
	if s, err = OpenFile(path, FileOptions{Create: true, Size: 500}); err != nil || s.Size() != 10000 {
		t.Fatalf("second Create: %v", err)
	}
	s.Close()
	// Through a dangling link.
	link := filepath.Join(t.TempDir(), "link")
	target := filepath.Join(t.TempDir(), "target")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenFile(link, FileOptions{Create: true, Size: 7}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if got := contents(t, target); len(got) != 7 {
		t.Errorf("target has %d bytes", len(got))
	}
	// An empty file is given the size too.
	empty := tempFile(t, nil)
	if s, err = OpenFile(empty, FileOptions{Size: 4097}); err != nil || s.Size() != 4097 {
		t.Fatalf("empty file with Size: %v", err)
	}
	s.Close()
}

func TestTruncateAndDiscard(t *testing.T) {
	for place, dir := range map[string]string{"disk": t.TempDir(), "tmpfs": tmpfs(t)} {
		for _, direct := range []Direct{DirectAuto, DirectOff} {
			t.Run(fmt.Sprintf("%s/%d", place, direct), func(t *testing.T) {
				path := filepath.Join(dir, "data")
				os.Remove(path)
				truncateAndDiscard(t, writeFile(t, path, stamped(1<<20, 1)), direct)
			})
		}
	}
}

func truncateAndDiscard(t *testing.T, path string, direct Direct) {
	s := mustOpen(t, path, FileOptions{Direct: direct})
	defer s.Close()
	r := newRig(t, aio.Threads)
	model := stamped(1<<20, 1)
	check := func(what string) {
		t.Helper()
		if got := contents(t, path); !bytes.Equal(got, model) {
			t.Fatalf("%s: file has %d bytes, model %d, and they differ", what, len(got), len(model))
		}
		buf := pages(t, (len(model)+8191)&^4095)
		if n := r.read(s, 0, buf); n != len(model) || !bytes.Equal(buf[:n], model) || s.Size() != int64(n) {
			t.Fatalf("%s: store reads %d bytes of Size %d, model %d, or wrong ones", what, n, s.Size(), len(model))
		}
	}
	before := blocksOf(t, path)
	for _, d := range [][2]int64{{4096, 8192}, {100, 50}, {65536, 512 << 10}, {4000, 5000}, {1<<20 - 10, 1 << 40}, {2 << 20, 5}, {7, 0}} {
		if err := s.Discard(d[0], d[1]); err != nil {
			t.Fatalf("Discard(%d, %d): %v", d[0], d[1], err)
		}
		lo, hi := min(d[0], int64(len(model))), min(d[0]+d[1], int64(len(model)))
		clear(model[lo:hi])
		check(fmt.Sprintf("Discard(%d, %d)", d[0], d[1]))
	}
	if after := blocksOf(t, path); after >= before {
		t.Errorf("Discard gave nothing back: %d blocks before, %d after", before, after)
	}
	page := pages(t, 4096)
	for seed, size := range []int{700000, 700001, 4097, 8192, 100000, 511, 1, 5000} {
		if err := s.Truncate(int64(size)); err != nil {
			t.Fatalf("Truncate(%d): %v", size, err)
		}
		model = append(model[:min(size, len(model))], make([]byte, max(0, size-len(model)))...)
		check(fmt.Sprintf("Truncate(%d)", size))
		last := int64(size-1) &^ 4095
		stamp(page, last, byte(seed+5))
		r.write(s, last, page)
		copy(model[last:], page)
		check(fmt.Sprintf("tail write at size %d", size))
	}
}

func blocksOf(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

func TestOpenAndCloseLeakNothing(t *testing.T) {
	path := tempFile(t, make([]byte, 5000))
	before, threads := openFDs(t), runtime.NumGoroutine()
	for range 200 {
		s, err := OpenFile(path, FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors leaked", after-before)
	}
	if after := runtime.NumGoroutine(); after > threads {
		t.Errorf("%d goroutines leaked", after-threads)
	}
}
