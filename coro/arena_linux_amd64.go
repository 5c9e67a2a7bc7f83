package coro

import (
	"errors"
	"fmt"
	"sync"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// maxArenas bounds the table. A pager makes one big reservation and carves its
// regions from it, so a process has about as many arenas as pagers.
const maxArenas = 1024 // a power of two: the handler indexes without a bounds check

type arena struct {
	lo, hi uintptr
	decide func(*Fault) Verdict
	serve  func(*Fault) uintptr
	mode   Mode
	inline bool
}

// The table is append-only. Entries below nArenas never change, so that the
// handler, which may take no lock, can read them at any moment.
var (
	arenas  [maxArenas]arena
	nArenas uint32
	arenaMu sync.Mutex // serialises AddArena
)

// AddArena makes the faults of [c.Lo, c.Hi) ours, for ever: a fault in
// an address range that nobody owns any more still finds its Decide, which is
// to Deliver it. It arms the trap and, if there is a Serve, starts a fault
// server. It may be called at any time, from any goroutine.
func AddArena(c ArenaConfig) error {
	if err := Install(); err != nil {
		return err
	}
	switch {
	case c.Decide == nil:
		return errors.New("coro: AddArena: no Decide")
	case c.Lo == 0 || c.Lo >= c.Hi:
		return fmt.Errorf("coro: AddArena: bad range [%#x, %#x)", c.Lo, c.Hi)
	}
	if c.Serve != nil && !c.Inline {
		if err := StartServers(1); err != nil {
			return err
		}
	}
	mode, err := c.Mode.Effective()
	if err != nil {
		return err
	}
	if mode != Block && mode != Restart {
		if active, why := ParkStatus(); !active && mode == Require {
			return fmt.Errorf("coro: park mode is %v: %w: %s", Require, ErrNotSupported, why)
		}
	}
	return addArena(arena{c.Lo, c.Hi, c.Decide, c.Serve, mode, c.Inline})
}

func addArena(x arena) error {
	arenaMu.Lock()
	defer arenaMu.Unlock()
	n := nArenas
	for i := range n {
		if a := &arenas[i]; x.lo < a.hi && a.lo < x.hi {
			return fmt.Errorf("coro: AddArena: [%#x, %#x) overlaps [%#x, %#x)", x.lo, x.hi, a.lo, a.hi)
		}
	}
	if n == maxArenas {
		return ErrTooManyArenas
	}
	arenas[n] = x
	bare.Store32(&nArenas, n+1)
	return nil
}

// arenaOf finds the arena of an address, newest first, or nil.
//
//go:nosplit
//go:norace
//go:nocheckptr
func arenaOf(addr uintptr) *arena {
	for i := bare.Load32(&nArenas); i != 0; {
		i--
		if a := &arenas[i%maxArenas]; addr >= a.lo && addr < a.hi {
			return a
		}
	}
	return nil
}
