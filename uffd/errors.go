package uffd

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrNotSupported is what every error for something this kernel, this process
// or this system cannot do Is; so is errors.ErrUnsupported. The error itself is
// an *UnsupportedError where a kernel feature is missing.
var ErrNotSupported error = notSupported{}

type notSupported struct{}

func (notSupported) Error() string        { return "uffd: not supported on this system" }
func (notSupported) Is(target error) bool { return target == errors.ErrUnsupported }

// UnsupportedError says which feature is missing, which kernel has it and what
// the kernel answered.
type UnsupportedError struct {
	Feature Feature
	Err     error // what the attempt met: a syscall.Errno, ErrMasked, …
}

func (e *UnsupportedError) Error() string {
	if needs, ok := e.Err.(*UnsupportedError); ok {
		return fmt.Sprintf("uffd: %s needs %s (Linux %s has it): %v", e.Feature, needs.Feature, needs.Feature.Since(), needs.Err)
	}
	return fmt.Sprintf("uffd: %s is not available (Linux %s has it): %v", e.Feature, e.Feature.Since(), e.Err)
}

// Is answers for ErrNotSupported and errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool {
	return target == ErrNotSupported || target == errors.ErrUnsupported
}

// Unwrap returns what the attempt met.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// ErrMasked is the reason of features that UFFDPAGER_FEATURES takes away.
var ErrMasked = errors.New("masked by " + MaskEnv)

// OpError is the failure of one call. It unwraps to the errno.
type OpError struct {
	Op   string  // "copy", "register", …
	Addr uintptr // where the call was to act (its destination), 0 if nowhere
	Len  uintptr // how many bytes it was to act on
	Done uintptr // how many bytes it did, from Addr on
	Err  syscall.Errno
}

func (e *OpError) Error() string {
	switch {
	case e.Len == 0:
		return fmt.Sprintf("uffd: %s: %v", e.Op, e.Err)
	case e.Done == 0:
		return fmt.Sprintf("uffd: %s %#x+%#x: %v", e.Op, e.Addr, e.Len, e.Err)
	}
	return fmt.Sprintf("uffd: %s %#x+%#x: %v after %#x", e.Op, e.Addr, e.Len, e.Err, e.Done)
}

// Unwrap returns the errno.
func (e *OpError) Unwrap() error { return e.Err }
