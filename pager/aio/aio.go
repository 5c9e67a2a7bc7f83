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
//
// The three engines differ only in who carries a transfer out; slots, order,
// continuation of short transfers, waiting and closing are the same code
// (engine_linux.go). The submitting goroutine makes the system call itself, and
// several may do so at once: waking another core to submit is dearer than the
// submission.
package aio

import (
	"context"
	"errors"
	"fmt"
)

// Kind names an engine.
//
// Measured with random direct 4 KiB reads, 64 at a time (go test -bench
// RandomRead): LinuxAIO and IOURing reach what the device can, at the same CPU
// time when one goroutine submits, AIO at a fifth to a third less when many do.
// Threads get a third to half of that at two to three times the CPU time when
// GOMAXPROCS is small: Go hands on the P of a thread in a system call only
// after some 20 µs.
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

var codeNames = [...]string{"read", "write", "flush"}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("Code(%d)", uint8(c))
}

// Op is one transfer. The caller fills the first block, keeps Buf untouched
// until Done, and may reuse the Op from within Done. The engine keeps the Op
// reachable meanwhile.
//
// Ops in flight together are in no order to one another, whatever the order of
// submission: a Flush covers the writes whose Done ran before it was submitted,
// and no others.
type Op struct {
	Code Code
	FD   int    // regular file or block device; must stay open until Done
	Off  int64  // byte offset in the file; a multiple of the device's logical block for O_DIRECT
	Buf  []byte // memory that does not move (mmap, not the Go heap), aligned like Off for O_DIRECT

	// Buffered says that FD was not opened with O_DIRECT. It is never needed
	// for the result, and makes Submit keep its word: Linux AIO would do a
	// buffered transfer inside io_submit, waiting for the device. With
	// Buffered it only does what the page cache has (RWF_NOWAIT) and leaves
	// the rest to a few threads. The other engines do not look at it.
	Buffered bool

	// Later says that nobody waits for the transfer yet: a Reap runs the Dones
	// of all others before its own, also of those that have finished meanwhile.
	Later bool

	// Bell, if not nil, is told when the transfer has made progress, instead of
	// Wait. Only LinuxAIO looks at it, and not for what it does by other means.
	Bell *Bell

	// Done is called exactly once, when the transfer is whole, has met the end
	// of the file (a short N with a nil Err), or has failed. The engines of
	// this package run it on a goroutine that is inside Reap or Close, or
	// inside Submit for ops that come after Close. (A store without a file
	// descriptor may run it anywhere, also before its Start returns.) It must
	// not block; it may call Submit and Reap, not Close.
	Done func(*Op)

	N   int   // bytes transferred; also counts what went before an Err
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
	// submitted as Reap makes room; what it refuses finishes with Err set.
	// After Close every op finishes with ErrClosed. The slice is not kept.
	//
	// The kernel itself may make the system call wait: for file system
	// metadata that is not cached, for a write that allocates blocks, for a
	// file that is not open with O_DIRECT (see Op.Buffered), and when the
	// device's own queue is full. The thread is then in a system call, its P
	// free for others.
	Submit(ops []*Op)

	// Reap runs Done for at most max finished ops on the calling goroutine and
	// says how many. It never waits, and costs no system call when nothing has
	// finished.
	Reap(max int) int

	// Wait parks the calling goroutine (not its thread) until a Reap may find
	// something (nil), ctx ends (its error), or the engine is closed
	// (ErrClosed). One goroutine at a time: others queue up behind it. It may
	// return nil early. Waiting again and again with the same ctx allocates
	// nothing.
	Wait(ctx context.Context) error

	// InFlight is the number of ops submitted whose Done has not returned.
	InFlight() int

	// Close refuses new ops, ends with ErrClosed those the kernel has not got
	// yet, cancels what can be cancelled (io_uring: what is still queued;
	// Linux cannot cancel disk AIO), waits until every op has finished
	// (calling Done) and frees the ring. It is idempotent: later calls wait
	// for the first.
	Close() error
}

// Options configure Open. The zero value works.
type Options struct {
	Kind Kind
	// Depth is the most ops in the kernel at once (for Threads: the most
	// goroutines, thus threads, in system calls), at most MaxDepth. What is
	// beyond waits in the engine, in order. 0: 256, or 64 for Threads.
	Depth int
	// Between, if not nil, is called by a Reap that has run the Done of an op
	// somebody waited for and is about to run that of one which is Later. It may
	// let others run, but not wait.
	Between func()

	// Solo says that one goroutine has the engine to itself, and waits only for
	// what it has submitted: Wait then waits in its thread. A completion wakes
	// that thread and no other, where Go's poller would have one more thread
	// look, on another core. The P is free for others meanwhile, as in every
	// system call. (Threads has no use for it.)
	Solo bool
}

// MaxDepth is the largest Options.Depth: what an io_uring can hold.
const MaxDepth = 32768

const (
	defaultDepth   = 256
	defaultThreads = 64
)

// ErrClosed is the error of ops that an engine refused or dropped because it
// was closed.
var ErrClosed = errors.New("aio: engine is closed")

// ErrNotSupported (Is errors.ErrUnsupported) is wrapped by the error of Open
// when this system does not have the engine or a container refuses it.
var ErrNotSupported error = notSupported{}

type notSupported struct{}

func (notSupported) Error() string        { return "not supported here" }
func (notSupported) Is(target error) bool { return target == errors.ErrUnsupported }

// depth checks o.Depth and fills in the default of kind.
func (o Options) depth(kind Kind) (int, error) {
	switch {
	case o.Depth < 0 || o.Depth > MaxDepth:
		return 0, fmt.Errorf("aio: depth %d is not in 0..%d", o.Depth, MaxDepth)
	case o.Depth > 0:
		return o.Depth, nil
	case kind == Threads:
		return defaultThreads, nil
	}
	return defaultDepth, nil
}
