package store

import (
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Direct says whether a file is read and written past the page cache
// (O_DIRECT, open(2)).
type Direct uint8

const (
	// DirectAuto uses O_DIRECT where the file system takes it, and otherwise
	// the page cache with POSIX_FADV_RANDOM. Kernel().Direct says which.
	DirectAuto Direct = iota
	// DirectRequire makes the open fail where O_DIRECT is not to be had.
	DirectRequire
	// DirectOff uses the page cache.
	DirectOff
)

// Lock says which opens take an open-file-description lock on the whole file
// (F_OFD_SETLK, fcntl(2)). Such a lock is advisory: it is seen by those who
// ask for one. It is never waited for.
type Lock uint8

const (
	// LockWriters: a writable open takes an exclusive lock, a read-only one
	// none. On a block device a writable open is also O_EXCL, so that a
	// mounted device is ErrBusy.
	LockWriters Lock = iota
	// LockAlways: as LockWriters, and a read-only open takes a shared lock,
	// which keeps writers away while it lasts.
	LockAlways
	// LockNever takes none, for file systems without locks or when the caller
	// has its own protocol.
	LockNever
)

// FileOptions configure OpenFile and NewFile. The zero value opens what exists
// for reading and writing, direct where possible, locked.
type FileOptions struct {
	ReadOnly bool

	// Create makes a regular file that does not exist (mode 0666 less the
	// umask) and needs Size. Its name is on disk when OpenFile returns.
	Create bool

	// Size in bytes is the length given to a regular file that is new or
	// empty. A file that holds data keeps its length, and a device has its
	// own; one that is shorter than Size is an error. 0: none given.
	Size int64

	Direct Direct
	Lock   Lock
}

// invalid wraps EINVAL with what was wrong.
func invalid(format string, args ...any) error {
	return fmt.Errorf("store: "+format+": %w", append(args, syscall.EINVAL)...)
}

func (o FileOptions) check() error {
	switch {
	case o.Size < 0:
		return invalid("size %d is negative", o.Size)
	case o.ReadOnly && o.Create:
		return invalid("ReadOnly and Create exclude each other")
	case o.ReadOnly && o.Size != 0:
		return invalid("ReadOnly and Size exclude each other")
	case o.Create && o.Size == 0:
		return invalid("Create needs a Size")
	case o.Direct > DirectOff:
		return invalid("unknown Direct %d", o.Direct)
	case o.Lock > LockNever:
		return invalid("unknown Lock %d", o.Lock)
	}
	return nil
}

// OpenFile opens a regular file or a block device. Symbolic links are
// followed. It may wait for the file system.
//
// Errors unwrap to the errno (and so answer fs.ErrNotExist, fs.ErrPermission)
// or to ErrBusy, ErrEmpty, or ErrNotSupported for what is neither a file nor
// a block device. The Store is a *File.
func OpenFile(path string, o FileOptions) (Store, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	f, err := openPath(path, o)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// NewFile makes a store of an open file, which stays the caller's and may be
// closed at once: the store opens the file anew through /proc/self/fd, so that
// its O_DIRECT and its lock do not touch f. Where that is refused it duplicates
// f and then shares f's flags (direct only if f is) and its lock.
//
// f must be open for writing unless o.ReadOnly. Create is an error. Otherwise
// as OpenFile.
func NewFile(f *os.File, o FileOptions) (Store, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if f == nil {
		return nil, invalid("nil file")
	}
	if o.Create {
		return nil, invalid("NewFile cannot create")
	}
	s, err := reopen(f, o)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// File is the Store over a regular file or a block device.
//
// The tail. O_DIRECT moves whole blocks, but a file may have any length and
// must keep it. So when Size is no multiple of the block, everything from the
// last page-cache page boundary before Size on is written through a second,
// buffered descriptor:
//
//	0 ───────── direct writes ─────────▶ cut ── buffered ──▶ Size
//	                                     └ a page boundary
//
// The cut is a page and not a block boundary because the page cache reads and
// writes back whole pages: a direct write into the page of a buffered one
// could be overwritten with what the cache read before.
type File struct {
	name     string
	fd       int
	block    int64 // alignment of fd's transfers; 1 when buffered
	page     int64 // page-cache page, at least block
	size     atomic.Int64
	writable bool
	device   bool
	created  bool  // there was no such file
	shared   bool  // fd shares its open file description with the caller's
	locked   bool  // fd holds a lock
	why      error // why fd is not O_DIRECT; nil: it is
	closed   atomic.Bool

	mu     sync.Mutex // orders tail writes with Truncate, and guards tailFD
	tailFD int        // the buffered descriptor; -1: not opened yet
}

var _ Store = (*File)(nil)

// Size implements Store.
func (f *File) Size() int64 { return f.size.Load() }

// BlockSize implements Store. It is what STATX_DIOALIGN or BLKSSZGET say, and
// 1 for a file that goes through the page cache.
func (f *File) BlockSize() int { return int(f.block) }

// Writable implements Store.
func (f *File) Writable() bool { return f.writable }

// Created reports whether OpenFile made the file, which was not there before.
func (f *File) Created() bool { return f.created }

// Direct reports whether transfers bypass the page cache.
func (f *File) Direct() bool { return f.why == nil }

// WhyBuffered says why Direct is false: DirectOff was asked for or what the
// file system answered. It is nil for a direct file.
func (f *File) WhyBuffered() error { return f.why }

// Kernel implements Store.
func (f *File) Kernel() (Kernel, bool) {
	if f.closed.Load() {
		return Kernel{FD: -1}, false
	}
	return Kernel{FD: f.fd, Direct: f.Direct()}, true
}

// String is the path the file was opened by.
func (f *File) String() string { return f.name }

func (f *File) fail(what string, err error) error {
	return fmt.Errorf("store: %s %s: %w", what, f.name, err)
}

// usable is the check before an operation that changes the file.
func (f *File) usable(what string) error {
	switch {
	case f.closed.Load():
		return f.fail(what, fs.ErrClosed)
	case !f.writable:
		return f.fail(what, ErrReadOnly)
	}
	return nil
}

// cut is where direct writes end; see File.
func (f *File) cut(size int64) int64 {
	if size&(f.block-1) == 0 {
		return size
	}
	return size &^ (f.page - 1)
}

// plain reports whether the kernel can do op as it stands. Nonsense (negative
// or overflowing offsets) is plain: the kernel's EINVAL is the answer.
func (f *File) plain(op *aio.Op) bool {
	if f.closed.Load() {
		return false
	}
	switch end := op.Off + int64(len(op.Buf)); op.Code {
	case aio.Read:
		return end <= f.size.Load()
	case aio.Write:
		return f.writable && end <= f.cut(f.size.Load())
	default:
		return f.writable
	}
}

// Start implements Store. All but transfers that reach the tail go to e as
// they are, in runs as long as they come.
func (f *File) Start(e aio.Engine, ops []*aio.Op) {
	run := 0
	for i, op := range ops {
		if f.plain(op) {
			op.FD = f.fd
			continue
		}
		if run < i {
			e.Submit(ops[run:i])
		}
		run = i + 1
		f.startTail(e, op)
	}
	if run < len(ops) {
		e.Submit(ops[run:])
	}
}

// Close implements Store. It releases the lock and the descriptors; a second
// Close does nothing.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	return f.close()
}
