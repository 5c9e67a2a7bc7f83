package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// memoryIsStable: reserve gives memory that neither moves nor is collected.
const memoryIsStable = true

// reserve takes address space for size bytes and room to grow in place, and
// makes the first size of it usable. The rest stays PROT_NONE, so that
// mlockall(MCL_FUTURE) does not fill it.
func reserve(size int64) ([]byte, error) {
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	if size > 1<<46 {
		return nil, unix.ENOMEM
	}
	mem, err := unix.Mmap(-1, 0, int(pageUp(max(4*size, size+64<<20))), unix.PROT_NONE, flags)
	if err != nil { // RLIMIT_AS: without the room, then
		mem, err = unix.Mmap(-1, 0, int(pageUp(size)), unix.PROT_NONE, flags)
	}
	if err != nil {
		return nil, err
	}
	if err = commit(mem, size); err != nil {
		unix.Munmap(mem)
		return nil, err
	}
	return mem, nil
}

// commit makes the first size bytes usable.
func commit(mem []byte, size int64) error {
	if size > int64(len(mem)) {
		return unix.ENOMEM
	}
	return unix.Mprotect(mem[:pageUp(size)], unix.PROT_READ|unix.PROT_WRITE)
}

// wipe makes b read as zeros and gives its whole pages back.
func wipe(b []byte) {
	page := os.Getpagesize()
	head := min(len(b), int(pageUp(int64(addressOf(b)))-int64(addressOf(b))))
	clear(b[:head])
	b = b[head:]
	whole := len(b) &^ (page - 1)
	clear(b[whole:])
	// EINVAL when the memory is locked: the pages stay, the bytes must not.
	if whole > 0 && unix.Madvise(b[:whole], unix.MADV_DONTNEED) != nil {
		clear(b[:whole])
	}
}

func unreserve(mem []byte) error { return unix.Munmap(mem) }

func pageUp(n int64) int64 {
	page := int64(os.Getpagesize())
	return (n + page - 1) &^ (page - 1)
}
