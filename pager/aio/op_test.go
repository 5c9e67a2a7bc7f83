package aio

import (
	"fmt"
	"syscall"
	"testing"
)

// What one result of the kernel makes of an op of 8192 bytes.
func TestAdvance(t *testing.T) {
	const size = 8192
	for _, c := range []struct {
		code     Code
		before   int
		res      int64
		finished bool
		n        int
		err      error
	}{
		{Read, 0, size, true, size, nil},
		{Read, 0, 4096, false, 4096, nil},
		{Read, 4096, 4096, true, size, nil},
		{Read, 0, 0, true, 0, nil},       // at the end of the file
		{Read, 4096, 0, true, 4096, nil}, // met it
		{Read, 100, -int64(syscall.EINVAL), true, 100, nil},
		{Read, 0, -int64(syscall.EINVAL), true, 0, syscall.EINVAL},
		{Read, 4096, -int64(syscall.EIO), true, 4096, syscall.EIO},
		{Read, 0, -int64(syscall.EINTR), false, 0, nil},
		{Read, 0, -int64(syscall.EAGAIN), true, 0, syscall.EAGAIN},
		{Write, 0, size, true, size, nil},
		{Write, 0, 512, false, 512, nil},
		{Write, 512, 0, true, 512, syscall.EIO},
		{Write, 512, -int64(syscall.ENOSPC), true, 512, syscall.ENOSPC},
		{Write, 512, -int64(syscall.EINVAL), true, 512, syscall.EINVAL},
		{Flush, 0, 0, true, 0, nil},
		{Flush, 0, -int64(syscall.EINTR), false, 0, nil},
		{Flush, 0, -int64(syscall.EIO), true, 0, syscall.EIO},
	} {
		op := &Op{Code: c.code, Buf: make([]byte, size), N: c.before}
		if finished := op.advance(c.res); finished != c.finished || op.N != c.n || op.Err != c.err {
			t.Errorf("%v, %d before, result %d: finished %v, N %d, %v; want %v, %d, %v",
				c.code, c.before, c.res, finished, op.N, op.Err, c.finished, c.n, c.err)
		}
	}
}

func TestFifo(t *testing.T) {
	var ops [6]Op
	number := func(q *fifo) (s string) {
		for op := q.pop(); op != nil; op = q.pop() {
			for i := range ops {
				if op == &ops[i] {
					s += fmt.Sprint(i)
				}
			}
		}
		return s
	}
	var q, front, none fifo
	q.push(&ops[3])
	q.push(&ops[4])
	front.push(&ops[1])
	front.push(&ops[2])
	q.prepend(front)
	q.prepend(none)
	q.push(&ops[5])
	if s := number(&q); s != "12345" || !q.empty() {
		t.Errorf("order %q", s)
	}
	front = fifo{}
	front.push(&ops[0])
	q.prepend(front)
	q.push(&ops[1])
	if s := number(&q); s != "01" {
		t.Errorf("order after being empty %q", s)
	}
}

func TestKindNames(t *testing.T) {
	for k := Auto; k <= Threads; k++ {
		if got, err := ParseKind(k.String()); got != k || err != nil {
			t.Errorf("%v: %v, %v", k, got, err)
		}
	}
	if _, err := ParseKind("best"); err == nil {
		t.Error("any name is an engine")
	}
	if Kind(9).String() == "" || Code(9).String() == "" {
		t.Error("an unknown value has no name")
	}
}
