package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openFlags are common to all opens. O_NONBLOCK keeps the open of a FIFO from
// waiting for a writer; setFlags clears it, for io_uring would take it as "do
// not wait for the disk".
const openFlags = unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK

func (o FileOptions) access() int {
	if o.ReadOnly {
		return unix.O_RDONLY
	}
	return unix.O_RDWR
}

// openRetry is open(2) without EINTR (slow file systems).
func openRetry(path string, flags int, perm uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags, perm)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// openError words a refused open.
func openError(path string, err error) error {
	if err == unix.EBUSY { // O_EXCL on a device that is mounted or claimed
		return fmt.Errorf("store: %s is in use by another opener: %w (%w)", path, ErrBusy, err)
	}
	return fmt.Errorf("store: open %s: %w", path, err)
}

func openPath(path string, o FileOptions) (*File, error) {
	if path == "" {
		return nil, fmt.Errorf("store: empty path: %w", unix.ENOENT)
	}
	flags := openFlags | o.access()
	// O_EXCL without O_CREAT means something for block devices only; a race
	// with a rename costs no more than that protection.
	var st unix.Stat_t
	if !o.ReadOnly && o.Lock != LockNever && unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		flags |= unix.O_EXCL
	}
	// Not O_CREAT at once: only what this call has made is removed again when
	// something fails, and fs.protected_regular refuses O_CREAT on what exists.
	created := false
	fd, err := openRetry(path, flags, 0)
	if err == unix.ENOENT && o.Create {
		fd, err = openRetry(path, flags|unix.O_CREAT|unix.O_EXCL, 0o666)
		created = err == nil
		if err == unix.EEXIST { // somebody was faster, or a dangling link
			fd, err = openRetry(path, flags|unix.O_CREAT, 0o666)
		}
	}
	if err != nil {
		return nil, openError(path, err)
	}
	f := newFile(path, fd, o)
	f.created = created
	if err = f.setUp(o); err == nil && created {
		err = f.syncName()
	}
	if err != nil {
		f.Close()
		if created {
			unix.Unlink(path)
		}
		return nil, err
	}
	return f, nil
}

func reopen(file *os.File, o FileOptions) (*File, error) {
	var f *File
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("store: %s: %w", file.Name(), err)
	}
	// Control, not Fd(): Fd would make the caller's descriptor blocking.
	// Its only error is that the file is closed.
	if conn.Control(func(fd uintptr) { f, err = reopenFD(int(fd), file.Name(), o) }) != nil {
		err = fmt.Errorf("store: %s: %w", file.Name(), fs.ErrClosed)
	}
	if err != nil {
		return nil, err
	}
	if err = f.setUp(o); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func reopenFD(fd int, name string, o FileOptions) (*File, error) {
	mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, openError(name, err)
	}
	switch acc := mode & unix.O_ACCMODE; {
	case mode&unix.O_PATH != 0 || acc == unix.O_WRONLY:
		return nil, fmt.Errorf("store: %s is not open for reading: %w", name, unix.EBADF)
	case acc == unix.O_RDONLY && !o.ReadOnly:
		// Opening it anew could succeed, and give more than was handed to us.
		return nil, fmt.Errorf("store: %s is open for reading only: %w", name, ErrReadOnly)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil {
		return nil, openError(name, err)
	}
	if err = checkKind(name, st.Mode); err != nil {
		return nil, err
	}
	flags := openFlags | o.access()
	if st.Mode&unix.S_IFMT == unix.S_IFBLK && !o.ReadOnly && o.Lock != LockNever {
		flags |= unix.O_EXCL
	}
	own, err := openRetry(procFD(fd), flags, 0)
	if err == nil {
		return newFile(name, own, o), nil
	}
	if err == unix.EBUSY || err == unix.EMFILE || err == unix.ENFILE {
		return nil, openError(name, err)
	}
	// No /proc, or the file's mode does not let this user open it again.
	own, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, openError(name, err)
	}
	f := newFile(name, own, o)
	f.shared = true
	return f, nil
}

func procFD(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func newFile(name string, fd int, o FileOptions) *File {
	return &File{name: name, fd: fd, tailFD: -1, block: 1, writable: !o.ReadOnly, page: int64(os.Getpagesize())}
}

// checkKind refuses all but regular files and block devices.
func checkKind(name string, mode uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFBLK:
		return nil
	case unix.S_IFDIR:
		return fmt.Errorf("store: %s: %w", name, unix.EISDIR)
	}
	return notSupported("store: " + name + " is neither a regular file nor a block device")
}

// setUp finds out what was opened. The lock comes before the first look at the
// size: whoever holds it may be changing that.
func (f *File) setUp(o FileOptions) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return f.fail("stat", err)
	}
	if err := checkKind(f.name, st.Mode); err != nil {
		return err
	}
	f.device = st.Mode&unix.S_IFMT == unix.S_IFBLK
	if err := f.lock(o); err != nil {
		return err
	}
	if err := f.findSize(o.Size); err != nil {
		return err
	}
	if err := f.setFlags(o.Direct); err != nil {
		return err
	}
	f.page = max(f.page, f.block)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.needTail(f.size.Load())
}

func (f *File) lock(o FileOptions) error {
	kind := int16(unix.F_WRLCK)
	switch {
	case o.Lock == LockNever, o.ReadOnly && o.Lock != LockAlways:
		return nil
	case o.ReadOnly:
		kind = unix.F_RDLCK
	}
	switch err := unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind}); err {
	case nil:
		f.locked = true
		return nil
	case unix.EAGAIN, unix.EACCES:
		return fmt.Errorf("store: %s is locked by another opener: %w (%w)", f.name, ErrBusy, err)
	default:
		return fmt.Errorf("store: %s cannot be locked (LockNever opens it without): %w", f.name, err)
	}
}

// findSize reads the length and gives an empty regular file the one asked for.
func (f *File) findSize(want int64) error {
	var size int64
	var err error
	if f.device {
		size, err = f.deviceSize()
	} else {
		var st unix.Stat_t
		err = unix.Fstat(f.fd, &st)
		size = st.Size
	}
	switch {
	case err != nil:
		return f.fail("size of", err)
	case size == 0 && want > 0 && !f.device:
		if err = ftruncate(f.fd, want); err != nil {
			return f.fail(fmt.Sprintf("grow to %d bytes", want), err)
		}
		size = want
	case size == 0:
		return fmt.Errorf("store: %s: %w", f.name, ErrEmpty)
	case size < want:
		return invalid("%s holds %d bytes, less than the %d asked for", f.name, size, want)
	}
	f.size.Store(size)
	return nil
}

// deviceSize asks lseek(2), which for a block device knows the length. The
// offset goes back to where it was, since fd may share it with the caller's.
func (f *File) deviceSize() (int64, error) {
	was, err := unix.Seek(f.fd, 0, unix.SEEK_CUR)
	if err != nil {
		return 0, err
	}
	size, err := unix.Seek(f.fd, 0, unix.SEEK_END)
	if err != nil {
		return 0, err
	}
	_, err = unix.Seek(f.fd, was, unix.SEEK_SET)
	return size, err
}

// syncName makes a new file's length and name durable: what Sync promises later
// is worth nothing if the directory entry is lost with the power.
func (f *File) syncName() error {
	if err := unix.Fsync(f.fd); err != nil {
		return f.fail("sync", err)
	}
	// The name may have been reached through a link; its directory counts.
	dir := filepath.Dir(f.name)
	fd, err := openRetry(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.EACCES { // a directory one may write but not read cannot be synced
		return nil
	}
	if err != nil {
		return openError(dir, err)
	}
	defer unix.Close(fd)
	if err = unix.Fsync(fd); err != nil && err != unix.EINVAL { // EINVAL: not a notion of this file system
		return fmt.Errorf("store: sync directory %s: %w", dir, err)
	}
	return nil
}

func (f *File) close() error {
	if f.locked {
		// The description may live on, and with it the lock: in the caller's
		// file, and for a moment in what io_uring keeps of ops that have ended.
		unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var tail error
	if f.tailFD >= 0 {
		tail = unix.Close(f.tailFD)
		f.tailFD = -1
	}
	if err := errors.Join(unix.Close(f.fd), tail); err != nil {
		return f.fail("close", err)
	}
	return nil
}
