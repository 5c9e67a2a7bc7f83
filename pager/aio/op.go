package aio

import "syscall"

// opState is what an engine keeps in an Op. The progress of a transfer is in
// Op.N itself.
type opState struct {
	next *Op // in the queue that holds the op
}

// rest is what is still to be transferred. Only to be called while the op is
// unfinished.
func (op *Op) rest() (buf []byte, off int64) {
	return op.Buf[op.N:], op.Off + int64(op.N)
}

// advance takes the result of one system call (bytes, or a negative errno) and
// reports whether the op is finished; if not, what is left must be submitted
// again.
func (op *Op) advance(res int64) (finished bool) {
	if res < 0 {
		errno := syscall.Errno(-res)
		switch {
		case errno == syscall.EINTR:
			return false
		case errno == syscall.EINVAL && op.Code == Read && op.N > 0:
			// The rest of a short O_DIRECT read begins at an offset
			// that is not aligned, and only the end of a file does.
		default:
			op.Err = errno
		}
		return true
	}
	if op.Code == Flush {
		return true
	}
	op.N += int(res)
	if res == 0 && op.Code == Write && op.N < len(op.Buf) {
		op.Err = syscall.EIO // write(2) promises progress or an error
	}
	return res == 0 || op.N >= len(op.Buf)
}

// fifo is a queue of ops linked through their state: an op is in at most one.
type fifo struct {
	head, tail *Op
}

func (q *fifo) empty() bool { return q.head == nil }

func (q *fifo) push(op *Op) {
	op.state.next = nil
	if q.tail == nil {
		q.head = op
	} else {
		q.tail.state.next = op
	}
	q.tail = op
}

func (q *fifo) pop() *Op {
	op := q.head
	if op == nil {
		return nil
	}
	q.head, op.state.next = op.state.next, nil
	if q.head == nil {
		q.tail = nil
	}
	return op
}

// prepend moves all of front before what is in q.
func (q *fifo) prepend(front fifo) {
	if front.empty() {
		return
	}
	front.tail.state.next = q.head
	q.head = front.head
	if q.tail == nil {
		q.tail = front.tail
	}
}
