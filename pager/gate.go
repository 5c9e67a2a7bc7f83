//go:build linux

package pager

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/uffdpager/uffdpager/coro"
)

// The gate of an Atomic region
//
// What must be in a commit whole or not at all is a passage: a call of Update,
// WriteAt, Resize or Discard, or a write pin from AcquireWrite to Release. A
// commit closes the gate, waits until nobody is inside, takes its cut, and
// opens the gate again.
//
// A passage may contain others: an Update calls WriteAt, somebody holds one
// write pin and wants a second. A goroutine that is inside already passes a
// closed gate: where the goroutine is known by its address (CurrentG), nobody
// waits for himself. A passage that waits for another goroutine's, which waits
// at the gate, can be known by nobody; so the gate is closed for a while only
// (1, 2, 4 … 20 ms), and then everybody who waits is let in before it is closed
// again. A commit may wait for ever for a passage that does not end; its
// context ends that wait.
//
// Lock order: a shard's mu is a leaf. Nobody waits at a gate who holds a lock
// of the pager (write.resizing is taken inside).
type gate struct {
	shard [16]gateShard
}

type gateShard struct {
	mu     sync.Mutex
	closed bool
	ended  bool            // the region is being closed
	inside map[uintptr]int // passages by goroutine
	queue  []*gateWaiter
	_      [24]byte
}

type gateWaiter struct {
	g  uintptr
	ch chan struct{} // closed when it has been let in, or the gate ended
	in bool
}

func (gt *gate) of(g uintptr) *gateShard { return &gt.shard[uint64(g)*0x9E3779B97F4A7C15>>60] }

// enter begins a passage of the calling goroutine, which leave ends (perhaps on
// another goroutine). It waits while the gate is closed. ErrClosed: the region
// is being closed.
func (gt *gate) enter(ctx context.Context) (g uintptr, err error) {
	g = coro.CurrentG()
	s := gt.of(g)
	s.mu.Lock()
	if s.inside == nil {
		s.inside = map[uintptr]int{}
	}
	n := s.inside[g]
	if s.ended && n == 0 {
		s.mu.Unlock()
		return 0, ErrClosed
	}
	if !s.closed || n > 0 && g != 0 {
		s.inside[g] = n + 1
		s.mu.Unlock()
		return g, nil
	}
	w := &gateWaiter{g: g, ch: make(chan struct{})}
	s.queue = append(s.queue, w)
	s.mu.Unlock()
	select {
	case <-w.ch:
	case <-ctx.Done():
	}
	s.mu.Lock()
	if w.in {
		s.mu.Unlock()
		if err := ctx.Err(); err != nil {
			gt.leave(g)
			return 0, err
		}
		return g, nil
	}
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, w); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		return 0, ctx.Err()
	}
	return 0, ErrClosed
}

func (gt *gate) leave(g uintptr) {
	s := gt.of(g)
	s.mu.Lock()
	if n := s.inside[g] - 1; n > 0 {
		s.inside[g] = n
	} else {
		delete(s.inside, g)
	}
	s.mu.Unlock()
}

// isInside: the calling goroutine is in a passage.
func (gt *gate) isInside() bool {
	g := coro.CurrentG()
	if g == 0 {
		return false
	}
	s := gt.of(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inside[g] > 0
}

// close keeps new passages out.
func (gt *gate) close() {
	for i := range gt.shard {
		s := &gt.shard[i]
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
	}
}

// empty: nobody is inside.
func (gt *gate) empty() bool {
	for i := range gt.shard {
		s := &gt.shard[i]
		s.mu.Lock()
		n := len(s.inside)
		s.mu.Unlock()
		if n > 0 {
			return false
		}
	}
	return true
}

// open lets everybody in who waits, and whoever comes.
func (gt *gate) open() {
	for i := range gt.shard {
		s := &gt.shard[i]
		s.mu.Lock()
		s.closed = false
		for _, w := range s.queue {
			if !s.ended {
				s.inside[w.g]++
				w.in = true
			}
			close(w.ch)
		}
		s.queue = s.queue[:0]
		s.mu.Unlock()
	}
}

// end makes every later passage, and those that wait, fail with ErrClosed.
func (gt *gate) end() {
	for i := range gt.shard {
		s := &gt.shard[i]
		s.mu.Lock()
		s.ended = true
		for _, w := range s.queue {
			close(w.ch)
		}
		s.queue = nil
		s.mu.Unlock()
	}
}

// Windows in which the gate is closed while somebody is inside.
const (
	gateFirst = time.Millisecond
	gateLast  = 20 * time.Millisecond
)

// closeGates closes the gates of all regions when nobody is inside any of them.
// It gives up with stop's error, which is asked for once more at the end.
func closeGates(rs []*Region, stop func() error) error {
	for window := gateFirst; ; window = min(2*window, gateLast) {
		if err := stop(); err != nil {
			return err
		}
		for _, r := range rs {
			r.atomic.gate.close()
		}
		end := time.Now().Add(window)
		for turn := 0; ; turn++ {
			busy := false
			for _, r := range rs {
				busy = busy || !r.atomic.gate.empty()
			}
			if !busy {
				// (What Close has cut short has ended too, and is not whole.)
				err := stop()
				if err != nil {
					openGates(rs)
				}
				return err
			}
			if time.Now().After(end) {
				break
			}
			pause(turn)
		}
		openGates(rs)
		// Let those run who have just been let in.
		time.Sleep(window / 8)
	}
}

func openGates(rs []*Region) {
	for _, r := range rs {
		r.atomic.gate.open()
	}
}

// passage is the right to be inside: whose it is, with bit 0 set; 0: none is
// needed.
type passage uintptr

// pass begins a passage; without a gate it does nothing.
func (r *Region) pass(ctx context.Context) (passage, error) {
	if ctx == nil {
		return 0, errNoContext
	}
	if r.atomic == nil {
		return 0, nil
	}
	g, err := r.atomic.gate.enter(ctx)
	return passage(g | 1), err
}

func (r *Region) passed(in passage) {
	if in != 0 {
		r.atomic.gate.leave(uintptr(in &^ 1))
	}
}

// errInside: a commit by who is in a passage would wait for itself.
var errInside = fmt.Errorf("pager: Commit within an Update, or by the holder of a write pin: %w", ErrBusy)
