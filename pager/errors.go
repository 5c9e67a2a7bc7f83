package pager

import (
	"context"
	"errors"
	"fmt"

	"github.com/uffdpager/uffdpager/pager/journal"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Errors of this package. Wrapped errors keep the unix.Errno, so that
// errors.Is(err, unix.EIO) answers as well.
var (
	// ErrClosed: the pager or region is closed, or was closed meanwhile.
	ErrClosed = errors.New("pager: closed")
	// ErrReadOnly: a write to a region or store that is read-only. It is
	// store.ErrReadOnly.
	ErrReadOnly = store.ErrReadOnly
	// ErrBudget: the request cannot be met within the budget.
	ErrBudget = errors.New("pager: does not fit the budget")
	// ErrBusy: somebody else has it: a file that is already open for writing, a
	// store that is mapped already, a page that stays pinned. It is store.ErrBusy.
	ErrBusy = store.ErrBusy
	// ErrCannotPark: raw memory of a region that only Go code can fill was
	// touched by code that cannot be parked. See Region.Raw.
	ErrCannotPark = errors.New("pager: page needs Go code to be filled, and the code that touched it cannot be parked")
	// ErrJournal: a journal with commits in it that may not be used so: it
	// belongs to another store, has another page size, is damaged, or would be
	// passed over.
	ErrJournal = journal.ErrRefused
	// ErrNotSupported (Is errors.ErrUnsupported): this machine, process, region or
	// store cannot do it. It is store.ErrNotSupported.
	ErrNotSupported = store.ErrNotSupported
)

// errNoContext: where to say it is better than a panic with something half done.
var errNoContext = errors.New("pager: the context is nil; context.Background() is one that does not end")

// errReadOnly is ErrReadOnly of a region.
var errReadOnly = fmt.Errorf("pager: the region is %w", ErrReadOnly)

// ended is why ctx allows no waiting, nil if it does.
func ended(ctx context.Context) error {
	if ctx == nil {
		return errNoContext
	}
	return ctx.Err()
}

type unsupportedError struct{ msg string }

func (e *unsupportedError) Error() string { return e.msg }

// Is makes every unsupportedError match ErrNotSupported and
// errors.ErrUnsupported.
func (e *unsupportedError) Is(target error) bool {
	return target == errors.ErrUnsupported || target == ErrNotSupported
}

func unsupported(format string, args ...any) error {
	return &unsupportedError{"pager: " + fmt.Sprintf(format, args...)}
}

// FaultError is an access that failed: what was done, where in the region, and
// why. It unwraps to the cause, in the end usually a unix.Errno.
type FaultError struct {
	Op     string // "read", "write", "flush", …
	Store  string // Store.String()
	Offset int64  // byte offset in the region
	Err    error
}

func (e *FaultError) Error() string {
	return fmt.Sprintf("pager: %s %s at offset %d: %v", e.Op, e.Store, e.Offset, e.Err)
}

func (e *FaultError) Unwrap() error { return e.Err }
