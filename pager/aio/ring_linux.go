package aio

import "github.com/uffdpager/uffdpager/coro/bare"

// Ring is what code without a P may know of an engine: whether completions wait
// to be taken. It only looks; taking them is Reap's. The zero Ring never has
// any: that of an engine whose completions do not come through memory which the
// kernel writes.
//
// A Ring must not be looked at once the engine's Close has been called.
type Ring struct {
	Head, Tail *uint32 // completions taken by us, written by the kernel
}

// RingOf is the ring of e.
func RingOf(e Engine) Ring {
	e0, ok := e.(*engine)
	if !ok {
		return Ring{}
	}
	switch b := e0.back.(type) {
	case *kaio:
		if b.ring != nil {
			return Ring{&b.ring.head, &b.ring.tail}
		}
	case *uring:
		return Ring{b.cqHead, b.cqTail}
	}
	return Ring{}
}

// Look says how far completions were taken, and whether there are more. The
// rules of package bare apply.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (r *Ring) Look() (head uint32, more bool) {
	if r.Head == nil {
		return 0, false
	}
	head = bare.Load32(r.Head)
	return head, bare.Load32(r.Tail) != head
}
