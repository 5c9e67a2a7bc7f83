//go:build linux

package pager

import (
	"errors"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/aio"
)

// Trying again
//
// Some errors pass by themselves: a path to the device that is being replaced,
// a moment without memory. Reads and writes that meet one are repeated with
// pauses that grow, before anybody is told. A read keeps its pages Loading
// meanwhile and its place in the queue depth, a write its copy and its pages
// Writing, so nothing else has to know. A flush is never repeated: what the
// first one failed to write may have been dropped by the kernel, and the second
// would say that all is well.
//
// The fault server does the same without Go: which errors pass is a set of
// errnos and not a function for its sake.

const (
	retryTimes    = 4
	retryPause    = time.Millisecond
	retryPauseMax = 250 * time.Millisecond
	retryGrowth   = 4
	retryErrnos   = 256 // errnos are smaller
)

// passing are the errnos that pass unless Retry.Errnos says otherwise.
var passing = []unix.Errno{unix.EAGAIN, unix.EINTR, unix.EBUSY, unix.ENOMEM, unix.ENOBUFS, unix.ETIMEDOUT, unix.ENOLINK}

// setRetry takes the options over into the descriptor, where the fault server
// finds them too.
func (d *desc) setRetry(o Retry) {
	if o.Times == 0 {
		o.Times = retryTimes
	}
	if o.Pause <= 0 {
		o.Pause = retryPause
	}
	if o.MaxPause <= 0 {
		o.MaxPause = retryPauseMax
	}
	errnos := o.Errnos
	if errnos == nil {
		errnos = passing
	}
	d.retryTimes = uint32(max(0, o.Times))
	d.retryPause, d.retryPauseMax = int64(o.Pause), int64(max(o.Pause, o.MaxPause))
	for _, e := range errnos {
		if e < retryErrnos {
			d.retrySet[e>>6] |= 1 << (e & 63)
		}
	}
}

// tryAgain: after tries attempts that were repeated, an error of this number is
// worth another one.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) tryAgain(errno uintptr, tries uint32) bool {
	return tries < d.retryTimes && errno < retryErrnos &&
		bare.Load64((*uint64)(unsafe.Add(unsafe.Pointer(&d.retrySet), errno>>6*8)))>>(errno&63)&1 != 0
}

// pauseBefore is how long, in nanoseconds, to wait before the repetition after
// tries others.
//
//go:nosplit
//go:norace
func (d *desc) pauseBefore(tries uint32) int64 {
	n := d.retryPause
	for i := uint32(0); i < tries && n < d.retryPauseMax; i++ {
		n *= retryGrowth
	}
	return min(n, d.retryPauseMax)
}

// retry starts op again with st after a pause, if its error is one that passes.
// tries is how often that was done already.
func (r *Region) retry(op *aio.Op, tries *uint32, again func()) bool {
	var no unix.Errno
	if op.Err == nil || r.draining.Load() && op.Code == aio.Read || !errors.As(op.Err, &no) || !r.d.tryAgain(uintptr(no), *tries) {
		return false
	}
	d := time.Duration(r.d.pauseBefore(*tries))
	*tries++
	r.p.stats.retries.Add(1)
	time.AfterFunc(d, again)
	return true
}

// readAgain repeats the I/O of l.
func (p *Pager) readAgain(l *load) {
	l.op = aio.Op{Code: aio.Read, Off: l.op.Off, Buf: l.op.Buf, Done: loadDone, Arg: l}
	b := newBatch()
	b.ops = append(b.ops, &l.op)
	p.flushBatch(b)
	b.free()
}

// writeAgain repeats the I/O of w.
func (p *Pager) writeAgain(w *writeIO) {
	w.op = aio.Op{Code: aio.Write, Off: w.op.Off, Buf: w.op.Buf, Done: writeIODone, Arg: w}
	ops := [1]*aio.Op{&w.op}
	w.st.Start(p.engine, ops[:])
}
