package uffd

import (
	"errors"
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zapWays runs a test with batches and without, as on an older kernel.
func zapWays(t *testing.T, f func(t *testing.T)) {
	PrepareZap()
	batches := zapPidfd
	t.Run("batches", func(t *testing.T) {
		needs(t, FeatureProcessMadvise)
		f(t)
	})
	t.Run("madvise", func(t *testing.T) {
		setZapPidfd(noPidfd)
		defer setZapPidfd(int(int32(batches)))
		f(t)
	})
	t.Run("a descriptor that is no pidfd", func(t *testing.T) {
		setZapPidfd(0)
		defer setZapPidfd(int(int32(batches)))
		f(t)
	})
}

func TestZapTakesJustThePagesNamed(t *testing.T) {
	zapWays(t, func(t *testing.T) {
		const pages = 3000
		addr := memory(t, pages)
		fill(addr, pages, 1)
		// Runs of every length, more ranges than process_madvise takes at once,
		// each kept page known.
		var vecs []Range
		gone := func(i uintptr) bool { return i%7 != 3 && i%5 != 0 }
		for i := range uintptr(pages) {
			if gone(i) {
				vecs = append(vecs, Range{addr + i*pageSize, pageSize})
			}
		}
		if done, err := Zap(vecs); done != len(vecs) || err != nil {
			t.Fatal(done, err)
		}
		for i := range uintptr(pages) {
			if want := byte(1); *at(addr + i*pageSize) != want && !gone(i) || *at(addr + i*pageSize) == want && gone(i) {
				t.Fatalf("page %d: gone %v, want %v", i, *at(addr + i*pageSize) == 0, gone(i))
			}
		}
	})
}

// No range of a batch falls through to a call of its own.
func TestBatchesTakeAllRanges(t *testing.T) {
	needs(t, FeatureProcessMadvise)
	PrepareZap()
	const ranges = 2*maxVectors + 5
	addr := memory(t, 2*ranges)
	fill(addr, 2*ranges, 1)
	var vecs []Range
	for i := range uintptr(ranges) {
		vecs = append(vecs, Range{addr + 2*i*pageSize, pageSize})
	}
	done, errno := zapBatches(&vecs[0], len(vecs), uintptr(int(int32(zapPidfd))), madvDontneed)
	if done != len(vecs) || errno != 0 {
		t.Errorf("%d of %d done, %v", done, len(vecs), unix.Errno(errno))
	}
}

func TestZapSaysWhichRangeFailed(t *testing.T) {
	zapWays(t, func(t *testing.T) {
		for bad := range 6 {
			addr := memory(t, 6)
			fill(addr, 6, 1)
			// All ranges touch, so that the fall-back merges them.
			var vecs []Range
			for i := range uintptr(6) {
				vecs = append(vecs, Range{addr + i*pageSize, pageSize})
			}
			vecs[bad].Addr++ // not aligned; touches neither neighbour
			done, err := Zap(vecs)
			var op *OpError
			if done != bad || !errors.Is(err, unix.EINVAL) || !errors.As(err, &op) || op.Addr != vecs[bad].Addr {
				t.Errorf("range %d bad: %d done, %v", bad, done, err)
			}
			for i := range uintptr(bad) {
				if *at(addr + i*pageSize) != 0 {
					t.Errorf("range %d bad: range %d counts as done and is there", bad, i)
				}
			}
		}

		// A hole in the middle of what the fall-back merges.
		addr := memory(t, 6)
		fill(addr, 6, 1)
		if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, addr+3*pageSize, pageSize, 0); errno != 0 {
			t.Fatal(errno)
		}
		var vecs []Range
		for i := range uintptr(6) {
			vecs = append(vecs, Range{addr + i*pageSize, pageSize})
		}
		if done, err := Zap(vecs); done != 3 || !errors.Is(err, unix.ENOMEM) {
			t.Errorf("an unmapped page in range 3: %d done, %v", done, err)
		}
	})
}

func TestZapOfNothing(t *testing.T) {
	zapWays(t, func(t *testing.T) {
		if done, err := Zap(nil); done != 0 || err != nil {
			t.Error(done, err)
		}
		addr := memory(t, 3)
		fill(addr, 3, 1)
		if done, err := Zap([]Range{{addr, 0}, {addr, pageSize}, {addr + 2*pageSize, 0}}); done != 3 || err != nil {
			t.Error(done, err)
		}
		if *at(addr) != 0 || *at(addr + 2*pageSize) != 1 {
			t.Error("an empty range took a page away, or kept a full one from it")
		}
	})
}

func TestZapTakesLockedPages(t *testing.T) {
	needs(t, FeatureDontneedLocked)
	zapWays(t, func(t *testing.T) {
		const pages = 8
		addr := memory(t, pages)
		fill(addr, pages, 1)
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, addr+3*pageSize, 2*pageSize, 0); errno != 0 {
			t.Skipf("mlock: %v", errno)
		}
		var vecs []Range
		for i := range uintptr(pages) {
			vecs = append(vecs, Range{addr + i*pageSize, pageSize})
		}
		if done, err := Zap(vecs); done != pages || err != nil {
			t.Fatal(done, err)
		}
		for i := range uintptr(pages) {
			if *at(addr + i*pageSize) != 0 {
				t.Errorf("page %d is still there", i)
			}
		}
	})
}

func TestProcessMadviseCountsBytes(t *testing.T) {
	needs(t, FeatureProcessMadvise)
	addr := memory(t, 4)
	fill(addr, 4, 1)
	vecs := []Range{{addr, pageSize}, {addr + 2*pageSize, pageSize}, {addr + 1, pageSize}}
	if n, err := ProcessMadvise(vecs, unix.MADV_DONTNEED); n != 2*pageSize || err != nil {
		t.Errorf("two good ranges before a bad one: %d, %v", n, err)
	}
	if n, err := ProcessMadvise(vecs[2:], unix.MADV_DONTNEED); n != 0 || !errors.Is(err, unix.EINVAL) {
		t.Errorf("a bad range first: %d, %v", n, err)
	}
}

// The raw calls may run where the garbage collector must not be called upon.
func TestRawCallsDoNotAllocate(t *testing.T) {
	u := open(t, APIWriteProtect)
	dst, src := region(t, u, 1), memory(t, 1)
	v := Range{dst, pageSize}
	n := testing.AllocsPerRun(50, func() {
		_, e1 := RawCopy(u.Fd(), dst, src, pageSize, CopyWP)
		e2 := RawWriteProtect(u.Fd(), dst, pageSize, 0)
		e3 := RawWake(u.Fd(), dst, pageSize)
		_, e4 := RawZap(&v, 1)
		if e1|e2|e3|e4 != 0 {
			t.Fatal(unix.Errno(e1), unix.Errno(e2), unix.Errno(e3), unix.Errno(e4))
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per run", n)
	}
}

// With MCL_FUTURE a fresh mapping is populated at once, and what is populated
// has no missing faults. Register's recipe avoids it.
func TestMappingUnderMlockall(t *testing.T) { runChild(t, "mlockall", "", nil) }

func init() {
	children["mlockall"] = func() error {
		u, err := Open(APISigbus, 0)
		if err != nil {
			return skipped(err.Error())
		}
		if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE); err != nil {
			return skipped(fmt.Sprintf("mlockall: %v", err))
		}
		for _, r := range Probe() {
			if r.Err != nil && !errors.Is(r.Err, ErrNotSupported) {
				return fmt.Errorf("probe of %v: %w", r.Feature, r.Err)
			}
		}
		const pages = 4
		mem, err := unix.Mmap(-1, 0, int(pages*pageSize), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return err
		}
		addr := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
		if err := errors.Join(
			unix.Munlock(mem),
			u.Register(addr, pages*pageSize, RegisterMissing),
			unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE)); err != nil {
			return err
		}
		for range 2 {
			if a, ok := faulted(load(addr)); !ok || a != addr {
				return fmt.Errorf("a load of a missing page: fault %v at %#x", ok, a)
			}
			var page [2 << 16]byte
			src := (uintptr(unsafe.Pointer(&page)) + pageSize - 1) &^ (pageSize - 1)
			if _, err := u.Copy(addr, src, pageSize, 0); err != nil {
				return err
			}
			if a, ok := faulted(load(addr)); ok {
				return fmt.Errorf("a load of a present page faulted at %#x", a)
			}
			if err := unix.Madvise(mem, unix.MADV_DONTNEED); err != nil {
				return fmt.Errorf("the region is still locked: %w", err)
			}
		}
		return nil
	}
}
