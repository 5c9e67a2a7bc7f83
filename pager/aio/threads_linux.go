package aio

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// helperThreads is how many goroutines carry out what an asynchronous backend
// refuses: mostly reads of buffered files that are not in the page cache.
const helperThreads = 8

// threads is the backend that needs nothing from the kernel: a bounded set of
// goroutines in pread(2), pwrite(2) and fdatasync(2). They are started as work
// comes and live until close.
type threads struct {
	most int
	kick func()

	ops []*Op // by slot; an entry is the worker's from submit to completion

	mu      sync.Mutex
	work    sync.Cond
	todo    queue[int32]
	done    queue[completion]
	workers int
	idle    int
	closed  bool
}

// newThreads makes a backend of at most most goroutines for slots 0..slots-1.
// Every completion calls kick.
func newThreads(most, slots int, kick func()) *threads {
	t := &threads{most: most, kick: kick, ops: make([]*Op, slots)}
	t.work.L = &t.mu
	t.todo.ring = make([]int32, slots)
	t.done.ring = make([]completion, slots)
	return t
}

func (t *threads) prepare(slot int32, op *Op) { t.ops[slot] = op }

func (t *threads) submit(b batch) (int, syscall.Errno) {
	slots := b.slots[b.from:b.n]
	t.mu.Lock()
	for _, slot := range slots {
		t.todo.push(slot)
		switch {
		case t.idle > 0:
			t.idle--
			t.work.Signal()
		case t.workers < t.most:
			t.workers++
			go t.run()
		}
	}
	t.mu.Unlock()
	return len(slots), 0
}

func (t *threads) run() {
	t.mu.Lock()
	for {
		for t.todo.n == 0 {
			if t.closed {
				t.workers--
				t.mu.Unlock()
				return
			}
			t.idle++ // whoever signals takes it back
			t.work.Wait()
		}
		slot := t.todo.pop()
		t.mu.Unlock()
		res := transfer(t.ops[slot])
		t.mu.Lock()
		t.done.push(completion{slot, res})
		t.mu.Unlock()
		t.kick()
		t.mu.Lock()
	}
}

// transfer makes the system call for what is left of op.
func transfer(op *Op) int64 {
	var (
		n   int
		err error
	)
	switch op.Code {
	case Flush:
		err = unix.Fdatasync(op.FD)
	case Write:
		buf, off := op.rest()
		n, err = unix.Pwrite(op.FD, buf, off)
	default:
		buf, off := op.rest()
		n, err = unix.Pread(op.FD, buf, off)
	}
	if errno, ok := err.(syscall.Errno); ok {
		return -int64(errno)
	}
	return int64(n)
}

func (t *threads) take(cs []completion) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for n < len(cs) && t.done.n > 0 {
		cs[n] = t.done.pop()
		n++
	}
	return n
}

func (t *threads) pending() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.done.n
}

func (t *threads) cancel() {}

func (t *threads) close() error {
	t.mu.Lock()
	t.closed = true
	t.idle = 0
	t.mu.Unlock()
	t.work.Broadcast()
	return nil
}

// queue is a ring buffer that never holds more than it was made for.
type queue[T any] struct {
	ring    []T
	head, n int
}

func (q *queue[T]) push(v T) {
	q.ring[(q.head+q.n)%len(q.ring)] = v
	q.n++
}

func (q *queue[T]) pop() T {
	v := q.ring[q.head]
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	return v
}
