//go:build !linux

package uffd

import "syscall"

// Where there is no userfaultfd everything fails with ErrNotSupported, the raw
// calls with ENOSYS. The documentation is with the Linux implementation.

const enosys = uintptr(syscall.ENOSYS)

func probe(Feature) error   { return ErrNotSupported }
func conclusive(error) bool { return true }

// FD is an open userfaultfd. There are none on this system.
type FD struct{}

// Open fails with ErrNotSupported.
func Open(require, want API) (*FD, error) { return nil, unavailable() }

// Available fails with ErrNotSupported.
func Available() (API, error) { return 0, unavailable() }

func unavailable() error {
	if maskErr != nil {
		return maskErr
	}
	return &UnsupportedError{FeatureUserfaultfd, syscall.ENOSYS}
}

func (*FD) Fd() int      { return -1 }
func (*FD) API() API     { return 0 }
func (*FD) Way() Feature { return FeatureUserfaultfd }
func (*FD) Close() error { return nil }

func (*FD) Register(addr, n uintptr, mode uint64) error     { return ErrNotSupported }
func (*FD) Unregister(addr, n uintptr) error                { return ErrNotSupported }
func (*FD) WriteProtect(addr, n uintptr, mode uint64) error { return ErrNotSupported }
func (*FD) Wake(addr, n uintptr) error                      { return ErrNotSupported }
func (*FD) Copy(dst, src, n uintptr, mode uint64) (uintptr, error) {
	return 0, ErrNotSupported
}
func (*FD) Move(dst, src, n uintptr, mode uint64) (uintptr, error) {
	return 0, ErrNotSupported
}
func (*FD) ZeroPage(addr, n uintptr, mode uint64) (uintptr, error) { return 0, ErrNotSupported }
func (*FD) Poison(addr, n uintptr, mode uint64) (uintptr, error)   { return 0, ErrNotSupported }

// RawCopy fails with ENOSYS.
//
//go:nosplit
func RawCopy(fd int, dst, src, n uintptr, mode uint64) (done int64, errno uintptr) { return 0, enosys }

// RawMove fails with ENOSYS.
//
//go:nosplit
func RawMove(fd int, dst, src, n uintptr, mode uint64) (done int64, errno uintptr) { return 0, enosys }

// RawZeroPage fails with ENOSYS.
//
//go:nosplit
func RawZeroPage(fd int, addr, n uintptr, mode uint64) (done int64, errno uintptr) { return 0, enosys }

// RawPoison fails with ENOSYS.
//
//go:nosplit
func RawPoison(fd int, addr, n uintptr, mode uint64) (done int64, errno uintptr) { return 0, enosys }

// RawWriteProtect fails with ENOSYS.
//
//go:nosplit
func RawWriteProtect(fd int, addr, n uintptr, mode uint64) (errno uintptr) { return enosys }

// RawWake fails with ENOSYS.
//
//go:nosplit
func RawWake(fd int, addr, n uintptr) (errno uintptr) { return enosys }

// RawZap fails with ENOSYS.
//
//go:nosplit
func RawZap(vecs *Range, n int) (done int, errno uintptr) { return 0, enosys }

// PrepareZap does nothing.
func PrepareZap() {}

// Zap fails with ErrNotSupported.
func Zap(vecs []Range) (done int, err error) { return 0, ErrNotSupported }

// ProcessMadvise fails with ErrNotSupported.
func ProcessMadvise(vecs []Range, advice int) (n uintptr, err error) { return 0, ErrNotSupported }

// Pagemap is an open page map. There are none on this system.
type Pagemap struct{}

// OpenPagemap fails with ErrNotSupported.
func OpenPagemap() (*Pagemap, error) { return nil, ErrNotSupported }

func (*Pagemap) Close() error { return nil }
func (*Pagemap) Scan(s Scan, runs []PageRun) (n int, end uintptr, err error) {
	return 0, s.Start, ErrNotSupported
}
