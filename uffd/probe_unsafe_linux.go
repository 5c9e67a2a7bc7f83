package uffd

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probe does the thing once, on pages of its own, and returns nil if it worked.
// It must not call Supported, which holds a lock around it.
func probe(f Feature) error {
	switch f {
	case FeatureUserfaultfd:
		u, err := openFD(0)
		if err != nil {
			return err
		}
		return u.Close()
	case FeatureUserModeOnly, FeatureAnyMode, FeatureDevUserfaultfd:
		fd, err := openBy(f)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	case FeaturePagemapScan:
		return onScratch(probePagemapScan)
	case FeatureDontneedLocked:
		return onScratch(probeDontneedLocked)
	case FeatureProcessMadvise:
		return onScratch(probeProcessMadvise)
	case FeaturePidfdSelf:
		return onScratch(func(s scratch) error { return s.zapsBy(pidfdSelf) })
	}
	return onScratch(func(s scratch) error { return probeUffd(f, s) })
}

// probeUffd probes what needs a descriptor.
func probeUffd(f Feature, s scratch) error {
	available, err := Available()
	if err != nil {
		return err
	}
	ask, register := APISigbus, RegisterMissing
	switch f {
	case FeatureWriteProtect:
		ask, register = APISigbus|APIWriteProtect, RegisterMissing|RegisterWP
	case FeatureWPUnpopulated:
		ask, register = APISigbus|APIWriteProtect|APIWPUnpopulated, RegisterWP
	case FeatureWPAsync:
		ask, register = APISigbus|APIWriteProtect|APIWPAsync, RegisterWP
	default:
		ask |= features[f].api
	}
	if ask&^available != 0 {
		return unix.EINVAL // as the kernel would
	}
	u, err := openFD(ask)
	if err != nil {
		return err
	}
	defer u.Close()
	if err := u.Register(s.page(0), 2*s.size, register); err != nil {
		return err
	}
	dst, src := s.page(0), s.page(2)
	s.mem[2*s.size] = 1
	switch f {
	case FeatureSigbus:
		return errors.Join(
			s.kernelWrites(dst, unix.EFAULT),
			second(u.Copy(dst, src, s.size, 0)),
			s.kernelWrites(dst, 0))
	case FeatureWriteProtect:
		return errors.Join(
			second(u.Copy(dst, src, s.size, CopyWP)),
			s.kernelWrites(dst, unix.EFAULT),
			u.WriteProtect(dst, s.size, 0),
			s.kernelWrites(dst, 0),
			u.WriteProtect(dst, s.size, ProtectWP),
			s.kernelWrites(dst, unix.EFAULT))
	case FeatureWPUnpopulated:
		return errors.Join(
			u.WriteProtect(dst, s.size, ProtectWP),
			s.kernelWrites(dst, unix.EFAULT))
	case FeatureWPAsync:
		return errors.Join(
			s.kernelWrites(dst, 0),
			u.WriteProtect(dst, s.size, ProtectWP),
			s.kernelWrites(dst, 0))
	case FeaturePoison:
		return second(u.Poison(dst, s.size, 0))
	case FeatureMove:
		if _, err := u.Move(dst, src, s.size, 0); err != nil {
			return err
		}
		if s.mem[0] != 1 {
			return misbehaves("the page that was moved reads differently")
		}
		return nil
	}
	return fmt.Errorf("no probe for %v", f)
}

func probePagemapScan(s scratch) error {
	s.mem[s.size] = 1
	p, err := OpenPagemap()
	if err != nil {
		return err
	}
	defer p.Close()
	var runs [4]PageRun
	n, _, err := p.Scan(Scan{Start: s.page(0), End: s.page(3), Mask: PagePresent, Return: PagePresent}, runs[:])
	if err != nil {
		return err
	}
	if n != 1 || runs[0] != (PageRun{uint64(s.page(1)), uint64(s.page(2)), PagePresent}) {
		return misbehaves(fmt.Sprintf("one page is present, the scan says %x", runs[:n]))
	}
	return nil
}

func probeDontneedLocked(s scratch) error {
	s.mem[0] = 1
	if err := unix.Madvise(s.mem[:s.size], madvDontneedLocked); err != nil {
		return err
	}
	if s.mem[0] != 0 {
		return misbehaves("the page is still there")
	}
	return nil
}

func probeProcessMadvise(s scratch) error {
	if !masked(FeaturePidfdSelf) && s.zapsBy(pidfdSelf) == nil {
		return nil
	}
	fd, err := unix.PidfdOpen(unix.Getpid(), 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.zapsBy(fd)
}

// scratch is a few fresh pages for a probe.
type scratch struct {
	mem  []byte // scratchPages pages
	size uintptr
}

const scratchPages = 3

func onScratch(probe func(scratch) error) error {
	size := unix.Getpagesize()
	mem, err := unix.Mmap(-1, 0, scratchPages*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	// After mlockall(MCL_FUTURE) the pages are there and locked already. That
	// is for the caller of the feature to deal with, not a reason to deny it.
	if err := unix.Munlock(mem); err == nil {
		_ = unix.Madvise(mem, madvDontneed)
	}
	return probe(scratch{mem, uintptr(size)})
}

func (s scratch) page(i uintptr) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(s.mem))) + i*s.size
}

// kernelWrites has the kernel write to a page that may be missing or protected
// and checks the errno. The program itself must not touch it: it would be a
// SIGBUS.
func (s scratch) kernelWrites(addr uintptr, want syscall.Errno) error {
	_, _, errno := syscall.Syscall(unix.SYS_GETRANDOM, addr, 1, unix.GRND_NONBLOCK)
	if errno == unix.EAGAIN {
		errno = 0 // early in boot: no random bytes yet, nothing said about the page
	}
	if errno != want {
		return misbehaves(fmt.Sprintf("a write by the kernel to a page: %v, want %v", errno, want))
	}
	return nil
}

// zapsBy checks that process_madvise takes away two pages but not the one
// between them.
func (s scratch) zapsBy(pidfd int) error {
	for i := range uintptr(scratchPages) {
		s.mem[i*s.size] = 1
	}
	n, errno := processMadvise(pidfd, []Range{{s.page(0), s.size}, {s.page(2), s.size}}, madvDontneed)
	if errno != 0 {
		return errno
	}
	if n != 2*s.size || s.mem[0] != 0 || s.mem[s.size] != 1 || s.mem[2*s.size] != 0 {
		return misbehaves("not just the pages that were named have gone")
	}
	return nil
}

// misbehaves is the error of a call that claims to have worked and has not. It
// is as conclusive as a refusal.
type misbehaves string

func (e misbehaves) Error() string      { return string(e) }
func (misbehaves) Is(target error) bool { return target == ErrNotSupported }

func second[T any](_ T, err error) error { return err }
