package store

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

func ftruncate(fd int, size int64) error {
	for {
		if err := unix.Ftruncate(fd, size); err != unix.EINTR {
			return err
		}
	}
}

// Truncate implements Store by ftruncate(2). A device keeps its length:
// ErrNotSupported.
func (f *File) Truncate(size int64) error {
	if err := f.usable("truncate"); err != nil {
		return err
	}
	if size < 0 {
		return invalid("truncate %s to %d bytes", f.name, size)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.device {
		if size == f.size.Load() {
			return nil
		}
		return f.fail("truncate device", ErrNotSupported)
	}
	// First what may fail without having changed anything.
	if err := f.needTail(size); err != nil {
		return err
	}
	if err := ftruncate(f.fd, size); err != nil {
		return f.fail(fmt.Sprintf("truncate to %d bytes", size), err)
	}
	f.size.Store(size)
	return nil
}

// needTail opens the buffered descriptor if a file of that size needs one.
// f.mu is held.
func (f *File) needTail(size int64) error {
	if !f.writable || f.cut(size) == size {
		return nil
	}
	_, err := f.buffered()
	return err
}

// buffered is a descriptor of the file without O_DIRECT. It has to be an open
// file description of its own, since dup(2) would share the flag. f.mu is held.
func (f *File) buffered() (int, error) {
	if f.why != nil {
		return f.fd, nil
	}
	if f.tailFD >= 0 {
		return f.tailFD, nil
	}
	const flags = unix.O_RDWR | unix.O_CLOEXEC
	fd, err := openRetry(procFD(f.fd), flags, 0)
	if err != nil {
		// No /proc, or no permission by the file's mode (any more): the name
		// may do, if it is still that of the same file.
		if fd, err = openRetry(f.name, flags|unix.O_NONBLOCK, 0); err != nil {
			return -1, f.fail("second open of", err)
		}
		var a, b unix.Stat_t
		if unix.Fstat(f.fd, &a) != nil || unix.Fstat(fd, &b) != nil || a.Dev != b.Dev || a.Ino != b.Ino {
			unix.Close(fd)
			return -1, f.fail("second open of", unix.ESTALE)
		}
	}
	f.tailFD = fd
	return fd, nil
}

// writeBuffered writes buf, cut at Size, through the page cache and on to the
// device: a page left dirty would make the next direct read of it wait for its
// writeback inside io_submit. It says how much of buf is written.
func (f *File) writeBuffered(buf []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fd, err := f.buffered()
	if err != nil {
		return 0, err
	}
	if room := max(f.size.Load()-off, 0); int64(len(buf)) > room {
		buf = buf[:room]
	}
	done := 0
	for done < len(buf) {
		n, err := unix.Pwrite(fd, buf[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, unix.EIO
		default:
			done += n
		}
	}
	err = unix.SyncFileRange(fd, off, int64(len(buf)), unix.SYNC_FILE_RANGE_WRITE_AND_WAIT)
	if err != nil && err != unix.ENOSYS && err != unix.ESPIPE && err != unix.EINVAL {
		return 0, err
	}
	return done, nil
}

// Discard implements Store. On a regular file it punches a hole (fallocate(2)
// zeroes partial blocks by itself). On a device the same call unmaps where that
// is known to read as zeros, else zeroes out; BLKDISCARD promises no zeros and
// is not used. Where neither is to be had zeros are written.
func (f *File) Discard(off, n int64) error {
	if err := f.usable("discard"); err != nil {
		return err
	}
	if off < 0 || n < 0 || off > math.MaxInt64-n {
		return invalid("discard %d bytes at %d of %s", n, off, f.name)
	}
	end := min(off+n, f.size.Load())
	if off >= end {
		return nil
	}
	if !f.device {
		return f.zero(off, end)
	}
	block := int64(512)
	if b, err := unix.IoctlGetUint32(f.fd, unix.BLKSSZGET); err == nil {
		block = powerOfTwo(int64(b))
	}
	first, last := (off+block-1)&^(block-1), end&^(block-1)
	if first >= last {
		return f.writeZeros(off, end)
	}
	if err := f.writeZeros(off, first); err != nil {
		return err
	}
	if err := f.zero(first, last); err != nil {
		return err
	}
	return f.writeZeros(last, end)
}

// zero asks for a hole, then for zeros, then writes them.
func (f *File) zero(off, end int64) error {
	for _, mode := range [...]uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE} {
		err := unix.EINTR
		for err == unix.EINTR {
			err = asErrno(unix.Fallocate(f.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, end-off))
		}
		switch err {
		case 0:
			return nil
		case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENODEV, unix.EINVAL:
		default:
			return f.fail(fmt.Sprintf("discard %d bytes at %d of", end-off, off), err)
		}
	}
	return f.writeZeros(off, end)
}

func asErrno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(unix.Errno); ok {
		return e
	}
	return unix.EIO
}

var zeros [256 << 10]byte

func (f *File) writeZeros(off, end int64) error {
	for off < end {
		n := min(end-off, int64(len(zeros)))
		if _, err := f.writeBuffered(zeros[:n], off); err != nil {
			return f.fail(fmt.Sprintf("zero %d bytes at %d of", n, off), err)
		}
		off += n
	}
	return nil
}
