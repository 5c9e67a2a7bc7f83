//go:build linux

package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
)

// viewCounter counts running brackets (View, Update) in shards, chosen by the
// caller's stack, so that brackets on different cores share nothing.
type viewCounter struct {
	shard [16]struct {
		n atomic.Int64
		_ [56]byte
	}
}

func (c *viewCounter) enter() *atomic.Int64 {
	var here byte
	h := uint64(uintptr(unsafe.Pointer(&here))) >> 11 * 0x9E3779B97F4A7C15
	n := &c.shard[h>>60].n
	n.Add(1)
	return n
}

func (c *viewCounter) running() (n int64) {
	for i := range c.shard {
		n += c.shard[i].n.Load()
	}
	return n
}

// wait waits until no bracket is running; no new ones may begin.
func (c *viewCounter) wait() {
	for turn := 0; c.running() != 0; turn++ {
		if turn < 64 {
			runtime.Gosched()
			continue
		}
		time.Sleep(min(time.Duration(turn)*time.Microsecond, time.Millisecond))
	}
}

// View runs fn over the region's memory, which fn must only read. Where the
// trap is available (linux/amd64) fn runs exactly once, whatever it is made
// of: faults in it park the goroutine in place or block its thread, and a page
// that cannot be read ends it with a panic that View turns into the returned
// *FaultError, also if fn swallowed the panic. Elsewhere (and under park mode
// restart) a fault ends fn, the page is read, pinned, and fn runs again from
// its start: then fn must be restartable, and the pages of one run must fit
// what can be pinned.
//
// ctx is looked at before each run. Close waits for fn. Regions without any
// page faults (no userfaultfd) have no View: ErrNotSupported.
func (r *Region) View(ctx context.Context, fn func(mem []byte) error) error {
	return r.bracket(ctx, fn, false)
}

func (r *Region) bracket(ctx context.Context, fn func(mem []byte) error, write bool) error {
	if sp.fd < 0 {
		return fmt.Errorf("pager: View and Update need page faults: %w", sp.rawErr)
	}
	if write && !sp.wp {
		return unsupported("Update needs write-protect faults: nobody would notice what it stores")
	}
	if err := ended(ctx); err != nil {
		return err
	}
	if fn == nil {
		return errors.New("pager: the function of View or Update is nil")
	}
	n := r.views.enter()
	defer n.Add(-1)
	if r.closing.Load() {
		return ErrClosed
	}
	if !sp.trap || r.p.opt.Park == coro.Restart {
		if write && !sp.trap {
			return unsupported("Update runs its function once, which needs the SIGBUS trap")
		}
		return r.restart(ctx, fn)
	}
	return runOnce(r.Bytes(), fn)
}

// runOnce runs fn; faults in any region become errors.
func runOnce(mem []byte, fn func(mem []byte) error) (err error) {
	since, g := coro.Seq(), coro.CurrentG()
	old := debug.SetPanicOnFault(true)
	ok := false
	defer func() {
		debug.SetPanicOnFault(old)
		if !ok {
			v := recover()
			if v == nil {
				return // runtime.Goexit
			}
			f, is := FaultOf(v)
			if !is {
				panic(v)
			}
			err = f
			return
		}
		if coro.Seq() != since {
			// Some fault was delivered somewhere: was it ours, swallowed?
			var f *FaultError
			if addr, errno, is := coro.Delivered(g, since); is && !errors.As(err, &f) {
				err = faultAt(addr, errno)
			}
		}
	}()
	err = fn(mem)
	ok = true
	return err
}

// restart runs fn until it meets no missing page, pinning what it met.
func (r *Region) restart(ctx context.Context, fn func(mem []byte) error) error {
	var pins []Pin
	defer func() {
		for _, p := range pins {
			p.Release()
		}
	}()
	for {
		err := runOnce(r.Bytes(), fn)
		var f *FaultError
		if !errors.As(err, &f) || !errors.Is(f.Err, errRestart) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		ps := int64(1) << r.shift
		off := f.Offset &^ (ps - 1)
		n := min(ps, r.Len()-off)
		err = r.acquirePages(ctx, r.pageRange(off, n), false) // fn has the region's memory
		if r.waitsFor(err) {
			select {
			case <-time.After(readRetry):
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil {
			return err
		}
		pins = append(pins, newPin(r, off, n, pinnedHere))
		r.restarts.Add(1)
	}
}

// errRestart is the reason of a fault that makes View run fn again.
var errRestart = errors.New("pager: page is not resident")

// Guard runs fn and turns a fault in any region's memory into the returned
// *FaultError: for code that uses Region.Bytes directly. Other panics pass.
func Guard(fn func() error) error {
	return runOnce(nil, func([]byte) error { return fn() })
}

// FaultOf says whether a recovered value is a Go fault in a region (or in one
// that has been closed), and which. It needs debug.SetPanicOnFault(true) on
// the goroutine, without which such a fault ends the process.
func FaultOf(recovered any) (*FaultError, bool) {
	e, ok := recovered.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok {
		return nil, false
	}
	addr := e.Addr()
	if !inArena(addr) {
		return nil, false
	}
	errno, ok := coro.DeliveredAt(addr)
	if !ok {
		if sp.trap {
			errno = errnoClosed
		} else {
			errno = coro.ErrnoRestart
		}
	}
	return faultAt(addr, errno), true
}

func inArena(addr uintptr) bool {
	for i := range sp.numArenas.Load() {
		if a := &sp.arenas[i]; addr >= a.lo && addr < a.hi {
			return true
		}
	}
	return false
}

func faultAt(addr, errno uintptr) *FaultError {
	f := &FaultError{Op: "access", Store: "(closed region)", Err: errnoError(errno)}
	if r := regionAt(addr); r != nil {
		f.Store, f.Offset = r.name, int64(addr-r.d.base)
	}
	return f
}

// noted keeps errors that are no errnos for a while.
var (
	noted     [1024]atomic.Pointer[error]
	notedNext atomic.Uint64
)

// errnoError is the error behind a number that the trap was given.
func errnoError(errno uintptr) error {
	switch errno {
	case errnoClosed:
		return ErrClosed
	case errnoRange:
		return errRange
	case errnoReadOnly:
		return errReadOnly
	case errnoTable, errnoNoRoom:
		return ErrBudget
	case errnoSum:
		return store.ErrChecksum
	case errnoShrunk:
		return fmt.Errorf("the store is shorter than when it was opened: %w", io.ErrUnexpectedEOF)
	case coro.ErrnoCannotPark:
		return ErrCannotPark
	case coro.ErrnoRestart:
		return errRestart
	}
	if i := errno - errnoNoted; errno >= errnoNoted && i < uintptr(len(noted)) {
		if e := noted[i].Load(); e != nil {
			return *e
		}
	}
	return unix.Errno(errno)
}

// touchWrite makes [addr, addr+n) of whatever region it is in ready to be
// written to by CopyOut, at least its first page.
func touchWrite(addr uintptr, n int) error {
	r := regionAt(addr)
	if r == nil {
		return ErrClosed
	}
	if err := r.writableErr(); err != nil {
		return err
	}
	off := int64(addr - r.d.base)
	pin, err := r.acquire(context.Background(), off, min(int64(n), 1<<r.shift-off&(1<<r.shift-1), r.Len()-off), true)
	if err != nil {
		return err
	}
	pin.Release()
	return nil
}
