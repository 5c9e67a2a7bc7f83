package store

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// readers is the most goroutines that one FromReaderAt store has in ReadAt at
// once: enough to hide the latency of a remote source, few enough to be no
// burden when each of them holds a thread.
const readers = 64

// readerAt is a read-only store over an io.ReaderAt.
type readerAt struct {
	r    io.ReaderAt
	size int64

	mu      sync.Mutex
	queue   []*aio.Op // ops no goroutine has taken yet, oldest first
	head    int       // of queue
	running int
}

// FromReaderAt makes a read-only store of the first size bytes of r. Reads run
// on at most 64 goroutines, which exist only while there is something to read,
// and finish on them; r must allow that many ReadAt at once. An r that ends
// before size is a file that has shrunk: reads end short. r is not closed.
//
// There is no kernel form: a region over such a store has no raw access.
func FromReaderAt(r io.ReaderAt, size int64) Store {
	return &readerAt{r: r, size: max(size, 0)}
}

func (s *readerAt) Size() int64            { return s.size }
func (s *readerAt) BlockSize() int         { return 1 }
func (s *readerAt) Writable() bool         { return false }
func (s *readerAt) Kernel() (Kernel, bool) { return Kernel{FD: -1}, false }
func (s *readerAt) String() string         { return fmt.Sprintf("%T", s.r) }

func (s *readerAt) Truncate(int64) error { return fmt.Errorf("store: truncate %v: %w", s, ErrReadOnly) }
func (s *readerAt) Discard(off, n int64) error {
	return fmt.Errorf("store: discard %v: %w", s, ErrReadOnly)
}
func (s *readerAt) Close() error { return nil }

func (s *readerAt) Start(_ aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		if op.Code != aio.Read {
			finish(op, 0, ErrReadOnly)
			continue
		}
		s.mu.Lock()
		s.queue = append(s.queue, op)
		more := s.running < readers
		if more {
			s.running++
		}
		s.mu.Unlock()
		if more {
			go s.run()
		}
	}
}

// run reads until the queue is empty.
func (s *readerAt) run() {
	for op := s.next(); op != nil; op = s.next() {
		n, err := s.read(op.Buf, op.Off)
		finish(op, n, err)
	}
}

func (s *readerAt) next() *aio.Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.head == len(s.queue) {
		s.queue, s.head = s.queue[:0], 0
		s.running--
		return nil
	}
	op := s.queue[s.head]
	s.queue[s.head] = nil
	s.head++
	if s.head > 1024 && s.head > len(s.queue)/2 { // a queue that never runs empty must not grow for ever
		rest := copy(s.queue, s.queue[s.head:])
		clear(s.queue[rest:])
		s.queue, s.head = s.queue[:rest], 0
	}
	return op
}

// read fills p from off. The end of the data is no error; a reader that
// returns less than it should without saying why is asked again.
func (s *readerAt) read(p []byte, off int64) (int, error) {
	if s.r == nil {
		return 0, invalid("nil io.ReaderAt")
	}
	if err := checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	p = p[:max(0, min(int64(len(p)), s.size-off))]
	done := 0
	for done < len(p) {
		n, err := s.r.ReadAt(p[done:], off+int64(done))
		if n < 0 || n > len(p)-done {
			return done, fmt.Errorf("store: %T.ReadAt returned %d for %d bytes: %w", s.r, n, len(p)-done, io.ErrUnexpectedEOF)
		}
		done += n
		switch {
		case errors.Is(err, io.EOF):
			return done, nil
		case err != nil && done < len(p):
			return done, err
		case n == 0:
			return done, fmt.Errorf("store: %T.ReadAt: %w", s.r, io.ErrNoProgress)
		}
	}
	return done, nil
}
