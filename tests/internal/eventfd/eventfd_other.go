//go:build !linux

// Package eventfd wraps eventfd(2) for tests.
package eventfd

import "errors"

// FD is an eventfd; there are none here.
type FD int

// New fails.
func New() (FD, error) { return -1, errors.ErrUnsupported }

// FromFD is the eventfd with this number.
func FromFD(fd int) FD { return FD(fd) }

// FD is the number.
func (f FD) FD() int { return int(f) }

// Value is 0.
func (f FD) Value() uint64 { return 0 }

// Wait fails.
func (f FD) Wait() error { return errors.ErrUnsupported }

// Close does nothing.
func (f FD) Close() error { return nil }
