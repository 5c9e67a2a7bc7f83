//go:build linux

package pager

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Commit makes all changes of an Atomic region durable whose Update, WriteAt,
// Resize, Discard or write pin ended before the call; after a crash they are
// there whole. It waits for those that are running, and holds new ones for a
// moment. Stores to Bytes outside of these are in the commit or not, a
// goroutine's later ones never without its earlier ones as far as it can be
// parked. Concurrent callers share a commit. ctx ends the wait, not a commit
// that has taken its cut.
//
// Errors: ErrNotSupported if the region is not Atomic; ErrBusy from within an
// Update, or by a goroutine that holds a write pin; ErrBudget if what is not
// committed does not fit the journal; *FaultError of a failed write (everything
// stays as it was, the next Commit tries again) or of a failed flush (which
// every later Commit returns as well, until the region is mapped anew);
// ctx.Err; ErrClosed.
func (r *Region) Commit(ctx context.Context) error {
	if r.atomic == nil {
		if r.opt.Durability == Atomic {
			return errReadOnly
		}
		return fmt.Errorf("pager: Commit of a region that is not Atomic: %w", ErrNotSupported)
	}
	if ctx == nil {
		return errNoContext
	}
	s, err := r.commitOp(-1)
	if err != nil {
		return err
	}
	r.atomic.begin(ctx, s)
	err = s.Wait(ctx)
	if err == errNobody {
		err = ctx.Err() // the committer was faster to notice
	}
	if err != nil && err == ctx.Err() {
		s.gone.Store(true)
	}
	return err
}

// commitOp makes the op of a commit, which begin begins.
func (r *Region) commitOp(efd int) (*SyncOp, error) {
	if r.closing.Load() {
		return nil, ErrClosed
	}
	if r.atomic.gate.isInside() {
		return nil, errInside
	}
	s, err := r.newSyncOp(efd)
	if err != nil {
		return nil, err
	}
	r.atomic.request(s)
	return s, nil
}

// Commit commits several Atomic regions of this pager with one cut over all of
// them: an Update of one and an Update of another that ended before the call
// are both in it. When it returns nil, each region's commit is durable. It is
// not atomic across regions: a crash before it returns, or an error, may leave
// it done in some and not in others.
//
// Errors as Region.Commit, joined.
func (p *Pager) Commit(ctx context.Context, regions ...*Region) error {
	if ctx == nil {
		return errNoContext
	}
	if slices.Contains(regions, nil) {
		return errors.New("pager: Commit of a region that is nil")
	}
	rs := slices.Clone(regions)
	slices.SortFunc(rs, func(a, b *Region) int { return int(a.d.index) - int(b.d.index) })
	rs = slices.Compact(rs)
	for _, r := range rs {
		switch {
		case r.p != p:
			return errors.New("pager: Commit of another pager's region")
		case r.atomic == nil:
			return fmt.Errorf("pager: Commit of a region that is not Atomic: %w", ErrNotSupported)
		case r.atomic.gate.isInside():
			return errInside
		}
	}
	for i, r := range rs {
		if !r.enter() {
			for _, o := range rs[:i] {
				o.leave()
			}
			return ErrClosed
		}
	}
	defer func() {
		for _, r := range rs {
			r.leave()
		}
	}()
	if len(rs) == 0 {
		return nil
	}
	// In ascending order, so that two callers do not each have what the other
	// wants. A committer has one and wants no other.
	for i, r := range rs {
		var err error
		select {
		case r.atomic.turn <- struct{}{}:
			continue
		case <-ctx.Done():
			err = ctx.Err()
		case <-r.atomic.stop:
			err = ErrClosed
		}
		for _, o := range rs[:i] {
			<-o.atomic.turn
		}
		return err
	}
	done := make(chan error, 1)
	for _, r := range rs {
		r.active.Add(1)
	}
	go func() {
		err := errors.Join(p.commitTogether(rs, func() error {
			for _, r := range rs {
				if r.closing.Load() {
					return ErrClosed
				}
			}
			return ctx.Err()
		})...)
		for _, r := range rs {
			<-r.atomic.turn
			r.atomic.wakeUp()
			r.leave()
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// request queues an op for the next commit. The region has been entered.
func (a *atomicState) request(s *SyncOp) {
	a.mu.Lock()
	a.waiting = append(a.waiting, s)
	a.mu.Unlock()
	if a.r.closing.Load() { // Close may have failed those who waited, for the last time
		a.failWaiting(ErrClosed)
	}
}

// begin sees to it that what has been requested is committed. A caller who is
// going to wait for s commits by himself if nobody else is about it: that saves
// waking the committer, and being woken by it.
func (a *atomicState) begin(ctx context.Context, s *SyncOp) {
	select {
	case a.turn <- struct{}{}:
	default:
		a.wakeUp()
		return
	}
	if ctx.Done() != nil {
		a.commitHere(ctx, s)
		return
	}
	if a.given() == nil {
		a.r.p.commitTogether([]*Region{a.r}, a.given)
	}
	<-a.turn // who came meanwhile has woken the committer
}

// wakeUp makes the committer look whether somebody waits.
func (a *atomicState) wakeUp() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// committer is the goroutine that commits.
func (a *atomicState) committer() {
	defer a.wg.Done()
	for {
		select {
		case <-a.wake:
		case <-a.stop:
			a.failWaiting(ErrClosed)
			return
		}
		a.turn <- struct{}{}
		for a.given() == nil {
			a.r.p.commitTogether([]*Region{a.r}, a.given)
		}
		<-a.turn
	}
}

// errNobody: all who wanted the commit have gone.
var errNobody = errors.New("pager: nobody waits for the commit")

// given is nil as long as somebody wants a commit. It ends the ops of those who
// have gone.
func (a *atomicState) given() error {
	if a.r.closing.Load() {
		a.failWaiting(ErrClosed)
		return ErrClosed
	}
	var gone []*SyncOp
	a.mu.Lock()
	a.waiting = slices.DeleteFunc(a.waiting, func(s *SyncOp) bool {
		if s.gone.Load() {
			gone = append(gone, s)
			return true
		}
		return false
	})
	n := len(a.waiting)
	a.mu.Unlock()
	for _, s := range gone {
		s.fail(errNobody)
		s.finish()
	}
	if n == 0 {
		return errNobody
	}
	return nil
}

// failWaiting ends the ops that no cut has taken.
func (a *atomicState) failWaiting(err error) {
	a.mu.Lock()
	ops := a.waiting
	a.waiting = nil
	a.mu.Unlock()
	for _, s := range ops {
		s.fail(err)
		s.finish()
	}
}
