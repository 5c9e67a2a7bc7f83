package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// runRole is the child's main.
func runRole(role string) int {
	path := os.Getenv("UFFDPAGER_STORE_TEST_FILE")
	switch role {
	case "open": // may another process open it for writing?
		s, err := OpenFile(path, FileOptions{})
		switch {
		case errors.Is(err, ErrBusy):
			fmt.Print("busy")
		case err != nil:
			fmt.Print(err)
		default:
			s.Close()
			fmt.Print("open")
		}
	case "nobody":
		return nobody(path)
	default:
		fmt.Println("unknown role", role)
		return 1
	}
	return 0
}

func TestAWritableFileHasOneOwner(t *testing.T) {
	path := tempFile(t, make([]byte, 8192))
	env := "UFFDPAGER_STORE_TEST_FILE=" + path
	s := mustOpen(t, path, FileOptions{})
	if _, err := OpenFile(path, FileOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("same process, same file: %v", err)
	}
	if got := child(t, "open", env); got != "busy" {
		t.Errorf("another process: %s", got)
	}
	link := path + "-link"
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(link, FileOptions{Create: true, Size: 1}); !errors.Is(err, ErrBusy) {
		t.Errorf("by another name: %v", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := NewFile(f, FileOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("NewFile: %v", err)
	}
	mustOpen(t, path, FileOptions{ReadOnly: true}).Close()
	mustOpen(t, path, FileOptions{Lock: LockNever}).Close()
	if _, err := OpenFile(path, FileOptions{ReadOnly: true, Lock: LockAlways}); !errors.Is(err, ErrBusy) {
		t.Errorf("LockAlways beside a writer: %v", err)
	}
	// Closing other descriptors of the file must not have dropped the lock (as
	// a POSIX lock would).
	if got := child(t, "open", env); got != "busy" {
		t.Errorf("after other opens were closed: %s", got)
	}
	s.Close()
	if got := child(t, "open", env); got != "open" {
		t.Errorf("after Close: %s", got)
	}
}

func TestReadersShareAndMayKeepWritersAway(t *testing.T) {
	path := tempFile(t, make([]byte, 8192))
	env := "UFFDPAGER_STORE_TEST_FILE=" + path
	a := mustOpen(t, path, FileOptions{ReadOnly: true})
	if got := child(t, "open", env); got != "open" {
		t.Errorf("writer beside a reader without a lock: %s", got)
	}
	b := mustOpen(t, path, FileOptions{ReadOnly: true, Lock: LockAlways})
	c := mustOpen(t, path, FileOptions{ReadOnly: true, Lock: LockAlways})
	if got := child(t, "open", env); got != "busy" {
		t.Errorf("writer beside readers with locks: %s", got)
	}
	a.Close()
	b.Close()
	c.Close()
	if got := child(t, "open", env); got != "open" {
		t.Errorf("after the readers: %s", got)
	}
}

func TestNewFileLeavesTheCallersFileAlone(t *testing.T) {
	path := tempFile(t, stamped(5000, 1))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	os.Remove(path) // it needs no name
	if _, err := f.Seek(17, 0); err != nil {
		t.Fatal(err)
	}
	s, err := NewFile(f, FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if at, err := f.Seek(0, 1); err != nil || at != 17 {
		t.Errorf("offset %d, %v", at, err)
	}
	var flags int
	conn, _ := f.SyscallConn()
	conn.Control(func(fd uintptr) { flags, _ = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	if flags&unix.O_DIRECT != 0 {
		t.Error("the caller's file became direct")
	}
	f.Close()
	r := newRig(t, aio.Threads)
	buf := pages(t, 8192)
	if n := r.read(s, 0, buf); n != 5000 || !bytes.Equal(buf[:n], stamped(5000, 1)) {
		t.Errorf("read %d bytes after the caller closed its file", n)
	}
	r.write(s, 4096, buf[:4096])
}

func TestNewFileRefuses(t *testing.T) {
	path := tempFile(t, make([]byte, 100))
	open := func(flag int) *os.File {
		f, err := os.OpenFile(path, flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	closed := open(os.O_RDONLY)
	closed.Close()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	ro := FileOptions{ReadOnly: true}
	for _, c := range []struct {
		name string
		f    *os.File
		o    FileOptions
		want error
	}{
		{"nil", nil, FileOptions{}, unix.EINVAL},
		{"closed", closed, ro, fs.ErrClosed},
		{"read-only for a writable store", open(os.O_RDONLY), FileOptions{}, ErrReadOnly},
		{"write-only", open(os.O_WRONLY), FileOptions{}, unix.EBADF},
		{"write-only for a read-only store", open(os.O_WRONLY), ro, unix.EBADF},
		{"O_PATH", open(unix.O_PATH), ro, unix.EBADF},
		{"directory", dir, ro, unix.EISDIR},
		{"pipe", pr, ro, ErrNotSupported},
		{"create", open(os.O_RDWR), FileOptions{Create: true, Size: 1}, unix.EINVAL},
	} {
		before := openFDs(t)
		if s, err := NewFile(c.f, c.o); s != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if after := openFDs(t); after != before {
			t.Errorf("%s: %d descriptors leaked", c.name, after-before)
		}
	}
}

func TestMemfd(t *testing.T) {
	fd, err := unix.MemfdCreate("store", unix.MFD_CLOEXEC)
	if err != nil {
		t.Skip(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	defer f.Close()
	s, err := NewFile(f, FileOptions{Size: 10000})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := newRig(t, aio.Threads)
	buf := pages(t, 12288)
	stamp(buf, 0, 3)
	r.write(s, 0, buf)
	clear(buf)
	if n := r.read(s, 0, buf); n != 10000 || !bytes.Equal(buf[:n], stamped(10000, 3)) {
		t.Errorf("read back %d bytes, or wrong ones", n)
	}
}

func TestWithoutPermission(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have permissions to drop")
	}
	path := tempFile(t, stamped(8192, 1))
	if got := child(t, "nobody", "UFFDPAGER_STORE_TEST_FILE="+path); got != "ok" {
		t.Error(got)
	}
}

// nobody runs as a thread whose file accesses are those of uid 65534. The file
// belongs to root, mode 0600.
func nobody(path string) int {
	runtime.LockOSThread()
	var files [2]*os.File
	for i, flag := range []int{os.O_RDWR, os.O_RDWR | unix.O_DIRECT} {
		f, err := os.OpenFile(path, flag, 0)
		if err != nil {
			fmt.Print(err)
			return 0
		}
		files[i] = f
	}
	unix.Setfsgid(65534)
	unix.Setfsuid(65534)
	for _, o := range []FileOptions{{}, {ReadOnly: true}, {Create: true, Size: 1}} {
		if _, err := OpenFile(path, o); !errors.Is(err, fs.ErrPermission) || !errors.Is(err, unix.EACCES) {
			fmt.Printf("OpenFile %+v: %v", o, err)
			return 0
		}
	}
	// What was handed over can be used all the same, as it is.
	for i, f := range files {
		s, err := NewFile(f, FileOptions{})
		if err != nil {
			fmt.Printf("NewFile: %v", err)
			return 0
		}
		if d := s.(*File).Direct(); d != (i == 1) {
			fmt.Printf("file %d: Direct %v", i, d)
			return 0
		}
		if _, err := NewFile(files[1-i], FileOptions{}); !errors.Is(err, ErrBusy) {
			fmt.Printf("second owner: %v", err)
			return 0
		}
		if i == 1 {
			// Direct, and no way to a second descriptor: an odd length is refused
			// before anything has happened.
			if err := s.Truncate(5000); !errors.Is(err, unix.EACCES) || s.Size() != 8192 {
				fmt.Printf("truncate to an odd length: %v, Size %d", err, s.Size())
				return 0
			}
		} else if err := s.Truncate(5000); err != nil {
			fmt.Print(err)
			return 0
		} else if err := s.Truncate(8192); err != nil {
			fmt.Print(err)
			return 0
		}
		if err := s.Close(); err != nil { // gives the lock back although f stays open
			fmt.Print(err)
			return 0
		}
	}
	fmt.Print("ok")
	return 0
}
