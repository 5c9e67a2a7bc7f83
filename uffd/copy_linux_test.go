package uffd

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAMissingPageFaultsUntilItIsCopied(t *testing.T) {
	u := open(t, 0)
	dst, src := region(t, u, 4), memory(t, 4)
	fill(src, 4, 7)

	mustFault(t, "load", dst+pageSize+123, load(dst+pageSize+123))
	if done, err := u.Copy(dst+pageSize, src, pageSize, 0); err != nil || done != pageSize {
		t.Fatal(done, err)
	}
	mustNotFault(t, "load", load(dst+pageSize))
	if *at(dst + pageSize) != 7 {
		t.Error("the page has other bytes than its source")
	}
	mustNotFault(t, "store", store(dst+pageSize, 8))
	mustFault(t, "load of a neighbour", dst, load(dst))
	mustFault(t, "store to a neighbour", dst+2*pageSize, store(dst+2*pageSize, 1))
}

func TestCopyStopsAtThePageThatIsPresent(t *testing.T) {
	u := open(t, 0)
	src := memory(t, 4)
	fill(src, 4, 7)
	for present := range uintptr(4) {
		dst := region(t, u, 4)
		if _, err := u.Copy(dst+present*pageSize, src, pageSize, 0); err != nil {
			t.Fatal(err)
		}
		*at(dst + present*pageSize) = 9

		// One raw call: partial with EAGAIN, or EEXIST when nothing was done.
		done, errno := RawCopy(u.Fd(), dst, src, 4*pageSize, 0)
		want := unix.EAGAIN
		if present == 0 {
			want = unix.EEXIST
		}
		if uintptr(done) != present*pageSize || unix.Errno(errno) != want {
			t.Errorf("page %d present: raw copy did %d, %v; want %d, %v", present, done, unix.Errno(errno), present*pageSize, want)
		}

		// The ordinary form goes on until it knows why.
		if _, err := Zap([]Range{{dst, present * pageSize}}); present > 0 && err != nil {
			t.Fatal(err)
		}
		n, err := u.Copy(dst, src, 4*pageSize, 0)
		if n != present*pageSize || !errors.Is(err, unix.EEXIST) {
			t.Errorf("page %d present: copy did %d, %v; want %d, EEXIST", present, n, err, present*pageSize)
		}
		var op *OpError
		if !errors.As(err, &op) || op.Op != "copy" || op.Addr != dst || op.Len != 4*pageSize || op.Done != n {
			t.Errorf("page %d present: error %#v does not say what was done", present, err)
		}
		if *at(dst + present*pageSize) != 9 {
			t.Errorf("page %d: present bytes were overwritten", present)
		}
	}
}

func TestCopyErrors(t *testing.T) {
	u := open(t, 0)
	dst, src, plain := region(t, u, 2), memory(t, 2), memory(t, 1)
	unreadable := memory(t, 1)
	if err := mprotect(unreadable, 1, unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what        string
		dst, src, n uintptr
		mode        uint64
		want        unix.Errno
	}{
		{"destination not registered", plain, src, pageSize, 0, unix.ENOENT},
		{"source not readable", dst, unreadable, pageSize, 0, unix.EFAULT},
		{"destination not aligned", dst + 1, src, pageSize, 0, unix.EINVAL},
		{"half a page", dst, src, pageSize / 2, 0, unix.EINVAL},
		{"nothing", dst, src, 0, 0, unix.EINVAL},
		{"unknown mode", dst, src, pageSize, 1 << 40, unix.EINVAL},
	} {
		if done, errno := RawCopy(u.Fd(), c.dst, c.src, c.n, c.mode); done != 0 || unix.Errno(errno) != c.want {
			t.Errorf("%s: raw: %d, %v; want 0, %v", c.what, done, unix.Errno(errno), c.want)
		}
		if done, err := u.Copy(c.dst, c.src, c.n, c.mode); done != 0 || !errors.Is(err, c.want) {
			t.Errorf("%s: %d, %v; want 0, %v", c.what, done, err, c.want)
		}
	}
	mustFault(t, "load after failures", dst, load(dst))
}

func TestAClosedDescriptorIsEBADF(t *testing.T) {
	u := open(t, 0)
	dst, src := region(t, u, 1), memory(t, 1)
	for range 2 {
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if u.Fd() != -1 {
		t.Errorf("Fd of a closed descriptor is %d", u.Fd())
	}
	if _, err := u.Copy(dst, src, pageSize, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("Copy after Close: %v, want EBADF", err)
	}
	if err := u.Register(dst, pageSize, RegisterMissing); !errors.Is(err, unix.EBADF) {
		t.Errorf("Register after Close: %v, want EBADF", err)
	}
}

func TestZeroPageReadsAsZeroAndTakesWrites(t *testing.T) {
	u := open(t, 0)
	dst, src := region(t, u, 3), memory(t, 1)
	if _, err := u.Copy(dst+2*pageSize, src, pageSize, 0); err != nil {
		t.Fatal(err)
	}
	done, err := u.ZeroPage(dst, 3*pageSize, 0)
	if done != 2*pageSize || !errors.Is(err, unix.EEXIST) {
		t.Errorf("zeropage over 2 missing pages and a present one: %d, %v", done, err)
	}
	mustNotFault(t, "load", load(dst+pageSize))
	if *at(dst + pageSize) != 0 {
		t.Error("a zero page is not zero")
	}
	mustNotFault(t, "store", store(dst+pageSize, 1))
	if done, errno := RawZeroPage(u.Fd(), dst, pageSize, 0); done != 0 || unix.Errno(errno) != unix.EEXIST {
		t.Errorf("raw zeropage over a present page: %d, %v", done, unix.Errno(errno))
	}
}

func TestOpenRefusesFeaturesThatDoNotExist(t *testing.T) {
	open(t, 0) // or skip
	const nonsense API = 1 << 60
	if u, err := Open(APISigbus|nonsense, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("required: %v, %v; want EINVAL", u, err)
	}
	u, err := Open(APISigbus, nonsense)
	if err != nil || u.API() != APISigbus {
		t.Fatalf("wanted: %v", err)
	}
	u.Close()
}

func TestWakeLeavesTheRangeRegistered(t *testing.T) {
	u := open(t, 0)
	dst := region(t, u, 1)
	if err := u.Wake(dst, pageSize); err != nil {
		t.Error(err)
	}
	if errno := RawWake(u.Fd(), dst, pageSize); errno != 0 {
		t.Error(unix.Errno(errno))
	}
	mustFault(t, "load after Wake", dst, load(dst))
	if err := u.Wake(dst+1, pageSize); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Wake of an address that is not aligned: %v", err)
	}
}

func TestUnregisterGivesFaultsBack(t *testing.T) {
	u := open(t, 0)
	dst := region(t, u, 2)
	mustFault(t, "load", dst, load(dst))
	if err := u.Unregister(dst, pageSize); err != nil {
		t.Fatal(err)
	}
	mustNotFault(t, "load after Unregister", load(dst))
	mustFault(t, "load of the rest", dst+pageSize, load(dst+pageSize))
}

func TestARangeHasOneDescriptor(t *testing.T) {
	u, other := open(t, 0), open(t, 0)
	dst := region(t, u, 1)
	if err := other.Register(dst, pageSize, RegisterMissing); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a second descriptor registered the range: %v, want EBUSY", err)
	}
	if err := u.Register(dst, pageSize, RegisterMissing); err != nil {
		t.Errorf("the same descriptor registered the range again: %v", err)
	}
}

func mprotect(addr, pages uintptr, prot int) error {
	_, _, errno := unix.Syscall(unix.SYS_MPROTECT, addr, pages*pageSize, uintptr(prot))
	if errno != 0 {
		return errno
	}
	return nil
}
