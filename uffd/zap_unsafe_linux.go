package uffd

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
	"golang.org/x/sys/unix"
)

const (
	madvDontneed       = unix.MADV_DONTNEED
	madvDontneedLocked = unix.MADV_DONTNEED_LOCKED

	// maxVectors is UIO_MAXIOV: process_madvise takes no more at once.
	maxVectors = 1024

	// pidfdSelf is PIDFD_SELF_THREAD of include/uapi/linux/pidfd.h: the calling
	// thread. PIDFD_SELF_THREAD_GROUP would name the leader, whose address
	// space cannot be found any more once the main thread has exited.
	pidfdSelf = -10000

	noPidfd = -1
)

// zapPidfd is the process as process_madvise knows it, or noPidfd as long as
// that may not be used. It is set by PrepareZap, once: as uint32, for bare.
var zapPidfd = uint32(0xffffffff)

var prepareZap struct {
	sync.Mutex
	done atomic.Bool
}

// PrepareZap finds out how this process can take away batches of pages. Until
// it has been called RawZap makes one madvise(2) per range. Open and Zap call
// it; after the first time it costs nothing.
func PrepareZap() {
	if prepareZap.done.Load() {
		return
	}
	prepareZap.Lock()
	defer prepareZap.Unlock()
	if prepareZap.done.Load() {
		return
	}
	batches, self := FeatureProcessMadvise.Supported(), FeaturePidfdSelf.Supported()
	switch {
	case batches != nil:
		// Ask again next time if this was for want of a descriptor or memory.
		prepareZap.done.Store(errors.Is(batches, ErrNotSupported))
	case self == nil:
		setZapPidfd(pidfdSelf)
		prepareZap.done.Store(true)
	default:
		// Kept for the life of the process. A pidfd of oneself does not go
		// stale, and Go programs do not fork without exec.
		if fd, err := unix.PidfdOpen(unix.Getpid(), 0); err == nil {
			setZapPidfd(fd)
			prepareZap.done.Store(true)
		}
	}
}

func setZapPidfd(fd int) { bare.Store32(&zapPidfd, uint32(int32(fd))) }

// RawZap takes the pages of n ranges away, without a trace: later touches find
// them missing. The pages of a range must not be installed by anybody
// meanwhile. vecs may be in any order; ascending adjacent ranges are cheapest
// where the fall-back has to be used.
//
// It is process_madvise(self, MADV_DONTNEED), one call and one TLB flush for up
// to 1024 ranges, and where the kernel refuses that, madvise(2) over ranges
// merged where they touch. Memory that is locked (mlockall) is taken away by
// MADV_DONTNEED_LOCKED. On an error, done is the number of ranges that were
// taken away before the one that failed; that one may be half gone.
//
// ENOMEM: part of the range is not mapped. EINVAL: not aligned, or locked on a
// kernel before 5.18. Raw: see RawCopy; it makes as many calls as it takes.
//
//go:nosplit
//go:norace
//go:nocheckptr
func RawZap(vecs *Range, n int) (done int, errno uintptr) {
	pidfd, advice := int32(bare.Load32(&zapPidfd)), uintptr(madvDontneed)
	merge := true
	for done < n {
		if pidfd != noPidfd && n-done > 1 { // a single range is cheaper by madvise
			var k int
			k, errno = zapBatches(rangeAt(vecs, done), n-done, uintptr(int(pidfd)), advice)
			if done += k; done == n {
				return done, 0
			}
			if errno == uintptr(syscall.ENOSYS) || errno == uintptr(syscall.EPERM) || errno == uintptr(syscall.EBADF) {
				pidfd = noPidfd // refused as such: a seccomp filter that came later, a pidfd closed under us
			}
		}
		// The range that stopped the batch is tried by itself: either it works
		// that way, or its own errno comes out. Without batches adjacent ones
		// are merged, until that fails: then the one to blame must be found.
		addr, length := rangeAt(vecs, done).Addr, rangeAt(vecs, done).Len
		k := 1
		for merge && pidfd == noPidfd && done+k < n && rangeAt(vecs, done+k).Addr == addr+length {
			length += rangeAt(vecs, done+k).Len
			k++
		}
		errno = madvise(addr, length, advice)
		if errno == uintptr(syscall.EINVAL) && advice == madvDontneed && !masked(FeatureDontneedLocked) {
			if errno = madvise(addr, length, madvDontneedLocked); errno == 0 {
				advice = madvDontneedLocked // the rest is probably locked too; it does no harm if not
			}
		}
		if errno != 0 && k > 1 {
			merge = false
			continue
		}
		if errno != 0 {
			return done, errno
		}
		done += k
	}
	return done, 0
}

// zapBatches lets process_madvise take away as many of the ranges as it will.
//
//go:nosplit
//go:norace
//go:nocheckptr
func zapBatches(vecs *Range, n int, pidfd, advice uintptr) (done int, errno uintptr) {
	for done < n {
		k := min(n-done, maxVectors)
		var bytes uintptr
		bytes, errno = bare.Syscall(unix.SYS_PROCESS_MADVISE, pidfd, uintptr(unsafe.Pointer(rangeAt(vecs, done))), uintptr(k), advice, 0, 0)
		if errno != 0 {
			return done, errno
		}
		// The kernel counts bytes, of whole ranges: it stops behind the last
		// one that it did without an error.
		for k > 0 && bytes >= rangeAt(vecs, done).Len {
			bytes -= rangeAt(vecs, done).Len
			done++
			k--
		}
		if k > 0 {
			return done, 0
		}
	}
	return done, 0
}

//go:nosplit
//go:norace
func madvise(addr, n, advice uintptr) (errno uintptr) {
	_, errno = bare.Syscall(syscall.SYS_MADVISE, addr, n, advice, 0, 0, 0)
	return errno
}

// rangeAt is &vecs[i] for an array that the caller vouches for.
//
//go:nosplit
//go:norace
//go:nocheckptr
func rangeAt(vecs *Range, i int) *Range {
	return (*Range)(unsafe.Add(unsafe.Pointer(vecs), uintptr(i)*unsafe.Sizeof(Range{})))
}

// Zap takes the pages of the ranges away: RawZap, with an error value. done is
// the number of ranges taken away before the one the error names. The thread
// keeps its P meanwhile: zap in batches of some hundred pages.
func Zap(vecs []Range) (done int, err error) {
	if len(vecs) == 0 {
		return 0, nil
	}
	PrepareZap()
	done, errno := RawZap(unsafe.SliceData(vecs), len(vecs))
	if errno != 0 {
		return done, opError("zap", vecs[done].Addr, vecs[done].Len, 0, syscall.Errno(errno))
	}
	return done, nil
}

// ProcessMadvise gives one piece of advice (unix.MADV_…) about ranges of this
// process in one call: process_madvise(2), without any fall-back. n is the
// number of bytes advised; fewer than the sum of the ranges without an error
// means that the next range failed. For at most 1024 ranges.
//
// DONTNEED and other advice that changes what is in memory is allowed for
// oneself since Linux 6.13 (FeatureProcessMadvise).
func ProcessMadvise(vecs []Range, advice int) (n uintptr, err error) {
	if err := FeatureProcessMadvise.Supported(); err != nil {
		return 0, err
	}
	PrepareZap()
	pidfd := int32(bare.Load32(&zapPidfd))
	if pidfd == noPidfd {
		return 0, &OpError{Op: "process_madvise", Err: syscall.EMFILE}
	}
	n, errno := processMadvise(int(pidfd), vecs, advice)
	if errno != 0 {
		return 0, &OpError{Op: "process_madvise", Err: errno}
	}
	return n, nil
}

func processMadvise(pidfd int, vecs []Range, advice int) (uintptr, syscall.Errno) {
	n, _, errno := syscall.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(unsafe.SliceData(vecs))), uintptr(len(vecs)), uintptr(advice), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return n, 0
}
