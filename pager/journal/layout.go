package journal

import (
	"fmt"
)

const (
	minRing = 64 << 10
	maxRing = 16 << 20 // unless one record needs more
	minStep = 1 << 20  // of Grow
	maxStep = 64 << 20

	defaultLimit = 16 << 20
	maxLimit     = 64 << 30
	minSlots     = 16
)

// Options configure Open.
type Options struct {
	// PageSize is the size of an image and of a slot in bytes, a power of two
	// from 4096 to 2 MiB.
	PageSize int

	// Identity of the data store; see IdentityOf.
	Identity Identity

	// Limit is the most bytes the journal's store may have. 0:
	// DefaultLimit(0). It is raised to what a ring and 16 slots take, and cut
	// at 64 GiB and, on a store that cannot grow, at its size.
	Limit int64

	// ReadOnly: nothing is written. The log and the slots can be read.
	ReadOnly bool

	// Adopt takes a journal with live commits although its Identity is
	// another one (a copy of both files, a restored backup). Whoever sets it
	// knows that the two belong together.
	Adopt bool

	// Reaped: somebody reaps the engine all the time, so that who waits for a
	// transfer need not look after it.
	Reaped bool

	// Salvage takes of a damaged log what comes before the damage, instead of
	// ErrDamaged. Acknowledged commits are lost then.
	Salvage bool
}

// DefaultLimit is a quarter of the data, from 16 MiB to 1 GiB.
func DefaultLimit(dataSize int64) int64 {
	return max(defaultLimit, min(dataSize/4, 1<<30))
}

// layout is where things are.
type layout struct {
	ring  extent
	slots int64 // offset of slot 0
}

// plan lays out a journal of at most limit bytes.
func plan(pageSize, limit int64) layout {
	ring := max(minRing, min(limit/16&^(block-1), maxRing))
	// A commit of all there is must fit, and another one beside it.
	ring = max(ring, room(recordLen(int(limit/pageSize)))+block)
	return layout{
		ring:  extent{copies * block, ring},
		slots: (copies*block + ring + pageSize - 1) &^ (pageSize - 1),
	}
}

// fill completes the options and plans the layout that follows from them.
func (o *Options) fill() (layout, error) {
	switch {
	case !goodPage(o.PageSize):
		return layout{}, fmt.Errorf("journal: page size %d", o.PageSize)
	case o.Limit < 0:
		return layout{}, fmt.Errorf("journal: limit of %d bytes", o.Limit)
	case len(o.Identity.ID) > MaxID:
		return layout{}, fmt.Errorf("journal: an ID of %d bytes, more than %d", len(o.Identity.ID), MaxID)
	case o.Limit == 0:
		o.Limit = defaultLimit
	}
	page := int64(o.PageSize)
	o.Limit = min(o.Limit, maxLimit)
	l := plan(page, o.Limit)
	if least := l.slots + minSlots*page; o.Limit < least {
		o.Limit = least
		l = plan(page, least)
		o.Limit = max(o.Limit, l.slots+minSlots*page)
	}
	return l, nil
}

// InitialSize is the size to create a journal's store with.
func InitialSize() int64 { return copies * block }

// stepFrom is how many slots Grow adds to have: about as many again.
func stepFrom(have, pageSize int64) int64 {
	bytes := max(minStep, min(have*pageSize, maxStep))
	return max(minSlots, bytes/pageSize)
}
