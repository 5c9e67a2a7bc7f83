// Package aio submits and reaps direct I/O: Linux AIO, io_uring, or threads.
//
// The package knows the kernel and nothing of pages, budgets or regions. An
// [Op] is one transfer, owned by the caller; an [Engine] takes ops without
// waiting and finishes each exactly once through [Op.Done].
//
//	caller                engine                          kernel
//	Submit(ops) ────────▶ room in the ring? ── yes ─────▶ io_submit
//	                       │ no
//	                       ▼
//	                      backlog ◀─ Reap makes room ──── completion ring + eventfd
//	Done(op)   ◀───────── Reap(max)
//
// Nothing here parks a goroutine except [Engine.Wait] and [Engine.Close].
package aio

import (
	"context"
	"errors"
	"fmt"
)

// Kind names an engine.
type Kind uint8

const (
	Auto     Kind = iota // the best engine that works in this process
	LinuxAIO             // io_setup/io_submit, completions read from the user-mapped ring
	IOURing              // io_uring with a registered eventfd, no SQPOLL
	Threads              // blocking preadv/pwritev on a bounded set of goroutines; takes any file
)

var kindNames = [...]string{"auto", "aio", "io_uring", "threads"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// ParseKind is the inverse of Kind.String.
func ParseKind(s string) (Kind, error) {
	for i, n := range kindNames {
		if n == s {
			return Kind(i), nil
		}
	}
	return Auto, fmt.Errorf("aio: unknown engine %q (auto, aio, io_uring, threads)", s)
}

// Code says what an Op does.
type Code uint8

const (
	Read  Code = iota // pread(2) into Buf
	Write             // pwrite(2) from Buf
	Flush             // fdatasync(2); Buf and Off are ignored
)

func (c Code) String() string { return [...]string{"read", "write", "flush"}[c] }

// Op is one transfer. The caller fills the first block, keeps the Op reachable
// and Buf untouched until Done, and may reuse the Op from within Done.
type Op struct {
	Code Code
	FD   int    // file descriptor; must stay open until Done
	Off  int64  // byte offset in the file; a multiple of the device's logical block for O_DIRECT
	Buf  []byte // memory that does not move (mmap, not the Go heap), aligned like Off for O_DIRECT

	// Done is called exactly once, when the transfer is whole, has met the end
	// of the file (a short N with a nil Err), or has failed. It runs on
	// whichever goroutine reaps (or, for engines and stores without a kernel
	// ring, on theirs, possibly before Submit returns). It must not block; it
	// may call Submit.
	Done func(*Op)

	N   int   // bytes transferred
	Err error // nil, a unix.Errno, or ErrClosed

	// Arg is the caller's; the engine does not look at it.
	Arg any

	state opState // the engine's
}

// Engine runs Ops. All methods may be called from any goroutine.
type Engine interface {
	// Kind is what was opened, never Auto.
	Kind() Kind

	// Submit starts every op, in order, without waiting for I/O. What the
	// kernel does not take now (full ring, EAGAIN) is kept in order and
	// submitted as room appears; what it refuses finishes with Err set. After
	// Close every op finishes with ErrClosed. The slice is not kept.
	Submit(ops []*Op)

	// Reap runs Done for at most max finished ops on the calling goroutine and
	// says how many. It never waits, and costs no system call when nothing has
	// finished.
	Reap(max int) int

	// Wait parks the calling goroutine (not its thread) until a Reap may find
	// something, ctx ends, or the engine is closed (ErrClosed). One goroutine
	// at a time.
	Wait(ctx context.Context) error

	// InFlight is the number of ops submitted and not yet finished.
	InFlight() int

	// Close refuses new ops, cancels what can be cancelled, waits until every
	// op has finished (calling Done) and frees the ring. It is idempotent.
	Close() error
}

// Options configure Open. The zero value works.
type Options struct {
	Kind  Kind
	Depth int // most ops in the kernel at once; 0: 256
}

// ErrClosed is the error of ops that an engine refused or dropped because it
// was closed.
var ErrClosed = errors.New("aio: engine is closed")
