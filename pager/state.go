//go:build linux

package pager

import (
	"github.com/uffdpager/uffdpager/coro/bare"
)

// The page state word
//
// Every page that is not plainly absent has one 64-bit word. All that is true
// of a page is in it, and every transition is a compare-and-swap by the party
// named here. Code that runs without a P (the signal handler, the fault
// server) takes part on equal terms: it uses the same words and no lock.
//
//	 63            32 31           12 11      4 3    0
//	┌────────────────┬───────────────┬─────────┬──────┐
//	│   generation   │     pins      │  flags  │ state│
//	└────────────────┴───────────────┴─────────┴──────┘
//
//	                claim (requester or fault server; owns a frame from here)
//	     ┌─────────┐ ─────────────────────────▶ ┌─────────┐ ◀──┐ take over
//	     │ Missing │                            │ Loading │ ───┘ (server, new generation)
//	     └─────────┘ ◀───────────────────────── └─────────┘ ◀─ read anew ─ ┌────────┐
//	       ▲           failed; cancelled (server);   │   └ ─ ─ ─ ─ ─ ─ ─ ▶ │ Failed │
//	       │           unmapped, and leaves          │    the server's     └────────┘
//	       │                                         │    read failed, and somebody waits
//	       │              owner, generation unchanged▼
//	       │                                    ┌────────────┐
//	       │                                    │ Installing │ bounded; ─▶ Dirty at once if it is
//	       │                                    └────────────┘ to be stored to, see born.go
//	       │                                         │ UFFDIO_COPY done
//	  ┌──────────┐  evict batch, pins = 0            ▼
//	  │ Evicting │ ◀─────────────────────────  ┌──────────┐ ◀──────────────┐
//	  └──────────┘ bounded                     │ Resident │ clean,         │ written, nobody
//	                                           └──────────┘ protected      │ wrote meanwhile
//	                                     write fault │ (handler) or        │
//	                                     AcquireWrite▼                     │
//	                                           ┌───────────┐ bounded       │
//	                                           │ Unlocking │ ◀ ─ ─ ─ ─ ─ ─ ┤ write fault
//	                                           └───────────┘               │
//	                                                 ▼ writable            │
//	                                           ┌───────┐  ┌─────────┐  ┌─────────┐
//	                                           │ Dirty │─▶│ Copying │─▶│ Writing │
//	                                           └───────┘  └─────────┘  └─────────┘
//	                                               ▲  protect, copy       │
//	                                               └──────────────────────┘
//	                                            failed, written to again, write-pinned
//
// A page that has been read need not be mapped: it stays Loading, with flagMark, and its
// bytes are in a buffer (marker.go, unmapped.go) until somebody needs the mapping, or
// it leaves.
//
// A page that WriteAt writes whole while it is absent is not read: it goes from
// Installing to Dirty, or to Copying and Writing (through.go), or is not mapped: Posted,
// which with Mapping is drawn in posted.go.
//
// "Bounded" states last a few system calls of code that the Go scheduler
// cannot stop (nosplit functions between coro.Unstopped and coro.Stoppable, or
// code without a P), so anybody may spin until they are over: they need no P, no
// lock and no I/O. All other states are stable: whoever meets Loading or Writing either waits in the ordinary
// way (with a P) or, as fault server, takes Loading over. Writing needs no
// taking over: the page stays readable, a write fault makes it writable again
// (flag redirtied), and the store gets a private copy.
//
// The generation names the claim, or the taking over, by which the word's owner
// has it. Whoever comes back after a wait (a completed read) goes on only if the
// generation is still his, and a compare-and-swap with an old word fails for ever.
// One counter of the process gives them out (newGen). To count the claims of each
// word in the word would not do: a group of pages loses its words with its last page
// and has others afterwards (table.go), in which the count might just then be what
// the owner of a read from before that remembers, whose page was taken over.
//
// Pins count the holders of Pin and Lock and also the waiters who will be
// holders: they are kept through Loading and Installing, so that a page is
// pinned before its waiters run. A failed load takes them all back, and so does
// Close, but not from Installing.
type word = uint64

const (
	stMissing    word = iota // absent; what all words start as
	stLoading                // a frame is reserved, the owner reads
	stInstalling             // bounded: the owner maps it
	stResident               // clean and write-protected
	stUnlocking              // bounded: being made writable
	stDirty                  // writable, newer than the store
	stCopying                // bounded: write-protected and copied out
	stWriting                // the copy is on its way to the store
	stPosted                 // not mapped: the buffer that is on its way to the store is the page
	stMapping                // bounded: it becomes Posted, or is mapped
	stEvicting               // bounded: being unmapped
	stFailed                 // the server could not read it; waiters must be told

	stateMask word = 0xf
)

const (
	flagTouched    word = 1 << 4  // explicitly accessed since the policy last looked
	flagPrefetched word = 1 << 5  // read ahead and not yet touched
	flagRedirtied  word = 1 << 6  // Writing: written to again, writable
	flagWritePin   word = 1 << 7  // somebody holds it by AcquireWrite: never clean
	flagHeld       word = 1 << 8  // Unlocking: came from Writing, goes back there
	flagWaited     word = 1 << 9  // Loading, Installing: the bucket has waiters
	flagWatched    word = 1 << 10 // no new pin since the wedge detector looked
	flagKept       word = 1 << 11 // Resident, Evicting: it has its credit even without a pin; see kept.go

	// The same bit in states that no page has one after the other.
	flagMark     = flagHeld      // Loading, Installing: a marker, mapped only when it is touched; see marker.go
	flagForStore = flagRedirtied // Loading, Installing, Failed: somebody is about to store to it; see born.go

	pinOne  word = 1 << 12
	pinMask word = (1<<20 - 1) << 12
	genMask word = (1<<32 - 1) << 32
)

// present: the page is mapped and readable.
//
//go:nosplit
//go:norace
func present(w word) bool {
	s := w & stateMask
	return s >= stResident && s <= stWriting
}

// unclean: dirty, or on the way to or from there; such a page has a credit.
//
//go:nosplit
//go:norace
func unclean(w word) bool {
	s := w & stateMask
	return s >= stUnlocking && s <= stMapping
}

// hasCredit: the page has a credit for each of its frames. Whoever changes a
// word so that this changes has to bring one, or may take one home.
//
//go:nosplit
//go:norace
func hasCredit(w word) bool { return w&(pinMask|flagKept) != 0 || unclean(w) }

// bounded: over within a few system calls of somebody who cannot be stopped.
//
//go:nosplit
//go:norace
func bounded(w word) bool {
	const m = 1<<stInstalling | 1<<stUnlocking | 1<<stCopying | 1<<stMapping | 1<<stEvicting
	return m>>(w&stateMask)&1 != 0
}

// setState replaces the state of a word whose state only the caller may
// change (he is the owner in Loading with the generation checked, or in a
// bounded state): pins and flags, which others do change, are kept.
//
//go:nosplit
//go:norace
func setState(p *word, from, to, clear, set word) (old word, ok bool) {
	for {
		w := bare.Load64(p)
		if w&stateMask != from {
			return w, false
		}
		if bare.Cas64(p, w, (w&^(stateMask|clear))|to|set) {
			return w, true
		}
	}
}

// advance is setState with the generation checked: how an owner goes on after
// a wait.
//
//go:nosplit
//go:norace
func advance(p *word, gen uint32, from, to, clear, set word) (old word, ok bool) {
	for {
		w := bare.Load64(p)
		if w&stateMask != from || uint32(w>>32) != gen {
			return w, false
		}
		if bare.Cas64(p, w, (w&^(stateMask|clear))|to|set) {
			return w, true
		}
	}
}

// relax is one turn of waiting for a bounded state to end. Spinning alone
// would be wrong: the party we wait for may need this very CPU.
//
//go:nosplit
//go:norace
func relax(turn int) {
	if turn < 64 {
		bare.Pause()
		return
	}
	bare.Syscall(sysSchedYield, 0, 0, 0, 0, 0, 0)
}
