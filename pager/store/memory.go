package store

import (
	"fmt"
	"io/fs"
	"math"
	"sync"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// memory is a store in anonymous memory.
type memory struct {
	size   atomic.Int64
	closed atomic.Bool
	broken error // why there is no memory; every op gets it

	mu  sync.Mutex // orders Truncate, Discard and Close
	mem []byte     // the reservation: its first Size bytes are the store
}

// NewMemory makes a store of size bytes of zeros outside the Go heap. Ops
// finish before Start returns, Flush does nothing, and what the store holds
// ends with Close. Memory is taken as it is written; on Linux Kernel().Mem is
// set and the store can grow in place to at least four times its size (past
// the address space kept for that Truncate is ENOMEM).
//
// If the address space cannot be had, or size is negative, every use of the
// store says so.
func NewMemory(size int64) Store {
	m := &memory{}
	if size < 0 {
		m.broken = invalid("memory of %d bytes", size)
		return m
	}
	m.size.Store(size)
	if size == 0 {
		size = 1
	}
	if m.mem, m.broken = reserve(size); m.broken != nil {
		m.broken = fmt.Errorf("store: memory of %d bytes: %w", m.size.Load(), m.broken)
	}
	return m
}

// NewMemoryOf makes a NewMemory that holds a copy of b.
func NewMemoryOf(b []byte) Store {
	s := NewMemory(int64(len(b)))
	if m := s.(*memory); m.broken == nil {
		copy(m.mem, b)
	}
	return s
}

func (m *memory) Size() int64    { return m.size.Load() }
func (m *memory) BlockSize() int { return 1 }
func (m *memory) Writable() bool { return true }

func (m *memory) String() string {
	if m.broken != nil {
		return "memory (" + m.broken.Error() + ")"
	}
	return "memory"
}

func (m *memory) usable() error {
	if m.closed.Load() {
		return fmt.Errorf("store: memory: %w", fs.ErrClosed)
	}
	return m.broken
}

func (m *memory) Kernel() (Kernel, bool) {
	if !memoryIsStable || m.usable() != nil {
		return Kernel{FD: -1}, false
	}
	size := m.size.Load()
	return Kernel{FD: -1, Mem: m.mem[:size:size]}, true
}

func (m *memory) Start(_ aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		n, err := m.move(op)
		finish(op, n, err)
	}
}

func (m *memory) move(op *aio.Op) (int, error) {
	if err := m.usable(); err != nil {
		return 0, err
	}
	if op.Code == aio.Flush {
		return 0, nil
	}
	if err := checkRange(op.Off, int64(len(op.Buf))); err != nil {
		return 0, err
	}
	size := m.size.Load()
	mem := m.mem[min(op.Off, size):size]
	if op.Code == aio.Read {
		return copy(op.Buf, mem), nil
	}
	copy(mem, op.Buf)
	return len(op.Buf), nil
}

// checkRange refuses what no store has.
func checkRange(off, n int64) error {
	if off < 0 || n < 0 || off > math.MaxInt64-n {
		return invalid("%d bytes at %d", n, off)
	}
	return nil
}

func (m *memory) Truncate(size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return err
	}
	if size < 0 {
		return invalid("truncate memory to %d bytes", size)
	}
	was := m.size.Load()
	if size > was {
		if err := commit(m.mem, size); err != nil {
			return fmt.Errorf("store: grow memory from %d to %d bytes: %w", was, size, err)
		}
	}
	m.size.Store(size)
	if size < was {
		wipe(m.mem[size:was]) // zeros when it grows again
	}
	return nil
}

func (m *memory) Discard(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return err
	}
	if err := checkRange(off, n); err != nil {
		return err
	}
	if end := min(off+n, m.size.Load()); off < end {
		wipe(m.mem[off:end])
	}
	return nil
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed.Swap(true) || m.mem == nil {
		return nil
	}
	mem := m.mem
	m.mem = nil
	return unreserve(mem)
}
