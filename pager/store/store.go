// Package store says what backs a region: a file, a block device, memory or any
// io.ReaderAt; and, for tests, one of these with scripted faults ([Faulty]) or
// with a record of what a loss of power would leave ([Recording]).
//
// A [Store] is asynchronous: Start begins transfers and each finishes through
// its Done. A store with a kernel form ([Kernel]) can be read and written
// without running any Go code, which is what raw access to a region needs.
package store

import (
	"errors"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Store backs one region. Methods may be called from any goroutine, except
// that Close is called once, last, when nothing is under way.
type Store interface {
	// Size is the length in bytes as of the last successful open or Truncate.
	// It need not be a multiple of anything: what lies between Size and the
	// end of its last page reads as zeros and is never written.
	Size() int64

	// BlockSize is the alignment in bytes (a power of two, at most 4096 unless
	// the device says otherwise) that offsets, lengths and buffers given to
	// Start must have.
	BlockSize() int

	// Writable reports whether Write, Flush, Truncate and Discard may be used.
	Writable() bool

	// Start begins the ops without waiting for I/O. e is the caller's engine:
	// a store over a file descriptor fills in FD and submits there; others
	// ignore it. Each op's Done is called exactly once, by any goroutine,
	// possibly before Start returns. A Read that meets the end of the file
	// ends short with a nil error: the caller compares N with Size. A Write
	// may extend past Size (the tail of the last page); the store cuts it and
	// reports the full length.
	Start(e aio.Engine, ops []*aio.Op)

	// Kernel is the kernel form, if there is one: see Kernel.
	Kernel() (Kernel, bool)

	// Truncate sets the size; what it adds reads as zeros. It may wait for the
	// file system. No op that reaches past the smaller of the two sizes may be
	// under way: a write finished after the cut would undo it.
	Truncate(size int64) error

	// Discard makes [off, off+n), cut at Size, read as zeros and gives the
	// space back where the medium can. off and n need no alignment. It may
	// wait. No op on the range may be under way.
	Discard(off, n int64) error

	// Close releases the store.
	Close() error

	// String names the store for messages: a path, "memory", …
	String() string
}

// Kernel is a form of a store that can be served by system calls or memory
// copies alone, by a thread that must not run Go code: either a file
// descriptor or memory that neither moves nor is collected. It is valid until
// Close or the next Truncate. Reads of FD may return bytes past Size when
// somebody has made the file longer; they are not part of the store.
type Kernel struct {
	FD     int   // -1: none
	Off    int64 // where in FD the store begins
	Direct bool  // FD is open with O_DIRECT

	Mem []byte // memory outside the Go heap; nil: none

	// Sums, if not nil, says of each block of SumBlock bytes what its contents
	// must be: the low and the high half of a word are each a CRC-32C (of the
	// block, zeros added to the last one) XOR ZeroSum, and either is good. It
	// is memory outside the Go heap that does not move, also as the store
	// grows; words are loaded atomically. Who reads without the store must
	// check, and must not write: writes go through Start.
	Sums []uint64
}

// ErrReadOnly is returned by Truncate and Discard, and given to Write and
// Flush ops, of a store that is not writable. Package pager has it too.
var ErrReadOnly = errors.New("read-only")

// ErrBusy is returned by a writable open of a file or device that another
// opener, in this process or another one, holds. Package pager has it too.
var ErrBusy = errors.New("busy")

// ErrEmpty is returned for a file or device of length zero: there is nothing
// to map.
var ErrEmpty = errors.New("empty: there is nothing to map")

// ErrNotSupported (Is errors.ErrUnsupported) is returned for what this kind of
// store cannot do. It is aio.ErrNotSupported, and package pager has it too.
var ErrNotSupported = aio.ErrNotSupported

// notSupported is an error in these words that Is ErrNotSupported.
type notSupported string

func (e notSupported) Error() string { return string(e) }

func (notSupported) Is(target error) bool {
	return target == ErrNotSupported || target == errors.ErrUnsupported
}
