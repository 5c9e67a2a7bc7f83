//go:build !linux

package store

import "os"

func openPath(string, FileOptions) (*File, error)        { return nil, ErrNotSupported }
func reopen(*os.File, FileOptions) (*File, error)        { return nil, ErrNotSupported }
func (f *File) writeBuffered([]byte, int64) (int, error) { return 0, ErrNotSupported }
func (f *File) close() error                             { return ErrNotSupported }

// Truncate implements Store.
func (f *File) Truncate(int64) error { return ErrNotSupported }

// Discard implements Store.
func (f *File) Discard(off, n int64) error { return ErrNotSupported }
