//go:build !uffdpager_nointernals

package coro

import (
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// parkQueue takes parked goroutines from the threads on which they faulted to
// the one goroutine that looks after them. That goroutine is made ready by the
// very scheduler round that parked the other one, which puts it next on the
// same P: the work stays on its core.
type parkQueue struct {
	pending  uint64 // address of the newest slot; 0: none
	idle     uint32 // 1: the consumer is parked, or about to be
	woken    uint32 // 1: WakeParked was called
	consumer uint64 // the g of the goroutine that calls nextParked
	busy     uint32 // 1: it is there
	_        [36]byte

	pushed uint64               // parked so far
	recent [recentParked]uint64 // the addresses they faulted at
}

const recentParked = 1024 // as ParkedAt says

const (
	mainQueue = 0
	selfQueue = 1 // of the self-test
)

var queues [2]parkQueue

// parked is gopark's unlock function: it runs on the scheduler's stack of the
// thread that faulted, when the goroutine is waiting and may be made ready.
//
//go:norace
func parked(gp, slot unsafe.Pointer) bool {
	s := (*parkSlot)(slot)
	q := &queues[s.queue&1]
	bare.Store64(&q.recent[bare.Add64(&q.pushed, 1)%recentParked], uint64(s.fault.Addr))
	for {
		h := bare.Load64(&q.pending)
		s.next = uintptr(h)
		if bare.Cas64(&q.pending, h, uint64(uintptr(slot))) {
			break
		}
	}
	q.wake()
	return true
}

// wake makes the consumer ready if it is parked. Whoever clears idle does it.
//
//go:norace
func (q *parkQueue) wake() {
	if bare.Load32(&q.idle) == 1 && bare.Cas32(&q.idle, 1, 0) {
		goready(bare.Ptr(uintptr(bare.Load64(&q.consumer))), 1)
	}
}

// consumerParked is gopark's unlock function for the consumer. What was pushed
// before idle was set has found nobody to wake, so look again.
//
//go:norace
func consumerParked(gp, queue unsafe.Pointer) bool {
	q := (*parkQueue)(queue)
	bare.Store32(&q.idle, 1)
	if (bare.Load64(&q.pending) != 0 || bare.Load32(&q.woken) != 0) && bare.Cas32(&q.idle, 1, 0) {
		return false
	}
	return true
}

//go:norace
func (q *parkQueue) nextParked(buf []Parked) []Parked {
	if !bare.Cas32(&q.busy, 0, 1) {
		panic("coro: NextParked called by two goroutines at once")
	}
	bare.Store64(&q.consumer, uint64(CurrentG()))
	for {
		n := len(buf)
		if buf = q.take(buf); len(buf) > n {
			break
		}
		if bare.Cas32(&q.woken, 1, 0) {
			bare.Store64(&q.consumer, 0) // it may not come back
			break
		}
		gopark(consumerParked, unsafe.Pointer(q), waitReasonIOWait, traceBlockGeneric, 1)
	}
	bare.Store32(&q.busy, 0)
	return buf
}

// take appends what is pending, oldest first. Only the consumer calls it.
//
//go:norace
func (q *parkQueue) take(buf []Parked) []Parked {
	h := bare.Load64(&q.pending)
	for h != 0 && !bare.Cas64(&q.pending, h, 0) {
		h = bare.Load64(&q.pending)
	}
	first := len(buf)
	for a := uintptr(h); a != 0; {
		s := (*parkSlot)(bare.Ptr(a))
		a = s.next
		buf = append(buf, Parked{s.fault, uintptr(unsafe.Pointer(s)), bare.Load32(&s.seq)})
	}
	for i, j := first, len(buf)-1; i < j; i, j = i+1, j-1 {
		buf[i], buf[j] = buf[j], buf[i]
	}
	return buf
}

// NextParked appends the goroutines parked since the last call to buf, oldest
// first, waiting for one if there is none; after [WakeParked] it returns buf
// as it is. One goroutine of the process calls it, in a loop, and resumes or
// hands on every Parked; it panics if two do at once. What the caller does
// between the calls must not touch an arena: nobody would look after it.
func NextParked(buf []Parked) []Parked { return queues[mainQueue].nextParked(buf) }

// MoreParked appends the goroutines parked since the last call to buf, oldest
// first, without waiting for any: for the goroutine that calls NextParked, when
// it has let others run.
func MoreParked(buf []Parked) []Parked { return queues[mainQueue].take(buf) }

// ParkedSoFar is how many goroutines have been parked for NextParked. The rules
// of package bare apply to it and to ParkedAt.
//
//go:nosplit
//go:norace
//go:nocheckptr
func ParkedSoFar() uint64 { return bare.Load64(&queues[mainQueue].pushed) }

// ParkedAt is the address at which the n-th of them faulted, from 1. Only the
// last 1024 are remembered, and while others are being parked it may be the
// address of one of those: it is good for a hint.
//
//go:nosplit
//go:norace
//go:nocheckptr
func ParkedAt(n uint64) uintptr {
	return uintptr(bare.Load64(&queues[mainQueue].recent[n%recentParked]))
}

// WakeParked makes the current or the next call of NextParked return.
func WakeParked() { queues[mainQueue].wakeUp() }

//go:norace
func (q *parkQueue) wakeUp() {
	bare.Store32(&q.woken, 1)
	q.wake()
}

// Resume lets the goroutine go on: errno 0 runs the faulting instruction
// again (if the page has left meanwhile, it faults and parks again); anything
// else delivers the fault, with that errno in the fault log. It does not wait
// and may be called from any goroutine, once; a second call panics.
//
//go:norace
func (p Parked) Resume(errno uintptr) {
	s := (*parkSlot)(bare.Ptr(p.slot))
	if p.slot == 0 || !bare.Cas32(&s.seq, p.seq, p.seq+1) {
		panic("coro: Resume of a goroutine that is not parked")
	}
	s.fault.Errno = errno
	if negative&hideRegisters != 0 {
		unhideFrame(s)
	}
	goready(bare.Ptr(s.fault.G), 1)
}
