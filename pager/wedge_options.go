package pager

import (
	"fmt"
	"time"
)

// WedgeKind says what has not ended for too long.
type WedgeKind uint8

const (
	WedgedFault WedgeKind = iota // an access to a page that is not there: raw access, Acquire, ReadAt …
	WedgedRoom                   // a request, or a raw store, that waits for room in the budget
	WedgedRead                   // a read of the store
	WedgedWrite                  // a write of the store
	WedgedFlush                  // a flush of the store
	WedgedPin                    // a pin, a lock, a write pin
	WedgedHook                   // a hook, a policy or an event listener that does not return
)

var wedgeKinds = [...]string{"fault", "room", "read", "write", "flush", "pin", "hook"}

func (k WedgeKind) String() string {
	if int(k) < len(wedgeKinds) {
		return wedgeKinds[k]
	}
	return fmt.Sprintf("WedgeKind(%d)", uint8(k))
}

// Wedge is something that has not ended for Options.WedgeLimit. Nothing is done
// about it: it is named.
type Wedge struct {
	Kind   WedgeKind
	Store  string // Store.String() of its region; "" if it belongs to none
	Name   string // WedgedHook: which; WedgedFault: how it waits; of a commit: what for
	Offset int64  // in the region, in bytes
	Len    int64
	Age    time.Duration // at least
}

func (w Wedge) String() string {
	s := w.Kind.String()
	if w.Name != "" {
		s += " (" + w.Name + ")"
	}
	if w.Store != "" {
		s += fmt.Sprintf(" of %d bytes at offset %d of %s", w.Len, w.Offset, w.Store)
	}
	return s + fmt.Sprintf(" for %v", w.Age.Round(time.Millisecond))
}
