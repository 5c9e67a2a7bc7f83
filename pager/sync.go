//go:build linux

package pager

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Sync
//
// A SyncOp goes through the pages of its range that are dirty when it begins,
// starts the writes that are not under way, waits for all of them page by
// page, and then flushes the store (one of many pages also does so in between:
// earlyflush.go). A page whose write was under way when
// the op began, and that had been written to again by then, is written a
// second time. No goroutine waits with an op.
//
// Who waits for an op may do the work himself (solo.go). Otherwise completions
// drive it.
//
// A failed write reaches the ops that wait for the page, and if there is none,
// the next op; the page stays dirty. A failed flush is kept for ever: what was
// written before may be gone although it left memory as clean.

// SyncOp is a sync under way.
type SyncOp struct {
	r      *Region
	first  uint64 // range, in pages
	end    uint64
	efd    *sharedEventfd
	done   chan struct{}
	begun  time.Time
	left   atomic.Int64 // pages to be written, plus one while the op is being started
	todo   []dirtyPage  // to be started; guarded by mu
	mu     sync.Mutex
	err    error
	gone   atomic.Bool         // a commit that nobody waits for any more
	again  map[uint64]struct{} // pages whose present write is too old; guarded by write.mu
	flushO aio.Op
	flush  *oneFlush
	track  tracked
	early  earlyFlush
}

// SyncEventfd is SyncRange that does not wait: efd, an eventfd of the caller
// (duplicated inside; -1: none), is signalled once, when everything written to
// [off, off+n) before the call is durable, or that has failed. It takes no
// goroutine and no thread while it is under way. For Atomic regions it is a
// Commit, and [off, off+n) must be all of the region: ErrNotSupported.
func (r *Region) SyncEventfd(off, n int64, efd int) (*SyncOp, error) {
	if r.closing.Load() {
		return nil, ErrClosed
	}
	if err := r.checkRange("sync", off, n); err != nil {
		return nil, err
	}
	if r.atomic != nil {
		if off != 0 || n != r.Len() {
			return nil, unsupported("an Atomic region is made durable as a whole: SyncEventfd from 0, of Len bytes")
		}
		s, err := r.commitOp(efd)
		if err == nil {
			r.atomic.wakeUp()
		}
		return s, err
	}
	s, err := r.rangeOp(off, n, efd)
	if err != nil {
		return nil, err
	}
	s.start()
	return s, nil
}

// rangeOp is newSyncOp for a range that has been checked.
func (r *Region) rangeOp(off, n int64, efd int) (*SyncOp, error) {
	s, err := r.newSyncOp(efd)
	if err == nil && n > 0 {
		pr := r.pageRange(off, n)
		s.first, s.end = pr.first, pr.first+pr.n
	}
	return s, err
}

// newSyncOp makes an op that signals a duplicate of efd (-1: nobody), and enters
// the region for it.
func (r *Region) newSyncOp(efd int) (*SyncOp, error) {
	s := &SyncOp{r: r, done: make(chan struct{}), begun: time.Now()}
	if efd != -1 {
		e, err := shareEventfd(efd)
		if err != nil {
			return nil, err
		}
		s.efd = e
	}
	if !r.enter() {
		s.efd.release()
		return nil, ErrClosed
	}
	return s, nil
}

// Sync makes all that was written before the call durable. It waits; ctx ends
// the wait, not the writing. Read-only and private regions have nothing to
// make durable. For Atomic regions it is Commit.
//
// Errors: *FaultError of a write that failed since the last Sync (the page
// stays dirty and is tried again); a failed flush, which every later Sync
// returns as well until the region is mapped anew; ctx.Err; ErrClosed.
func (r *Region) Sync(ctx context.Context) error {
	if r.atomic != nil {
		return r.Commit(ctx)
	}
	return r.SyncRange(ctx, 0, r.Len())
}

// SyncRange is Sync for [off, off+n).
func (r *Region) SyncRange(ctx context.Context, off, n int64) error {
	if r.atomic != nil {
		return unsupported("an Atomic region is made durable as a whole: Commit, or Sync")
	}
	if ctx == nil {
		return errNoContext
	}
	if r.closing.Load() {
		return ErrClosed
	}
	if err := r.checkRange("sync", off, n); err != nil {
		return err
	}
	s, err := r.rangeOp(off, n, -1)
	if err != nil {
		return err
	}
	s.run(ctx)
	return s.Wait(ctx)
}

// Done is closed when the op has ended.
func (s *SyncOp) Done() <-chan struct{} { return s.done }

// Err is nil before Done, and after it if all is durable.
func (s *SyncOp) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Wait waits for Done or ctx and returns Err or ctx.Err.
func (s *SyncOp) Wait(ctx context.Context) error {
	if ctx == nil {
		return errNoContext
	}
	select {
	case <-s.done:
		return s.err
	default:
	}
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *SyncOp) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
}

// start begins the writes. Completions do the rest.
func (s *SyncOp) start() {
	if p := s.r.p; s.list() {
		// As much at a time as is good for the device: a Sync of a large region
		// must not double its memory, nor must a hundred of small ranges.
		p.hunger(s)
		p.feed()
	}
	s.pageDone()
}

// run is start for a caller who is going to wait, and has the work done by him as
// far as that is possible (solo.go).
func (s *SyncOp) run(ctx context.Context) {
	if p := s.r.p; s.list() {
		if e := p.solo.take(p); e != nil {
			s.runSolo(ctx, e)
			return
		}
		p.hunger(s)
		p.feed()
	}
	s.pageDone()
}

// nothing: there is nothing to be made durable.
func (s *SyncOp) nothing() bool { return s.r.opt.ReadOnly || s.r.opt.Private || s.end == s.first }

// list finds the pages to be written. false: there are none to be started. The
// op counts as one page more until its caller says pageDone.
func (s *SyncOp) list() bool {
	r := s.r
	s.left.Store(1)
	if s.nothing() {
		return false
	}
	r.write.mu.Lock()
	if e := r.write.flushErr; e != nil {
		s.err = e
	} else if len(r.write.errs) > 0 {
		s.err = errors.Join(r.write.errs...)
		r.write.errs = nil
	}
	r.write.mu.Unlock()

	var list []dirtyPage
	r.write.mu.Lock()
	s.eachDirty(func(page uint64, w word) {
		if w&stateMask == stDirty {
			list = append(list, dirtyPage{r.d, page})
		} else if w&flagRedirtied != 0 {
			if s.again == nil {
				s.again = map[uint64]struct{}{}
			}
			s.again[page] = struct{}{}
		}
		if r.write.waiters == nil {
			r.write.waiters = map[uint64][]*SyncOp{}
		}
		r.write.waiters[page] = append(r.write.waiters[page], s)
		s.left.Add(1)
	})
	r.write.mu.Unlock()
	// A page of the list that somebody else begins to write before we do is
	// as good: his copy is made after the call. (If he gives up, see leftOver.)
	s.mu.Lock()
	s.todo = list
	s.mu.Unlock()
	s.early.mark = s.left.Load()
	return len(list) > 0
}

// next takes the pages of the op that are to be written next, most of them at
// most.
func (s *SyncOp) next(most int) []dirtyPage {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(s.todo), int(max(1, feedStep/s.r.fpp)), most)
	list := s.todo[:n:n]
	s.todo = s.todo[n:]
	return list
}

// eachDirty calls fn for the pages of the op's range that are Dirty, Writing or
// Posted. write.mu is held, so no ordinary write ends meanwhile.
func (s *SyncOp) eachDirty(fn func(page uint64, w word)) {
	used := atomic.LoadUint32(&sp.leafUsed)
	d := s.r.d
	for leaf := uint32(1); leaf <= used; leaf++ {
		m := metaOf(leaf)
		if atomic.LoadUint32(&m.desc) != d.index {
			continue
		}
		group := atomic.LoadUint64(&m.group)
		if !d.owns(leaf, group) {
			continue // a leaf on the free list still names its last group
		}
		first := group << leafShift
		for page := max(first, s.first); page < min(first+leafPages, s.end); page++ {
			// If the leaf has changed hands meanwhile, its words are those of
			// other pages. Then this group's had all left memory, and what had been
			// stored to them was in the store.
			if !mayBeDirty(atomic.LoadUint64(leafWord(leaf, page))) {
				continue
			}
			for turn := 0; ; turn++ {
				pw, w := d.look(page)
				st := w & stateMask
				if st == stInstalling {
					// It may be born dirty, and stored to already.
					relaxGo(turn)
					continue
				}
				if pw == nil || !mayBeDirty(w) {
					break
				} else if st == stDirty || st == stWriting || st == stPosted {
					fn(page, w)
					break
				}
				relaxGo(turn)
			}
		}
	}
}

// mayBeDirty: the page is Dirty, Writing or Posted, or about to be.
func mayBeDirty(w word) bool { return w&stateMask == stInstalling || unclean(w) }

// endWrites ends the writes of n pages (see endWrite) and returns the number
// of pages that became clean, of those whose credits are free, the ops that need wait for them no longer, and
// the pages that have to be written once more for others.
func (r *Region) endWrites(first, n uint64, err error) (clean, free int64, ready []*SyncOp, more []dirtyPage) {
	ws := &r.write
	ws.mu.Lock()
	defer ws.mu.Unlock()
	told := false
	for page := first; page < first+n; page++ {
		isClean, isFree := r.endWrite(page, err == nil)
		if isClean {
			clean++
		}
		if isFree {
			free++
		}
		if l := ws.waiters[page]; len(l) > 0 {
			told = true
			if isClean {
				// All that anybody wrote is in the store, whenever the write
				// began.
				for _, s := range l {
					delete(s.again, page)
				}
			}
			kept := r.tell(page, l, err, &ready)
			if len(kept) > 0 {
				more = append(more, dirtyPage{r.d, page})
			}
		}
	}
	if err == nil {
		ws.backoff, ws.retryAt = 0, time.Time{}
		return clean, free, ready, more
	}
	if !told {
		if ws.errs = append(ws.errs, err); len(ws.errs) > 16 {
			ws.errs = ws.errs[1:]
		}
	}
	ws.backoff = min(max(2*ws.backoff, 10*time.Millisecond), time.Second)
	ws.retryAt = time.Now().Add(ws.backoff)
	return clean, free, ready, more
}

// tell takes the ops off the page's list that are done with it; those that
// began when its present write was too old already are kept. write.mu is held.
func (r *Region) tell(page uint64, l []*SyncOp, err error, ready *[]*SyncOp) (kept []*SyncOp) {
	for _, s := range l {
		if _, again := s.again[page]; again && err == nil {
			delete(s.again, page)
			kept = append(kept, s)
			continue
		}
		if err != nil {
			s.fail(err)
		}
		*ready = append(*ready, s)
	}
	if len(kept) == 0 {
		delete(r.write.waiters, page)
	} else {
		r.write.waiters[page] = kept
	}
	return kept
}

// pageWritten is endWrites for a page that the fault server has written, or
// that was dropped: its state tells what became of it.
func (r *Region) pageWritten(page uint64) {
	var ready []*SyncOp
	ws := &r.write
	ws.mu.Lock()
	_, w := r.d.look(page)
	again := false
	if l := ws.waiters[page]; len(l) > 0 {
		switch st := w & stateMask; {
		case st == stDirty:
			// The next write begins after all these ops did.
			for _, s := range l {
				delete(s.again, page)
			}
			again = true
		case !unclean(w):
			for _, s := range l {
				delete(s.again, page)
			}
			r.tell(page, l, nil, &ready)
		}
	}
	ws.mu.Unlock()
	for _, s := range ready {
		s.pageDone()
	}
	if again {
		r.p.writeBack([]dirtyPage{{r.d, page}}, writeSync)
	}
}

// leftOver sees to a page that was to be written for a Sync and could not be
// taken. As a rule that is because somebody else writes it, or has, and tells who
// waits for it. But it may be Dirty, with nobody at it: the kernel has not protected
// it, for us or for somebody who had it when we came, or its writes are held (see
// Discard). Then it is kept with what BeforeWrite has refused, and tried again.
func (r *Region) leftOver(page uint64) {
	for turn := 0; ; turn++ {
		_, w := r.d.look(page)
		if s := w & stateMask; s == stDirty {
			break
		} else if s != stCopying && s != stUnlocking {
			return
		}
		relaxGo(turn)
	}
	ws := &r.write
	var ready []*SyncOp
	ws.mu.Lock()
	if l := ws.waiters[page]; len(l) > 0 {
		held := r.d.held(page)
		if !held && ws.unprotected.IsZero() {
			ws.unprotected = time.Now()
		}
		if held || time.Since(ws.unprotected) < r.p.opt.StallLimit {
			r.holdBack(page)
		} else {
			r.tell(page, l, r.fault("write", page, errUnprotected), &ready)
		}
	}
	ws.mu.Unlock()
	for _, s := range ready {
		s.pageDone()
	}
}

// errUnprotected: a dirty page must be protected to be copied.
var errUnprotected = fmt.Errorf("pager: it cannot be write-protected: %w", ErrBudget)

// pageDone lowers the op's count; the last one flushes the store.
func (s *SyncOp) pageDone() { s.partDone(s.r.p.engine) }

// partDone is pageDone with a flush through e.
func (s *SyncOp) partDone(e aio.Engine) {
	if s.left.Add(-1) != 0 {
		return
	}
	s.mu.Lock()
	failed := s.err
	s.mu.Unlock()
	if failed != nil || s.nothing() {
		s.finish()
		return
	}
	atomic.StoreUint32(&s.r.d.unflushed, 0)
	s.flushO = aio.Op{Code: aio.Flush, Done: flushDone, Arg: s}
	s.r.p.stats.flushes.Add(1)
	ops := [1]*aio.Op{&s.flushO}
	s.track = tracked{kind: WedgedFlush, r: s.r, n: s.r.Len()}
	s.r.p.tracks.add(&s.track)
	s.flush = s.r.write.flushes.begin()
	s.r.store.Start(e, ops[:])
}

func flushDone(op *aio.Op) {
	s := op.Arg.(*SyncOp)
	s.r.p.tracks.remove(&s.track)
	s.flushed(op.Err)
	s.r.write.flushes.end(s.flush, s.finish)
}

// flushed tells the op how a flush has ended. One that has failed is kept.
func (s *SyncOp) flushed(err error) {
	if err == nil {
		return
	}
	r := s.r
	if errors.Is(err, aio.ErrClosed) {
		err = ErrClosed
	} else {
		err = r.fault("flush", s.first, err)
		r.write.mu.Lock()
		if r.write.flushErr == nil {
			r.write.flushErr = err
		}
		r.write.mu.Unlock()
	}
	s.fail(err)
}

func (s *SyncOp) finish() {
	r := s.r
	if s.err == nil && !r.opt.ReadOnly && !r.opt.Private {
		// A flush that failed while ours was under way covers ours too.
		r.write.mu.Lock()
		s.err = r.write.flushErr
		r.write.mu.Unlock()
	}
	r.p.stats.syncLatency.add(time.Since(s.begun))
	close(s.done)
	s.efd.signal()
	s.efd.release()
	r.leave()
}

// syncForClose syncs a writable region as Close promises.
func (r *Region) syncForClose() error {
	if r.atomic != nil {
		return nil // what is not committed is dropped
	}
	if r.opt.ReadOnly || r.opt.Private || load64(&r.d.dirty) == 0 && r.write.inflight.Load() == 0 && atomic.LoadUint32(&r.d.unflushed) == 0 {
		r.write.mu.Lock()
		defer r.write.mu.Unlock()
		if !r.opt.ReadOnly && !r.opt.Private {
			if r.write.flushErr != nil {
				return r.write.flushErr
			}
			err := errors.Join(r.write.errs...)
			r.write.errs = nil
			return err
		}
		return nil
	}
	r.active.Add(1)
	s := &SyncOp{r: r, done: make(chan struct{}), begun: time.Now(), end: r.pageCount()}
	s.run(context.Background())
	if r.opt.Writeback.BeforeWrite != nil {
		return r.waitAsking(s)
	}
	return s.Wait(context.Background())
}
