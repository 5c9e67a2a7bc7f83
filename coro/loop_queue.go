package coro

// ring is a first-in-first-out queue in a circular buffer that doubles when it
// is full and keeps its room.
type ring[T any] struct {
	buf  []T // length is zero or a power of two
	head int // index of the oldest
	n    int
}

func (q *ring[T]) push(v T) {
	if q.n == len(q.buf) {
		bigger := make([]T, max(16, 2*q.n))
		k := copy(bigger, q.buf[q.head:])
		copy(bigger[k:], q.buf[:q.head])
		q.buf, q.head = bigger, 0
	}
	q.buf[(q.head+q.n)&(len(q.buf)-1)] = v
	q.n++
}

// pop takes the oldest; the queue must not be empty.
func (q *ring[T]) pop() T {
	var zero T
	v := q.buf[q.head]
	q.buf[q.head] = zero // nothing that was taken is kept from the collector
	q.head = (q.head + 1) & (len(q.buf) - 1)
	q.n--
	return v
}
