package journal

import "golang.org/x/sys/unix"

// newBuffer is memory that direct I/O may use: page-aligned, never moved.
func newBuffer(n int64) ([]byte, error) {
	return unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

func freeBuffer(b []byte) {
	if b != nil {
		_ = unix.Munmap(b) // fails only for what newBuffer has not made
	}
}
