package uffd

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAProtectedPageReadsButFaultsOnWrites(t *testing.T) {
	u := open(t, APIWriteProtect)
	dst, src := region(t, u, 4), memory(t, 4)
	fill(src, 4, 7)
	if _, err := u.Copy(dst, src, 3*pageSize, CopyWP); err != nil {
		t.Fatal(err)
	}
	for i := range uintptr(3) {
		mustNotFault(t, "load", load(dst+i*pageSize))
		mustFault(t, "store", dst+i*pageSize+5, store(dst+i*pageSize+5, 1))
	}
	if err := u.WriteProtect(dst+pageSize, pageSize, 0); err != nil {
		t.Fatal(err)
	}
	mustNotFault(t, "store after the protection was taken away", store(dst+pageSize, 8))
	mustFault(t, "store to a neighbour", dst, store(dst, 8))
	if *at(dst) != 7 || *at(dst + pageSize) != 8 {
		t.Error("a store that faulted took effect, or one that did not fault did not")
	}

	// A range with a hole: what is present is protected, what is missing skipped.
	if errno := RawWriteProtect(u.Fd(), dst, 4*pageSize, ProtectWP); errno != 0 {
		t.Fatal(unix.Errno(errno))
	}
	mustFault(t, "store after protecting again", dst+pageSize, store(dst+pageSize, 9))
	if _, err := u.Copy(dst+3*pageSize, src, pageSize, 0); err != nil {
		t.Fatal(err)
	}
	mustNotFault(t, "store to a page that was missing then", store(dst+3*pageSize, 9))
}

func TestTheKernelCannotWriteToAProtectedPage(t *testing.T) {
	u := open(t, APIWriteProtect)
	dst, src := region(t, u, 1), memory(t, 1)
	if _, err := u.Copy(dst, src, pageSize, CopyWP); err != nil {
		t.Fatal(err)
	}
	s := scratch{size: pageSize}
	if err := s.kernelWrites(dst, unix.EFAULT); err != nil {
		t.Error(err)
	}
	if err := u.WriteProtect(dst, pageSize, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.kernelWrites(dst, 0); err != nil {
		t.Error(err)
	}
}

func TestWithWPUnpopulatedMissingPagesAreProtectedToo(t *testing.T) {
	available, err := Available()
	if err != nil || available&APIWPUnpopulated == 0 {
		t.Skip("this kernel has no WP_UNPOPULATED")
	}
	u := open(t, APIWriteProtect|APIWPUnpopulated)
	addr := memory(t, 2)
	if err := u.Register(addr, 2*pageSize, RegisterWP); err != nil {
		t.Fatal(err)
	}
	if err := u.WriteProtect(addr, pageSize, ProtectWP); err != nil {
		t.Fatal(err)
	}
	mustFault(t, "store to a missing, protected page", addr, store(addr, 1))
	mustNotFault(t, "store to a missing page", store(addr+pageSize, 1))
}

func TestWriteProtectNeedsARegisteredRange(t *testing.T) {
	u := open(t, APIWriteProtect)
	plain := memory(t, 2)
	if err := u.Register(plain, pageSize, RegisterMissing); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []uintptr{plain, plain + pageSize} {
		if err := u.WriteProtect(addr, pageSize, ProtectWP); !errors.Is(err, unix.ENOENT) {
			t.Errorf("WriteProtect of a range without RegisterWP: %v, want ENOENT", err)
		}
	}
	if done, errno := RawCopy(u.Fd(), plain, plain+pageSize, pageSize, CopyWP); done != 0 || unix.Errno(errno) != unix.EINVAL {
		t.Errorf("Copy with CopyWP into a range without RegisterWP: %d, %v; want EINVAL", done, unix.Errno(errno))
	}
}

func TestZapForgetsProtection(t *testing.T) {
	u := open(t, APIWriteProtect)
	dst, src := region(t, u, 1), memory(t, 1)
	if _, err := u.Copy(dst, src, pageSize, CopyWP); err != nil {
		t.Fatal(err)
	}
	if _, err := Zap([]Range{{dst, pageSize}}); err != nil {
		t.Fatal(err)
	}
	mustFault(t, "load of a page that was zapped", dst, load(dst))
	if _, err := u.Copy(dst, src, pageSize, 0); err != nil {
		t.Fatal(err)
	}
	mustNotFault(t, "store", store(dst, 1))
}
