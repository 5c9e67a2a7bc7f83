package store

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var errDirectOff = errors.New("store: buffered by option")

// setFlags turns O_DIRECT on, or says why it stays off, and learns the block
// size that follows from it.
func (f *File) setFlags(want Direct) error {
	flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err != nil {
		return f.fail("flags of", err)
	}
	if f.shared {
		// The flags are the caller's: taken as they are.
		f.why = fmt.Errorf("store: %s could not be opened anew and its owner has no O_DIRECT on it", f.name)
		if flags&unix.O_DIRECT != 0 {
			f.block, f.why = f.directBlock()
		}
	} else {
		flags &^= unix.O_NONBLOCK
		f.why = errDirectOff
		if want != DirectOff {
			f.why = f.tryDirect(flags)
		}
		if f.why != nil {
			if _, err = unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags); err != nil {
				return f.fail("flags of", err)
			}
		}
	}
	if f.why == nil {
		return nil
	}
	f.block = 1
	if want == DirectRequire {
		return f.fail("no O_DIRECT on", f.why)
	}
	// Misses are single pages in an order of our own: the kernel's read-ahead
	// would fetch what nobody asked for. Advice only, so errors are of no use.
	unix.Fadvise(f.fd, 0, 0, unix.FADV_RANDOM)
	return nil
}

// tryDirect switches O_DIRECT on with fcntl(2), which spares a second open and
// with it the question whether that opened the same file.
func (f *File) tryDirect(flags int) error {
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags|unix.O_DIRECT); err != nil {
		return f.fail("O_DIRECT on", err)
	}
	var err error
	f.block, err = f.directBlock()
	return err
}

// directBlock is the alignment that O_DIRECT on fd needs of offsets, lengths
// and memory alike.
func (f *File) directBlock() (int64, error) {
	if f.device {
		n, err := unix.IoctlGetUint32(f.fd, unix.BLKSSZGET)
		if err != nil {
			return 1, f.fail("BLKSSZGET of", err)
		}
		return powerOfTwo(int64(n)), nil
	}
	var stx unix.Statx_t
	err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx)
	if err == nil && stx.Mask&unix.STATX_DIOALIGN != 0 {
		if stx.Dio_offset_align == 0 { // statx(2): no direct I/O on this file
			return 1, f.fail("O_DIRECT on", unix.EOPNOTSUPP)
		}
		return powerOfTwo(int64(max(stx.Dio_offset_align, stx.Dio_mem_align))), nil
	}
	// Before Linux 6.1, and where the file system does not say: a page
	// satisfies all that take it. Some accept the flag and refuse the read.
	const page = 4096
	buf, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 1, f.fail("probe", err)
	}
	defer unix.Munmap(buf)
	if _, err = unix.Pread(f.fd, buf, 0); err == unix.EINVAL || err == unix.EOPNOTSUPP {
		return 1, f.fail("O_DIRECT read of", err)
	}
	return page, nil // any other error is the disk's, and is met again by who reads
}

// powerOfTwo rounds up, and not below the 512 bytes of a sector.
func powerOfTwo(n int64) int64 {
	p := int64(512)
	for p < n {
		p <<= 1
	}
	return p
}
