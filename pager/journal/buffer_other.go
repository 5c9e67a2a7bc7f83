//go:build !linux

package journal

func newBuffer(n int64) ([]byte, error) { return make([]byte, n), nil }

func freeBuffer([]byte) {}
