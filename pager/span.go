//go:build linux

package pager

import (
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
)

// Protecting scattered pages
//
// Taking the write permission from one page costs a system call and a flush of
// the translations on every core that runs the program, which is more than all
// the rest of writing it back. One call for a span of pages costs the same
// flush once, and little for each page in between, most of which are clean and
// so write-protected already, or absent.
//
// Pages in between that are to be writable are the danger. So desc.span says
// which pages are being protected; then the words of those in between are looked
// at, and the span ends before a page that is writable, or about to be
// (Dirty, Writing and written to again, Unlocking, Installing, Copying). Whoever
// makes a page writable, from Unlocking or Installing, first makes that state
// visible and then waits until the page is in no span (afterSpan): one of the
// two sees the other. So no page becomes writable in a range that is being
// protected, and none is hit that was, a write-pinned one least of all, of which
// the kernel would repeat no store. Protecting any other page changes nothing:
// it is clean and protected, or absent.
//
// The wait is bounded: who has a span waits for nobody and cannot be stopped
// (coro.Unstopped); others may wait for him in the handler. There is one span of a
// region at a time; who finds another one under way protects his pages one by
// one.

const (
	// What a call and its flush cost for one page more, in frames in between: as
	// much as a hundred where another core takes part, as ten where the others
	// are idle, and as two hundred whoever runs under a hypervisor that has page
	// tables of its own (BenchmarkProtectScattered in uffd). 128 is never far off.
	spanGap = 128 // frames between two pages that may be in one span

	// Frames of a span. It is passed over unstopped, in some tens of
	// microseconds, under such a hypervisor in some hundreds; that page tables
	// are gone through together ceases to pay at about as many.
	spanMost = 1024
	spanRuns = 64

	// desc.span: number of the span << 52 | first page << 16 | how many, 0 if
	// none is under way.
	spanFirst = 16
	spanOne   = 1 << 52
)

// outRun is consecutive pages to be copied out.
type outRun struct {
	first uint64
	n     int            // how many
	dst   unsafe.Pointer // where to
	took  int            // how many were, from the first on
}

// copyOutSpan is copyOut for n runs in ascending order, of copyMax frames in
// all, none of them next to another. false: another span is under way, and
// nothing was done.
//
//go:nosplit
//go:norace
//go:nocheckptr
func copyOutSpan(d *desc, runs *outRun, n int) bool {
	first, last := runAt(runs, 0), runAt(runs, n-1)
	none := bare.Load64(&d.span)
	many := last.first + uint64(last.n) - first.first
	if none&(1<<spanFirst-1) != 0 || !bare.Cas64(&d.span, none, none&^(spanOne-1)+spanOne|first.first<<spanFirst|many) {
		return false
	}
	for i := 0; i < n; i++ {
		claimRun(d, runAt(runs, i))
	}
	protectSpans(d, runs, n)
	bare.Store64(&d.span, none&^(spanOne-1)+spanOne)
	copyRuns(d, runs, n)
	return true
}

// copyRuns copies out the claimed pages, which are protected, and takes them to Writing.
//
//go:nosplit
//go:norace
//go:nocheckptr
func copyRuns(d *desc, runs *outRun, n int) {
	for i := 0; i < n; i++ {
		r := runAt(runs, i)
		for k := 0; k < r.took; k++ {
			page := r.first + uint64(k)
			d.clearDirty(page)
			bare.Copy(unsafe.Add(r.dst, uintptr(k)<<d.shift), bare.Ptr(d.addr(page)), d.pageSize())
		}
	}
	for i := 0; i < n; i++ {
		r := runAt(runs, i)
		for k := 0; k < r.took; k++ {
			pw, _ := d.look(r.first + uint64(k))
			setState(pw, stCopying, stWriting, 0, 0)
		}
	}
}

// copyOutSpan is copyOutSpan for goroutines.
func (r *Region) copyOutSpan(runs []outRun) bool {
	held := coro.Unstopped()
	done := copyOutSpan(r.d, &runs[0], len(runs))
	coro.Stoppable(held)
	return done
}

//go:nosplit
//go:norace
//go:nocheckptr
func runAt(runs *outRun, i int) *outRun {
	return (*outRun)(unsafe.Add(unsafe.Pointer(runs), uintptr(i)*unsafe.Sizeof(outRun{})))
}

// claimRun takes pages of the run from Dirty to Copying, up to the first that is
// not Dirty, write-pinned, or held.
//
//go:nosplit
//go:norace
//go:nocheckptr
func claimRun(d *desc, r *outRun) {
	for r.took = 0; r.took < r.n; {
		page := r.first + uint64(r.took)
		pw, w := d.look(page)
		if pw == nil || w&stateMask != stDirty || w&flagWritePin != 0 {
			return
		}
		if !bare.Cas64(pw, w, w&^(stateMask|flagRedirtied)|stCopying) {
			continue
		}
		if d.held(page) { // after the transition, as in copyOut
			setState(pw, stCopying, stDirty, 0, 0)
			return
		}
		r.took++
	}
}

// protectSpans write-protects the claimed pages of n runs, in as few spans as may be.
//
//go:nosplit
//go:norace
//go:nocheckptr
func protectSpans(d *desc, runs *outRun, n int) {
	for i := 0; i < n; {
		if runAt(runs, i).took == 0 {
			i++
			continue
		}
		last := i // the run that the span ends with
		for k := i + 1; k < n; k++ {
			if runAt(runs, k).took > 0 {
				if a := runAt(runs, last); spanEnds(d, a.first+uint64(a.took), runAt(runs, k).first) {
					break
				}
				last = k
			}
		}
		if !protectSpan(d, runs, i, last) {
			reopenRuns(d, runs, i, last)
		}
		i = last + 1
	}
}

// spanEnds: one of the pages [from, to) is writable or about to be.
//
//go:nosplit
//go:norace
//go:nocheckptr
func spanEnds(d *desc, from, to uint64) bool {
	for page := from; page < to; page++ {
		_, w := d.look(page)
		switch w & stateMask {
		case stInstalling, stUnlocking, stDirty, stCopying:
			return true
		case stWriting:
			if w&flagRedirtied != 0 {
				return true
			}
		}
	}
	return false
}

// protectSpan write-protects what lies from run i to run last, if it can.
//
//go:nosplit
//go:norace
//go:nocheckptr
func protectSpan(d *desc, runs *outRun, i, last int) bool {
	first := runAt(runs, i).first
	end := runAt(runs, last).first + uint64(runAt(runs, last).took)
	return protectVia(d.addr(first), uintptr(end-first)<<d.shift, true) == 0
}

// reopenRuns takes runs that could not be protected back to Dirty.
//
//go:nosplit
//go:norace
//go:nocheckptr
func reopenRuns(d *desc, runs *outRun, i, last int) {
	for k := i; k <= last; k++ {
		r := runAt(runs, k)
		if r.took > 0 {
			protectRange(d.addr(r.first), uintptr(r.took)<<d.shift, false)
		}
		for ; r.took > 0; r.took-- {
			pw, _ := d.look(r.first + uint64(r.took) - 1)
			setState(pw, stCopying, stDirty, 0, 0)
		}
	}
}

// afterSpan waits for the span that the page is in. Its word says already that it
// is about to become writable, so a later span leaves it out.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) afterSpan(page uint64) {
	v := bare.Load64(&d.span)
	if page-v&(spanOne-1)>>spanFirst >= v&(1<<spanFirst-1) {
		return
	}
	for turn := 0; bare.Load64(&d.span) == v; turn++ {
		relax(turn)
	}
}
