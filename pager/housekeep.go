//go:build linux

package pager

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/prefetch"
)

// The pager's goroutines
//
//	reaper       sleeps on the engine's eventfd and runs completions
//	housekeeper  does what P-less code cannot: tells policies of the pages the
//	             fault server loaded, wakes their waiters, keeps room; and
//	             looks at the clock (stalls, flushing)
//	watch        looks for wedges; on its own, for a hook may hold the others up
//	parker       one for the process: starts the reads of parked goroutines
//
// and one thread that is no goroutine, the rescuer: see rescue.go. Their number does not grow with anything. None of them touches the memory of
// a region.

func now() time.Time { return time.Now() }

func (p *Pager) reap() {
	defer p.wg.Done()
	for {
		for p.engine.Reap(8) > 0 {
			p.thin()
		}
		p.roomAhead()
		if err := p.engine.Wait(context.Background()); err != nil {
			return
		}
	}
}

// reapSome runs completions that are there already.
func (p *Pager) reapSome(n int) { p.engine.Reap(n) }

// tick is how often the housekeeper looks at the clock.
const tick = 50 * time.Millisecond

// lull is for how long it goes on doing so when nothing is going on any more.
const lull = 10 * tick

// How the housekeeper sleeps (pagerWords.sleeping).
const (
	asleep = 1 // without a clock
	dozing = 2 // until the next tick
)

func (p *Pager) housekeep() {
	defer p.wg.Done()
	var busy time.Time // when something was going on last
	for {
		p.readNotices()
		p.keepRoom()
		p.sweepMarkers()
		p.sweepUnmapped()
		if bare.Xchg32(&p.w.wantRoom, 0) != 0 && load64(&p.w.free) <= 0 {
			p.evictSome(p.evictBatch.Load())
		}
		if p.waiting.Load() != 0 {
			p.breakStall()
			p.breakRefusal()
		}
		p.feed()
		if bare.Xchg32(&p.w.wantSlots, 0) != 0 {
			p.pokeJournals()
		}
		p.expireHolds()
		p.flushTick()
		setPatience()
		if p.stop.Load() {
			return
		}
		bare.Store32(&p.w.sleeping, asleep)
		if bare.Load64(&p.w.noticeTail) != bare.Load64(&p.w.noticeHead) || bare.Load32(&p.w.wantRoom) != 0 || bare.Load32(&p.w.wantSlots) != 0 {
			// It came before the flag was seen.
			bare.Store32(&p.w.sleeping, 0)
			continue
		}
		// Idle is asked when everybody can see that no clock is looked at.
		now := time.Now()
		if !p.idle() {
			busy = now
		}
		if now.Sub(busy) > lull {
			p.waitWake(0)
		} else {
			bare.Store32(&p.w.sleeping, dozing)
			p.waitWake(p.tick())
		}
		bare.Store32(&p.w.sleeping, 0)
	}
}

// tick is how long the housekeeper sleeps while something is going on.
func (p *Pager) tick() time.Duration {
	if p.holds.n.Load() != 0 && p.waiting.Load() != 0 {
		return holdShort
	}
	return tick
}

// waitWake sleeps until P-less or ordinary code calls wake, or for d (0: no
// limit).
func (p *Pager) waitWake(d time.Duration) {
	var dl time.Time
	if d > 0 {
		dl = time.Now().Add(d)
	}
	_ = p.wakeFile.SetReadDeadline(dl)
	var b [8]byte
	_, _ = p.wakeFile.Read(b[:])
}

// idle: nobody waits, and nothing was dirty the last time that the clock was looked at,
// so that none is needed.
func (p *Pager) idle() bool {
	return p.waiting.Load() == 0 && bare.Load32(&p.w.goneWithoutUs) == 0 && load64(&p.w.dirty) == 0 && p.holds.n.Load() == 0 && !p.flush.sweeping && !p.flush.aging
}

// rouse wakes the housekeeper from ordinary code.
func (p *Pager) rouse() {
	bare.Store32(&p.w.sleeping, 0)
	eventfdSignal(p.w.wakeFD)
}

// readNotices does what P-less code has asked for.
func (p *Pager) readNotices() {
	w := p.w
	for {
		h := bare.Load64(&w.noticeHead)
		if h == bare.Load64(&w.noticeTail) {
			break
		}
		s := &w.notices[h%noticeSlots]
		v := bare.Load64(s)
		for turn := 0; v == 0; turn++ { // its writer is between the two steps
			relaxGo(turn)
			v = bare.Load64(s)
		}
		bare.Store64(s, 0)
		bare.Store64(&w.noticeHead, h+1)
		p.notice(v)
	}
	if bare.Xchg32(&w.noticeLost, 0) != 0 {
		p.reconcile()
	}
}

func (p *Pager) notice(v uint64) {
	page := v & (1<<noticePageBits - 1)
	d := descAt(uint32(v >> noticePageBits & (1<<noticeDescBits - 1)))
	r := regionOf(d)
	if r == nil || r.p != p || page >= d.pages || !r.enterAlways() {
		return
	}
	defer r.leave()
	p.transition()
	switch v >> 60 {
	case noticeLoaded, noticeRescued:
		p.lockEvict()
		if _, w := d.look(page); present(w) {
			r.domain.policy.Install(pageKey(d, page), evict.Demand)
		}
		p.evictMu.Unlock()
		p.settle(r, page)
		p.forgetMarker(r, page)
		if v>>60 == noticeLoaded {
			r.copies.Store(0)
			r.observe(prefetch.Event{Kind: prefetch.Miss, Page: int64(page)}, true)
		}
		p.pumpNow()
	case noticeFailed:
		p.settleFailed(r, page)
	case noticeWritten:
		p.stats.writes.Add(1)
		p.stats.writebacks.Add(1)
		p.stats.writtenBytes.Add(1 << r.shift)
		r.pageWritten(page)
		p.cleaned()
	}
	p.keepRoom()
}

// reconcile makes good for lost notices: every page that is resident is known
// to its policy, every waiter of a page that is there is woken.
func (p *Pager) reconcile() {
	for _, r := range p.regionList() {
		if !r.enterAlways() {
			continue
		}
		r.eachPage(func(page uint64, w word) {
			switch {
			case present(w):
				p.tellEvict(r, page, evict.Reprieve)
				p.settle(r, page)
			case w&stateMask == stFailed:
				p.settleFailed(r, page)
			}
		})
		r.write.mu.Lock()
		var waited []uint64
		for page := range r.write.waiters {
			waited = append(waited, page)
		}
		r.write.mu.Unlock()
		for _, page := range waited {
			r.pageWritten(page)
		}
		r.leave()
	}
}

// settleFailed reads a page again that the fault server could not read and
// that has waiters; if it fails again, they get the error.
func (p *Pager) settleFailed(r *Region, page uint64) {
	for {
		pw, w := r.d.look(page)
		if pw == nil || w&stateMask != stFailed {
			return
		}
		n := w&^(genMask|stateMask) | stLoading | newGen()
		if bare.Cas64(pw, w, n) {
			b := newBatch()
			b.add(r, page, uint32(n>>32), demand)
			p.submit(b)
			return
		}
	}
}

// parker starts the reads of goroutines that are parked in place. There is one
// for the process.
func parker() {
	var buf []coro.Parked
	for {
		buf = coro.NextParked(buf[:0])
		p := leadParked(buf)
		if p == nil {
			startAll(buf)
			if len(buf) == 1 {
				awaitParked(buf[0])
			}
			continue
		}
		if len(buf) < p.gather.enough() {
			p.gather.yield()
			buf = coro.MoreParked(buf)
		}
		startAll(buf)
		p.gather.flush()
		// Those who wait for their reads to start come first; then, as in submit,
		// whatever has finished.
		if coro.ParkedSoFar() == bare.Load64(&rescuer.started) {
			p.reapSome(8)
		}
	}
}

func startAll(buf []coro.Parked) {
	for _, pk := range buf {
		startParked(pk)
		bare.Add64(&rescuer.started, 1)
	}
}

// leadParked is the pager whose reads are gathered, see lead: the first one's of
// those who are parked, or nil. Those of others go out as ever.
func leadParked(buf []coro.Parked) *Pager {
	if len(buf) == 0 {
		return nil
	}
	if r := regionAt(buf[0].Addr); r != nil && r.p.lead() {
		return r.p
	}
	return nil
}

func startParked(pk coro.Parked) {
	again, stuck := refault(pk)
	r := regionAt(pk.Addr)
	if r == nil || !r.enterFault() {
		pk.Resume(errnoClosed)
		return
	}
	off := uint64(pk.Addr) - uint64(r.d.base)
	if off >= bare.Load64(&r.d.length) {
		r.leave()
		pk.Resume(errnoRange)
		return
	}
	page := off >> r.shift
	if pk.Access == coro.WriteProtected {
		r.startParkedWrite(pk, page, stuck, time.Now())
		return
	}
	r.startParkedRead(pk, page, again, nil)
}

// startParkedRead reads the page a parked goroutine needs; before says since
// when it has been waiting, if that was tried before.
func (r *Region) startParkedRead(pk coro.Parked, page uint64, again bool, before *tracked) {
	op := newOp(r)
	if before != nil {
		op.begun, op.told = before.begun, before.told
	}
	op.isPark, op.parked = true, pk
	op.hold = again || r.p.waiting.Load() != 0
	op.store = pk.Access == coro.Write && r.fpp == 1
	op.one[0] = pageRange{page, 1}
	op.ranges = op.one[:]
	if err := r.p.begin(op); err != nil {
		pk.Resume(r.noteFault(err))
	}
}

// noteFault makes an errno for the trap from an error, so that FaultOf finds
// the error again.
func (r *Region) noteFault(err error) uintptr {
	if errors.Is(err, ErrClosed) {
		return errnoClosed
	}
	var f *FaultError
	if errors.As(err, &f) && !errors.Is(err, ErrBudget) { // there it is another access's
		err = f.Err // where it was, who finds it knows better
	}
	if no, plain := err.(unix.Errno); plain {
		return uintptr(no)
	}
	i := notedNext.Add(1) % uint64(len(noted))
	noted[i].Store(&err)
	return errnoNoted + uintptr(i)
}
