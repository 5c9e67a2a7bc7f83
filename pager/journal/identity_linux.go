package journal

import (
	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
)

// IdentityOf asks the kernel about the file or device of s. A store without a
// descriptor has the zero Identity.
func IdentityOf(s store.Store) Identity {
	k, ok := s.Kernel()
	if !ok || k.FD < 0 {
		return Identity{}
	}
	var st unix.Stat_t
	if unix.Fstat(k.FD, &st) != nil {
		return Identity{}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		// The inode is that of the node in /dev, made anew at every boot.
		return Identity{Device: uint64(st.Rdev)}
	}
	id := Identity{Device: uint64(st.Dev), Inode: st.Ino}
	var stx unix.Statx_t
	err := unix.Statx(k.FD, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &stx)
	if err == nil && stx.Mask&unix.STATX_BTIME != 0 {
		id.Birth = stx.Btime.Sec*1e9 + int64(stx.Btime.Nsec)
	}
	return id
}
