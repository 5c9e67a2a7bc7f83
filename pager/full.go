//go:build linux

package pager

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// A region that is full
//
// A region with MaxResident may have no room while the pager has some. Who wants
// room there stands in line with everybody (line.go) and is passed over until there is.
// Three things are to be seen to.
//
// Every page that becomes free goes to whoever asks next, and a request for one
// page is always sooner content than one for several. So who has waited for half of
// Options.StallLimit claims the region: until he has his room, those who began to
// wait after him get none. The oldest claim counts.
//
// A request is given up (ErrBudget) when what is resident cannot leave, not when
// there are many others, or a slow device, before it. So the clock is the
// region's: it starts anew when a request has had room and when there is more
// room than before, and stands while a read of the region that was under way
// is under way still, or pages are being written. It is only looked at for who
// has the claim.
//
// Thousands may wait for the same few pages. A region that has been found full
// for one of its requests is not asked again for the others that stand in the
// line, until it is gone through anew.
type fullRegion struct {
	granted atomic.Int64 // requests that have had room
	claim   atomic.Int64 // waitOp.age of who claims the region; 0: nobody

	inLine [2]int64 // requests in each of the lines, without Locks; the line's mu guards it

	// These belong to the server of the line.
	round   uint64    // when the region was found full last …
	need    int64     // … for requests of so many frames, and more
	seen    int64     // granted when the clock started …
	best    int64     // … and the most frames that have been free since
	since   time.Time // it started
	reading uint64    // a page that was being read when the limit was over, plus one …
	gen     uint32    // … and its generation
}

// count notes that op has come to line k, or left it. A Lock is not counted, so that it
// is always looked at: it may not be wanted any more.
func (f *fullRegion) count(k int, op *waitOp, n int64) {
	if op.lock == nil {
		f.inLine[k] += n
	}
}

// age orders requests by when they began: the oldest is the smallest.
func (op *waitOp) age() int64 { return max(1, int64(op.begun.Sub(op.r.begun))) }

// mayHaveRoom: nobody who has waited for room in op's region for longer claims it.
func (op *waitOp) mayHaveRoom() bool {
	c := op.r.full.claim.Load()
	return c == 0 || op.age() <= c
}

// unclaim ends op's claim, if it has one.
func (op *waitOp) unclaim() (had bool) {
	f := &op.r.full
	return f.claim.Load() != 0 && f.claim.CompareAndSwap(op.age(), 0)
}

// foundFull: there is no need to ask whether op can have room. The line's mu is held.
func (p *Pager) foundFull(op *waitOp) bool {
	f := &op.r.full
	return op.lock == nil && !op.resident && f.round == p.line.round && op.need >= f.need
}

// allFull: that is so of all that stand in line k.
func (p *Pager) allFull(k int) bool {
	l := &p.line
	n := int64(0)
	for _, r := range l.full {
		n += r.full.inLine[k]
	}
	return n != 0 && n == int64(p.lineLen[k].Load())
}

// passedOver notes that op's region has no room for it. The error is that there
// will be none. The server of the line calls it, with its mu held.
func (p *Pager) passedOver(k int, op *waitOp) error {
	r, limit, now := op.r, p.opt.StallLimit, time.Now()
	f := &r.full
	if op.resident || !op.mayHaveRoom() {
		return nil
	}
	if f.round != p.line.round || op.need < f.need {
		f.round, f.need = p.line.round, op.need
	}
	if g := f.granted.Load(); g != f.seen || f.since.IsZero() {
		f.seen, f.best, f.since, f.reading = g, 0, now, 0
	}
	if free := r.maxFrames - load64(&r.d.resident); free > f.best {
		f.best, f.since, f.reading = free, now, 0
	}
	waits := now.Sub(op.begun)
	if waits >= limit/2 {
		f.claim.Store(op.age())
		f.need = 0
	}
	if f.need <= r.fpp && !slices.Contains(p.line.full, r) {
		p.line.full = append(p.line.full, r)
	}
	switch {
	case waits < limit || now.Sub(f.since) < limit:
		return nil
	case f.reading != 0 && r.reads(f.reading-1, f.gen),
		p.writingFrames.Load() > 0 && p.flush.failed.Load() < f.since.UnixNano():
		f.since = now // the device has not got on either
		return nil
	}
	if page, w, ok := r.somePage(isRead); ok && f.reading == 0 {
		f.reading, f.gen, f.since = page+1, uint32(w>>32), now
		return nil
	}
	return fmt.Errorf("%w: MaxResident is reached, and nothing of the region could leave for %v", ErrBudget, limit)
}

// reads: the read of page that has this generation is under way.
func (r *Region) reads(page uint64, gen uint32) bool {
	pw, w := r.d.look(page)
	return pw != nil && isRead(w) && uint32(w>>32) == gen
}

// isRead: the page of this word is being read.
func isRead(w word) bool { return w&stateMask == stLoading && !isMarker(w) }

// somePage finds a page of the region whose word is so.
func (r *Region) somePage(so func(w word) bool) (page uint64, w word, ok bool) {
	for lf := range r.p.leaves() {
		if lf.d != r.d {
			continue
		}
		for k := range uint64(leafPages) {
			page := lf.group<<leafShift + k
			if pw, w := r.d.look(page); pw != nil && so(w) { // the leaf may have changed hands
				return page, w, true
			}
		}
	}
	return 0, 0, false
}
