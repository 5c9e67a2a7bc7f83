package store

import (
	"sync"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Slice is a store over a slice of the Go heap. It is for tests that make
// stores by the thousand, of what Recording.Image says, where a mapping for each
// (NewMemoryOf) would be most of the work; it has no kernel form.
type Slice struct {
	mu       sync.Mutex
	b        []byte
	readOnly bool
}

// NewSlice makes a store of b, which it owns and changes.
func NewSlice(b []byte) *Slice { return &Slice{b: b} }

// NewReadOnlySlice is NewSlice of a store that is not writable.
func NewReadOnlySlice(b []byte) *Slice { return &Slice{b: b, readOnly: true} }

var _ Store = (*Slice)(nil)

// Bytes is what the store holds, also after Close. It is not a copy.
func (s *Slice) Bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b
}

// Size implements Store.
func (s *Slice) Size() int64 { return int64(len(s.Bytes())) }

// BlockSize implements Store.
func (s *Slice) BlockSize() int { return 1 }

// Writable implements Store.
func (s *Slice) Writable() bool { return !s.readOnly }

// Kernel implements Store: there is none.
func (s *Slice) Kernel() (Kernel, bool) { return Kernel{FD: -1}, false }

// Close implements Store. It does nothing.
func (s *Slice) Close() error { return nil }

// String implements Store.
func (s *Slice) String() string { return "slice" }

// Start implements Store. Ops finish before it returns.
func (s *Slice) Start(_ aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		n, err := s.move(op)
		finish(op, n, err)
	}
}

func (s *Slice) move(op *aio.Op) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readOnly && op.Code != aio.Read {
		return 0, ErrReadOnly
	}
	if err := checkRange(op.Off, int64(len(op.Buf))); err != nil {
		return 0, err
	}
	at := s.b[min(op.Off, int64(len(s.b))):]
	switch op.Code {
	case aio.Read:
		return copy(op.Buf, at), nil
	case aio.Write:
		copy(at, op.Buf)
		return len(op.Buf), nil
	}
	return 0, nil
}

// Truncate implements Store.
func (s *Slice) Truncate(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readOnly {
		return ErrReadOnly
	}
	if size < 0 {
		return invalid("truncate a slice to %d bytes", size)
	}
	if more := size - int64(len(s.b)); more > 0 {
		s.b = append(s.b, make([]byte, more)...)
	}
	s.b = s.b[:size]
	return nil
}

// Discard implements Store.
func (s *Slice) Discard(off, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readOnly {
		return ErrReadOnly
	}
	if err := checkRange(off, n); err != nil {
		return err
	}
	if end := min(off+n, int64(len(s.b))); off < end {
		clear(s.b[off:end])
	}
	return nil
}
