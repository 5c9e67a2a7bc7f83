//go:build linux

package pager

import "context"

// Reading from the read buffer
//
// A ReadAt that misses wants a copy, and the page has just been copied to where
// it belongs from a buffer that is still in the processor's cache. So the buffer
// is lent to whoever waits for that: he copies from there, and need not touch the
// page. The first touch of a freshly mapped page misses in the TLB, and under a
// hypervisor that keeps page tables of its own it costs ten times what
// installing the page does (BenchmarkCycle in uffd).
//
// What he copies is the page as it was when it was installed, which was after he
// asked for it and before his call returns: a store that the page has had
// meanwhile was made while his call was under way. That is why the buffer of a
// page that is born dirty is not lent, which can be stored to while there are still
// some who begin to wait for it, nor that of one which has left by the time its
// waiters are told.
const (
	loanBytes = 16 << 10 // buffers up to this size are lent
	loanMost  = 256      // to so many who have not run yet, nearly: who has no luck touches the page
)

// loan is what a waiter has of this.
type loan struct {
	wanted bool
	buf    *buffer // nil: none
	off    int     // where in it the page is
	pin    pinned  // for a pin, by which it has the buffer; 0: none (lentpins.go)
}

// take lends buf.
func (l *loan) take(buf *buffer, off int) {
	if len(buf.mem) <= loanBytes && readied.runnable.Load() < loanMost {
		buf.lent.Add(1)
		l.buf, l.off = buf, off
	}
}

// putLoans puts back what the op's waiters have been lent.
func (op *waitOp) putLoans() {
	for i := range op.nw {
		if l := &op.ws[i].loan; l.pin != 0 {
			op.r.p.lent.end(l.pin)
		} else {
			bufs.put(l.buf)
		}
	}
}

// waitLoan is wait, for one page, that also returns the buffer that the page can be
// copied from, if there is one; then the caller puts it back.
func (op *waitOp) waitLoan() (buf *buffer, off int, err error) {
	_ = op.hear(context.Background())
	l := op.w0[0].loan
	return l.buf, l.off, op.end()
}
