//go:build linux

package pager

import (
	"sync/atomic"
	"time"
)

// Turns
//
// Under a budget of a few pages a crowd of goroutines whose instructions need
// two pages each (a load across a border) chase one another: each is held one
// page, and when the other has come for it the first was given to the next.
// So one that has missed turnMisses times in a row, at one instruction, pages
// that it had there is given the turn. It is held as many pages as can be pinned,
// they are not dropped for other parked accesses while it waits for the next,
// and it waits at the head of the line; who waits to be held waits for it. (Letting
// the others go on unheld costs five times the reads: they take from one another
// what no turn protects.) Requests that pin drop its holds as any other's.
//
// A turn ends when its goroutine misses pages that are new, and by itself: when
// nothing has come for it within holdLong, or when it has not missed for holdShort
// since its page came. So nobody has to tell of the end of a turn. The parker
// gives it; holdTable.mu guards it.
const turnMisses = 2

type turn struct {
	g     atomic.Uintptr // 0: nobody's; read without the lock, to look whether there is one at all
	waits bool           // for a page
	since time.Time      // when it began to wait, or its page came
}

// now is whose turn it is.
func (u *turn) now() uintptr {
	g := u.g.Load()
	if g == 0 {
		return 0
	}
	limit := holdShort
	if u.waits {
		limit = holdLong
	}
	if time.Since(u.since) >= limit {
		u.g.Store(0)
		return 0
	}
	return g
}

// isOf: it is g's turn.
func (u *turn) isOf(g uintptr) bool { return u.now() == g }

// arrived: a page of g has come. It says whether it is his turn.
func (u *turn) arrived(g uintptr) bool {
	if !u.isOf(g) {
		return false
	}
	u.waits, u.since = false, time.Now()
	return true
}

// mayTakeTurn: g has faulted, misses times in a row on a page that it had. It gets
// the turn, or goes on having it, or, if it has got through, ends it.
func (t *holdTable) mayTakeTurn(g uintptr, misses int) (through bool) {
	u := &t.turn
	if misses < turnMisses && u.g.Load() == 0 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch now := u.now(); {
	case now == g && misses == 0:
		u.g.Store(0)
		return true
	case now == g, now == 0 && misses >= turnMisses:
		u.waits, u.since = true, time.Now()
		u.g.Store(g)
	}
	return false
}

// others is how many goroutines beside g have holds.
func (t *holdTable) others(g uintptr) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(t.byG)
	if t.byG[g] != nil {
		n--
	}
	return n
}
