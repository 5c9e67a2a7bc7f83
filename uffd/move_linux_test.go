package uffd

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func needs(t testing.TB, f Feature) {
	t.Helper()
	if err := f.Supported(); err != nil {
		t.Skip(err)
	}
}

func TestMoveTakesTheFrameAway(t *testing.T) {
	needs(t, FeatureMove)
	u := open(t, APIMove|APIWriteProtect)
	dst, src := region(t, u, 4), memory(t, 4)
	fill(src, 4, 7)
	if done, err := u.Move(dst, src, 2*pageSize, 0); err != nil || done != 2*pageSize {
		t.Fatal(done, err)
	}
	if *at(dst) != 7 || *at(dst + pageSize) != 7 {
		t.Error("a page reads differently after it was moved")
	}
	if *at(src) != 0 || *at(src + 2*pageSize) != 7 {
		t.Error("the source still has the page, or lost one that was not moved")
	}
	// A page arrives writable and not protected.
	mustNotFault(t, "store", store(dst, 8))
}

func TestMoveOutOfARegionLeavesItMissing(t *testing.T) {
	needs(t, FeatureMove)
	u := open(t, APIMove|APIWriteProtect)
	a, b, src := region(t, u, 1), region(t, u, 1), memory(t, 1)
	*at(src) = 7
	if _, err := u.Copy(a, src, pageSize, CopyWP); err != nil {
		t.Fatal(err)
	}
	if done, errno := RawMove(u.Fd(), b, a, pageSize, 0); uintptr(done) != pageSize || errno != 0 {
		t.Fatal(done, unix.Errno(errno))
	}
	mustFault(t, "load of the source", a, load(a))
	if *at(b) != 7 {
		t.Error("the page reads differently")
	}
}

func TestMoveErrors(t *testing.T) {
	needs(t, FeatureMove)
	u := open(t, APIMove)
	dst, src := region(t, u, 4), memory(t, 4)
	*at(src) = 1 // the other three are missing
	done, errno := RawMove(u.Fd(), dst, src, 2*pageSize, 0)
	if uintptr(done) != pageSize || unix.Errno(errno) != unix.EAGAIN {
		t.Errorf("move over a hole: %d, %v; want one page and EAGAIN", done, unix.Errno(errno))
	}
	if done, err := u.Move(dst+pageSize, src+pageSize, pageSize, 0); done != 0 || !errors.Is(err, unix.ENOENT) {
		t.Errorf("move of a hole: %d, %v; want ENOENT", done, err)
	}
	if done, err := u.Move(dst+pageSize, src+pageSize, pageSize, MoveAllowSourceHoles); done != pageSize || err != nil {
		t.Errorf("move of a hole, allowed: %d, %v", done, err)
	}
	mustFault(t, "load of where the hole was moved to", dst+pageSize, load(dst+pageSize))
	*at(src) = 1
	if done, err := u.Move(dst, src, pageSize, 0); done != 0 || !errors.Is(err, unix.EEXIST) {
		t.Errorf("move onto a present page: %d, %v; want EEXIST", done, err)
	}
	if *at(src) != 1 {
		t.Error("a move that failed took the page away")
	}
}

func TestAPoisonedPageFaultsForGood(t *testing.T) {
	needs(t, FeaturePoison)
	u := open(t, APIPoison)
	dst, src := region(t, u, 3), memory(t, 1)
	if _, err := u.Copy(dst+2*pageSize, src, pageSize, 0); err != nil {
		t.Fatal(err)
	}
	if done, err := u.Poison(dst, 3*pageSize, 0); done != 2*pageSize || !errors.Is(err, unix.EEXIST) {
		t.Errorf("poison over two missing pages and a present one: %d, %v", done, err)
	}
	if done, errno := RawPoison(u.Fd(), dst, pageSize, 0); done != 0 || unix.Errno(errno) != unix.EEXIST {
		t.Errorf("poison over poison: %d, %v; want EEXIST", done, unix.Errno(errno))
	}
	s := scratch{size: pageSize}
	if err := s.kernelWrites(dst, unix.EFAULT); err != nil {
		t.Error(err)
	}
	if _, err := u.Copy(dst, src, pageSize, 0); err != nil {
		t.Errorf("copy onto a poisoned page: %v", err)
	}
	mustNotFault(t, "load of a page that was poisoned and then copied", load(dst))
	if _, err := Zap([]Range{{dst + pageSize, pageSize}}); err != nil {
		t.Fatal(err)
	}
	mustFault(t, "load of a page whose poison was zapped", dst+pageSize, load(dst+pageSize))
	if done, errno := RawPoison(u.Fd(), dst+pageSize, pageSize, 0); uintptr(done) != pageSize || errno != 0 {
		t.Errorf("poison of a page whose poison was zapped: %d, %v", done, unix.Errno(errno))
	}
	if err := s.kernelWrites(dst+pageSize, unix.EFAULT); err != nil {
		t.Error(err)
	}
}
