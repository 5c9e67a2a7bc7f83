package coro

import "github.com/uffdpager/uffdpager/coro/bare"

// The fault log remembers why faults were delivered. Go's own fault carries an
// address at best; the errno is found here, by the goroutine or the address,
// also when the code that faulted swallowed the panic.

// logSize is how many deliveries are remembered.
const logSize = 4096 // a power of two

// A record is a small sequence lock: seq is 0 while it is being written, so
// that a reader that saw the same seq before and after has seen one record.
type logRecord struct {
	seq            uint64
	g, addr, errno uint64
}

var (
	faultLog [logSize]logRecord
	logSeq   uint64
)

// logFault runs in signal context.
//
//go:nosplit
//go:norace
//go:nocheckptr
func logFault(g, addr, errno uintptr) {
	n := bare.Add64(&logSeq, 1)
	r := &faultLog[n%logSize]
	bare.Store64(&r.seq, 0)
	bare.Store64(&r.g, uint64(g))
	bare.Store64(&r.addr, uint64(addr))
	bare.Store64(&r.errno, uint64(errno))
	bare.Store64(&r.seq, n)
}

// Seq is the number of faults delivered so far: a mark for [Delivered].
func Seq() uint64 { return bare.Load64(&logSeq) }

// Delivered finds the newest fault delivered to goroutine g (see [CurrentG])
// after the mark since. The log keeps the last 4096 deliveries of the process;
// what is older is forgotten. It costs one load if there was none.
func Delivered(g uintptr, since uint64) (addr, errno uintptr, ok bool) {
	return findFault(since, func(r *logRecord) bool { return uintptr(bare.Load64(&r.g)) == g })
}

// DeliveredAt finds the errno of the newest delivery at addr, which is what
// the Addr method of the runtime's error returns.
func DeliveredAt(addr uintptr) (errno uintptr, ok bool) {
	_, errno, ok = findFault(0, func(r *logRecord) bool { return uintptr(bare.Load64(&r.addr)) == addr })
	return errno, ok
}

func findFault(since uint64, match func(*logRecord) bool) (addr, errno uintptr, ok bool) {
	n := Seq()
	for last := max(since, n-min(n, logSize)); n > last; n-- {
		r := &faultLog[n%logSize]
		if bare.Load64(&r.seq) != n || !match(r) {
			continue
		}
		addr, errno = uintptr(bare.Load64(&r.addr)), uintptr(bare.Load64(&r.errno))
		if bare.Load64(&r.seq) == n {
			return addr, errno, true
		}
	}
	return 0, 0, false
}
