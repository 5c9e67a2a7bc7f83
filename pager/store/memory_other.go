//go:build !linux

package store

// memoryIsStable: the memory is the Go heap's, which no thread without Go code
// may use.
const memoryIsStable = false

func reserve(size int64) ([]byte, error) {
	if size != int64(int(size)) {
		return nil, ErrNotSupported
	}
	return make([]byte, size), nil
}

// commit: a Go slice cannot grow in place.
func commit(mem []byte, size int64) error {
	if size > int64(len(mem)) {
		return ErrNotSupported
	}
	return nil
}

func wipe(b []byte) { clear(b) }

func unreserve([]byte) error { return nil }
