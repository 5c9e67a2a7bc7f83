//go:build linux

package pager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// BeforeWrite
//
// The hook is asked when the private copy has been made. Asked before, it would
// judge contents that may have changed by the time they are copied: a page
// whose log record is not yet durable would slip through.
//
// After a "not yet" the pages are Dirty again. Those that a Sync waits for are
// kept in a list and asked about again after a pause that grows; all others
// wait until somebody wants them written, which is refused without a copy while
// the pause lasts. In the same list is what a Sync has found with nobody at it
// (leftOver), of all regions.

// asking is a region's side of it. write.mu guards it.
type asking struct {
	until  time.Time // not before, except for Sync
	pause  time.Duration
	yes    time.Time           // when it last let something through
	held   map[uint64]struct{} // pages that a Sync waits for
	timer  bool                // askAgain is due
	giveUp error               // Close: what those who wait are told
}

const (
	askPause    = time.Millisecond
	askPauseMax = 50 * time.Millisecond
)

// mayWrite asks the hook.
func (r *Region) mayWrite(first, n uint64, data []byte) (ok bool) {
	r.p.hook("Writeback.BeforeWrite", r, first, n, func() {
		ok = r.opt.Writeback.BeforeWrite(PageRun{First: int64(first), N: int64(n), Data: data})
	})
	a := &r.write.ask
	r.write.mu.Lock()
	if ok {
		a.pause, a.until, a.yes = 0, time.Time{}, time.Now()
	} else if n == 1 {
		a.pause = min(max(2*a.pause, askPause), askPauseMax)
		a.until = time.Now().Add(a.pause)
	}
	r.write.mu.Unlock()
	return ok
}

// tooSoonToAsk: it has just said "not yet", and nobody waits.
func (r *Region) tooSoonToAsk() bool {
	if r.opt.Writeback.BeforeWrite == nil {
		return false
	}
	r.write.mu.Lock()
	defer r.write.mu.Unlock()
	return time.Now().Before(r.write.ask.until)
}

// putBack makes pages that were copied and are not to be written Dirty again.
func (r *Region) putBack(first, n uint64) {
	ws := &r.write
	var ready []*SyncOp
	ws.mu.Lock()
	for page := first; page < first+n; page++ {
		r.endWrite(page, false)
		l := ws.waiters[page]
		if len(l) == 0 {
			continue
		}
		if ws.ask.giveUp != nil {
			r.tell(page, l, ws.ask.giveUp, &ready)
			continue
		}
		// The next copy is made after all these ops began.
		for _, s := range l {
			delete(s.again, page)
		}
		r.holdBack(page)
	}
	ws.mu.Unlock()
	for _, s := range ready {
		s.pageDone()
	}
}

// holdBack keeps a page that a Sync waits for. write.mu is held.
func (r *Region) holdBack(page uint64) {
	a := &r.write.ask
	if a.held == nil {
		a.held = map[uint64]struct{}{}
	}
	a.held[page] = struct{}{}
	if !a.timer {
		a.timer = true
		time.AfterFunc(max(a.pause, askPause), r.askAgain)
	}
}

// askAgain tries to write the pages that were held back. The first one stands
// for all: as long as it is refused the others are not copied in vain. The ops
// that wait for them keep the region open.
func (r *Region) askAgain() {
	ws := &r.write
	ws.mu.Lock()
	ws.ask.timer = false
	list := make([]dirtyPage, 0, len(ws.ask.held))
	for page := range ws.ask.held {
		list = append(list, dirtyPage{r.d, page})
	}
	clear(ws.ask.held)
	ws.mu.Unlock()
	if len(list) == 0 {
		return
	}
	slices.SortFunc(list, func(a, b dirtyPage) int { return int(int64(a.page) - int64(b.page)) })
	r.p.writeBack(list[:1], writeSync)
	ws.mu.Lock()
	if _, refused := ws.ask.held[list[0].page]; refused {
		for _, e := range list[1:] {
			if len(ws.waiters[e.page]) > 0 {
				r.holdBack(e.page)
			}
		}
		list = nil
	} else {
		ws.unprotected = time.Time{}
	}
	ws.mu.Unlock()
	if len(list) > 1 {
		r.p.writeBack(list[1:], writeSync)
	}
}

// waitAsking waits for a Sync by Close. When the hook has let nothing through
// for Options.StallLimit, what it refuses is given up.
func (r *Region) waitAsking(s *SyncOp) error {
	limit := r.p.opt.StallLimit
	begun := time.Now()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		err := s.Wait(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		ws := &r.write
		ws.mu.Lock()
		if time.Since(begun) >= limit && time.Since(ws.ask.yes) >= limit && len(ws.ask.held) > 0 {
			ws.ask.giveUp = fmt.Errorf("pager: BeforeWrite lets nothing be written; the region is closed without it: %w", ErrBusy)
		}
		ws.mu.Unlock()
	}
}
