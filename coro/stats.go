package coro

// Stats counts what became of the faults of all arenas since the process
// began.
type Stats struct {
	Faults    uint64 // SIGBUS in an arena, retries included
	Landed    uint64 // of these, in CopyOut, which returned
	Retried   uint64 // resolved by Decide, or tried again
	Parked    uint64 // goroutines parked in place
	Served    uint64 // pages asked of Serve
	Delivered uint64 // turned into Go faults
	Blocked   uint64 // could not be parked: the thread waited, or the fault was delivered

	// BlockedBy says where and why, most frequent first.
	BlockedBy []Blocked
}

// Blocked is one line of Stats.BlockedBy.
type Blocked struct {
	Func   string // the function that faulted; "" for those that found no room in the table
	Reason Reason
	Count  uint64
}

// Reason says why a fault could not be parked in place.
type Reason uint8

const (
	parkedOK Reason = iota // it could
	// ModeBlock: the arena asks for blocking.
	ModeBlock
	// Inactive: parking in place is off in this process; see ParkStatus.
	Inactive
	// NoGoroutine: the thread runs no Go code: C, or a thread being made.
	NoGoroutine
	// SystemStack: the stack is not the goroutine's: the runtime's own code, C.
	SystemStack
	// PagerItself: the goroutine that calls NextParked.
	PagerItself
	// LowStack: the goroutine's stack has no room for the saved registers.
	LowStack
	// OddFrame: the frame pointer is not that of Go code.
	OddFrame
	// OddState: the saved processor state is not in the form expected.
	OddState
	// NoSlot: no memory for one more parked goroutine.
	NoSlot
	// Refused: the runtime does not stop a goroutine here: assembly that is
	// not on the list, a nosplit function, the runtime itself, reflect.
	Refused
	// Locked: a leaf that could be parked in, but called by a goroutine that
	// the runtime does not stop now: it allocates, or holds a runtime lock.
	Locked
	reasons
)

var reasonNames = [reasons]string{"parked", "mode is block", "parking is off", "no goroutine", "system stack", "the pager's own goroutine",
	"stack is low", "unknown frame", "unknown processor state", "no slot", "code cannot be stopped", "goroutine cannot be stopped now"}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return "unknown"
}
