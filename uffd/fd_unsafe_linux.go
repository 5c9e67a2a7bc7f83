package uffd

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FD is an open userfaultfd. Its methods may be called by several goroutines.
type FD struct {
	fd  atomic.Int64 // −1 once closed
	api API
	way Feature
}

// Open opens a userfaultfd for this process (close-on-exec, non-blocking) and
// shakes hands for the features in require and for those in want that the
// kernel has. It fails with an *UnsupportedError that names the feature if one
// of require is missing or if userfaultfd is refused altogether.
//
// The ways are tried in this order: userfaultfd(2) with UFFD_USER_MODE_ONLY,
// which needs no privilege and sees all faults that a SIGBUS descriptor can
// answer anyway; without the flag, for kernels before 5.11; /dev/userfaultfd,
// for processes whose seccomp filter refuses the system call.
//
// Source: userfaultfd(2), ioctl_userfaultfd(2).
func Open(require, want API) (*FD, error) {
	if maskErr != nil {
		return nil, maskErr
	}
	// A descriptor takes one successful handshake only, and one that asks for
	// an unknown feature fails: what there is must be known beforehand.
	available, err := Available()
	if err != nil {
		return nil, err
	}
	if missing := require &^ available; missing != 0 {
		if f, known := featureOf(missing); known {
			return nil, absent(f)
		}
		// Bits this package has no name for: the kernel will say EINVAL.
	}
	PrepareZap()
	return openFD(require | want&available)
}

// openFD opens a userfaultfd in the best way and asks for features.
func openFD(ask API) (*FD, error) {
	fd, way, err := openAny()
	if err != nil {
		return nil, err
	}
	if _, errno := handshake(fd, ask); errno != 0 {
		unix.Close(fd)
		return nil, &OpError{Op: "handshake", Err: errno}
	}
	u := &FD{api: ask, way: way}
	u.fd.Store(int64(fd))
	return u, nil
}

var availableCache struct {
	sync.Mutex
	known bool
	api   API
}

// Available returns the features of the handshake that this kernel has, less
// the masked ones. The answer of the first successful call is kept.
func Available() (API, error) {
	if maskErr != nil {
		return 0, maskErr
	}
	c := &availableCache
	c.Lock()
	defer c.Unlock()
	if !c.known {
		fd, _, err := openAny()
		if err != nil {
			return 0, err
		}
		defer unix.Close(fd)
		api, errno := handshake(fd, 0)
		if errno != 0 {
			return 0, &OpError{Op: "handshake", Err: errno}
		}
		c.known, c.api = true, api
	}
	return c.api &^ maskedAPI(), nil
}

// openAny tries the ways in which a userfaultfd can be had, best first.
func openAny() (fd int, way Feature, err error) {
	if masked(FeatureUserfaultfd) {
		return -1, 0, &UnsupportedError{FeatureUserfaultfd, ErrMasked}
	}
	var refused []error
	for _, way := range []Feature{FeatureUserModeOnly, FeatureAnyMode, FeatureDevUserfaultfd} {
		if masked(way) {
			refused = append(refused, fmt.Errorf("%v: %w", way, ErrMasked))
			continue
		}
		fd, err := openBy(way)
		if err == nil {
			return fd, way, nil
		}
		if !conclusive(err) {
			return -1, way, fmt.Errorf("uffd: open by %v: %w", way, err)
		}
		refused = append(refused, fmt.Errorf("%v: %w", way, err))
	}
	return -1, 0, &UnsupportedError{FeatureUserfaultfd, errors.Join(refused...)}
}

// userModeOnly is UFFD_USER_MODE_ONLY.
const userModeOnly = 1

// openBy opens a userfaultfd in one way.
func openBy(way Feature) (int, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	if way != FeatureDevUserfaultfd {
		f := uintptr(flags)
		if way == FeatureUserModeOnly {
			f |= userModeOnly
		}
		r, _, errno := syscall.Syscall(unix.SYS_USERFAULTFD, f, 0, 0)
		if errno != 0 {
			return -1, errno
		}
		return int(r), nil
	}
	dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dev)
	r, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(dev), ioctlNew, flags|userModeOnly)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// handshake is UFFDIO_API: it asks for features and learns those there are.
func handshake(fd int, ask API) (available API, errno syscall.Errno) {
	a := argAPI{api: apiVersion, features: uint64(ask)}
	errno = ioctl(fd, ioctlAPI, unsafe.Pointer(&a))
	return API(a.features), errno
}

// absent is the error for a feature that the kernel does not have, or whose
// call it answers with EINVAL, as it does unknown ones.
func absent(f Feature) error {
	if masked(f) {
		return &UnsupportedError{f, ErrMasked}
	}
	return &UnsupportedError{f, syscall.EINVAL}
}

// conclusive says whether an error of a probe will be the same next time.
func conclusive(err error) bool {
	for _, e := range []syscall.Errno{unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOTTY,
		unix.EOPNOTSUPP, unix.ENOENT, unix.ENXIO, unix.ENODEV, unix.EBADF, unix.ELOOP, unix.ENOTDIR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return errors.Is(err, ErrMasked) || errors.Is(err, ErrNotSupported)
}

// Fd is the descriptor for the raw calls, −1 once closed. It is valid until
// Close.
func (u *FD) Fd() int { return int(u.fd.Load()) }

// API is what the handshake enabled.
func (u *FD) API() API { return u.api }

// Way is how the descriptor was opened: FeatureUserModeOnly, FeatureAnyMode or
// FeatureDevUserfaultfd.
func (u *FD) Way() Feature { return u.way }

// Close closes the descriptor, which unregisters all its ranges: touches of
// missing pages then yield zeros silently. Make them inaccessible first
// (mprotect PROT_NONE), and let no raw call be under way. The second and
// further calls do nothing.
func (u *FD) Close() error {
	fd := u.fd.Swap(-1)
	if fd < 0 {
		return nil
	}
	if err := unix.Close(int(fd)); err != nil {
		return fmt.Errorf("uffd: close: %w", err)
	}
	return nil
}
