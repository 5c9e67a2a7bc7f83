//go:build linux

package pager

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
)

// The shelf
//
// A scan by ReadAt wants copies too, of pages that were read ahead, and one by Acquire
// in a region that lends (lentpins.go) has a use for the buffer. So where
// these are what comes to such pages, the buffers they were read to are kept for
// a while when the pages have been installed, and whoever comes to one of them
// for the first time copies from there: the page need not be touched, which is
// most of what a page of a scan costs (see loan.go).
//
// What he copies is the page as it was read. That is what it is now, because it is
// still of the generation it was read under, Resident, and has flagPrefetched, which
// goes when a page becomes writable and does not come back: nobody can have stored to
// it. Taking that flag off is the moment at which he reads; who stores to
// the page later does so while his call is under way.
//
// The buffers are few, and the oldest goes first. One that was copied from to its
// end goes at once, back to where the next read finds it in the cache. Those of one page
// or a few, which a replay reads ahead or the children of a node, are many, and found by
// the page (see singles.go); the others go through a list.
//
// Many scans at once have more between the device and themselves than the shelf
// holds: most buffers would be put off before their turn, having only kept the reads
// from memory that is in the cache, and a larger shelf makes that worse. So what has
// become of the pages is counted, and where less than half were copied all are given
// back and nothing is kept for a while; for twice as long if it was no use the last time either.
const (
	shelfBytes = 4 << 20 // what a scan has between the device and the program
	shelfShare = 8       // and at most 1/shelfShare of the budget
	shelfMost  = 64      // buffers: a search goes through them
	shelfTrial = 1024    // pages of which it is known what became of them
	shelfRest  = 8 << 10 // pages that are not kept when it was no use
	restMost   = 16      // times as many, when it was no use again and again
)

type shelf struct {
	mu      sync.Mutex
	list    []shelved // oldest first
	bytes   int       // of list
	trial   trial     // of list
	singles singles
	n       atomic.Int32 // of list, and pages of singles
}

// shelved is the buffer of a load.
type shelved struct {
	r     *Region
	first uint64
	gens  []uint32
	buf   *buffer
	left  int // pages that nobody has copied yet
}

// trial is whether it is of use to keep buffers: pages copied, and pages put off before
// that; how many are not kept from now on, and were not the last time.
type trial struct{ copied, wasted, rest, rested int }

// rests is whether the buffer of so many pages is not to be kept.
func (t *trial) rests(pages int) bool {
	if t.rest == 0 {
		return false
	}
	t.rest = max(t.rest-pages, 0)
	return true
}

// judge ends a trial that has lasted long enough, and says whether it was no use.
func (t *trial) judge() (useless bool) {
	if t.copied+t.wasted < shelfTrial {
		return false
	}
	if t.wasted > t.copied {
		t.rested = max(shelfRest, min(2*t.rested, restMost*shelfRest))
	} else {
		t.rested = 0
	}
	t.rest = t.rested
	t.copied, t.wasted = 0, 0
	return t.rest > 0
}

// copied notes whether it is those who look on the shelf that come to pages of r now,
// or others.
func (r *Region) copied(by bool) {
	if c := &r.ahead.copied; c.Load() != by {
		c.Store(by)
	}
}

// shelve keeps the buffer of l, whose pages are about to be installed.
func (p *Pager) shelve(l *load) {
	size := len(l.buf.mem)
	share := int(p.budget.Load() << frameShift / shelfShare)
	s := &p.shelf
	var few [shelfMost]*buffer
	out := few[:0]
	s.mu.Lock()
	switch most := min(shelfBytes, share); {
	case size <= loanBytes:
		out = s.singles.add(l, min(singlesBytes, share), out)
	case size > most || s.trial.rests(len(l.gens)):
	default:
		l.buf.lent.Add(1)
		var gens []uint32
		for len(s.list) > 0 && (len(s.list) == shelfMost || s.bytes+size > most) {
			s.trial.wasted += s.list[0].left
			gens = s.list[0].gens
			out = append(out, s.pop(0))
		}
		s.list = append(s.list, shelved{l.r, l.first, append(gens[:0], l.gens...), l.buf, len(l.gens)})
		s.bytes += size
		if s.trial.judge() {
			for len(s.list) > 0 {
				out = append(out, s.pop(len(s.list)-1))
			}
		}
	}
	s.count()
	s.mu.Unlock()
	for _, buf := range out {
		bufs.put(buf)
	}
}

// count is called when something was added or taken. s.mu is held.
func (s *shelf) count() { s.n.Store(int32(len(s.list) + len(s.singles.at))) }

// pop takes out the i-th buffer; the caller puts it back. s.mu is held.
func (s *shelf) pop(i int) *buffer {
	buf := s.list[i].buf
	n := i + copy(s.list[i:], s.list[i+1:])
	s.list[n] = shelved{}
	s.list = s.list[:n]
	s.bytes -= len(buf.mem)
	return buf
}

// take lends the buffer that page of generation gen was read to, and says where in
// it the page is; the caller puts it back. nil: it is not there.
func (s *shelf) take(r *Region, page uint64, gen uint32) (buf *buffer, off int) {
	if s.n.Load() == 0 {
		return nil, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if buf, off = s.singles.take(r, page, gen); buf != nil {
		s.count()
		return buf, off
	}
	for i := range s.list {
		h := &s.list[i]
		at := page - h.first
		if h.r != r || at >= uint64(len(h.gens)) || h.gens[at] != gen {
			continue
		}
		off = int(at << r.shift)
		s.trial.copied++
		if h.left--; h.left == 0 {
			buf = s.pop(i) // with the share of the shelf
			s.count()
			return buf, off
		}
		h.buf.lent.Add(1)
		return h.buf, off
	}
	return nil, 0
}

// drop lets go of all buffers of r; nil: of all there are.
func (s *shelf) drop(r *Region) {
	s.mu.Lock()
	out := s.singles.drop(r)
	for i := 0; i < len(s.list); {
		if r != nil && s.list[i].r != r {
			i++
			continue
		}
		out = append(out, s.pop(i))
	}
	s.count()
	s.mu.Unlock()
	for _, buf := range out {
		bufs.put(buf)
	}
}

// copyFirst is firstTouch by somebody who wants to copy to b from skip on in the
// page, and says whether he has: from where the page was read to.
func (r *Region) copyFirst(b []byte, skip int, pw *word, w word, page uint64) bool {
	r.copied(true)
	buf, off := r.p.shelf.take(r, page, uint32(w>>32))
	if buf != nil {
		defer bufs.put(buf)
	}
	if !r.firstTouch(pw, w, page) || buf == nil || w&stateMask != stResident {
		return false
	}
	// (b may be memory of a region, of which a page is missing.)
	left, _ := coro.CopyOut(unsafe.Pointer(unsafe.SliceData(b)), unsafe.Pointer(&buf.mem[off+skip]), uintptr(len(b)))
	return left == 0
}
