package coro

import "fmt"

// Access is what the faulting instruction wanted. The values are the page
// fault error code of the processor (user mode | write | present), as the
// kernel hands it to a signal handler.
type Access uint8

const (
	Read           Access = 4 // load from a page that is not there
	Write          Access = 6 // store to a page that is not there
	WriteProtected Access = 7 // store (or a failed compare-and-swap) to a page that is there, write-protected
)

func (a Access) String() string {
	switch a {
	case Read:
		return "read"
	case Write:
		return "write"
	case WriteProtected:
		return "write-protected"
	}
	return fmt.Sprintf("Access(%d)", uint8(a))
}

// Fault is one access that could not be completed.
type Fault struct {
	Addr   uintptr // the first byte that could not be accessed, exact
	PC     uintptr // the instruction that will run again
	G      uintptr // the goroutine, as CurrentG names it; 0 on a thread without one
	Errno  uintptr // why it is delivered; written by Decide
	Access Access
}

// Verdict is what an arena's Decide wants to be done with a fault.
type Verdict uint8

const (
	// Retry: the fault is resolved, or worth trying again at once; the
	// instruction runs again.
	Retry Verdict = iota
	// Wait: the page needs I/O. The goroutine is parked in place if it can
	// be; otherwise its thread blocks until the arena's Serve has answered.
	Wait
	// WaitGo: the page needs Go code. The goroutine is parked in place if it
	// can be; otherwise the fault is delivered with ErrnoCannotPark, because a
	// thread that waits for Go code while it holds a P may wait for ever.
	WaitGo
	// Deliver: the access fails. Go sees the SIGBUS as if there were no trap:
	// a fault with Addr(), a panic under debug.SetPanicOnFault, death without.
	Deliver
)

// Values of Fault.Errno that are not the kernel's.
const (
	// ErrnoCannotPark: the page needs Go code to run and the code that
	// faulted cannot be parked.
	ErrnoCannotPark uintptr = 1<<16 + iota
	// ErrnoRestart: the arena's mode is Restart, so that every wait is
	// delivered.
	ErrnoRestart
)

// ArenaConfig describes a range of addresses whose faults are ours.
type ArenaConfig struct {
	// The arena is [Lo, Hi); page aligned, not overlapping another one.
	Lo, Hi uintptr

	// Mode says how a fault waits; the environment variable UFFDPAGER_PARK
	// overrides it. With any but Block and Restart goroutines are parked in
	// place where that is active (ParkStatus), and somebody must call
	// NextParked. Block never parks. Restart delivers every wait with
	// ErrnoRestart. Require makes AddArena fail where parking is not active.
	Mode Mode

	// Decide judges a fault. It runs in signal context, on the signal stack
	// of the thread that faulted, in the middle of any instruction of any
	// code, with all signals blocked: the rules of package bare apply. f is
	// only valid during the call. It must not touch an arena.
	Decide func(f *Fault) Verdict

	// Serve loads the page of f without Go: it runs on a fault server, a
	// thread without a P, of which several may call it at once; the rules of
	// package bare apply. 0 means that the instruction is to be tried again,
	// anything else fails the access with that errno. It must not touch an
	// arena. nil: a fault that cannot be parked is delivered with
	// ErrnoCannotPark even if Decide says Wait.
	Serve func(f *Fault) (errno uintptr)

	// Inline has Serve called on the thread that faulted, in signal context,
	// instead of on a fault server: the same rules, the same waiting, but no
	// other thread needs to be woken, which is most of the cost of a fault
	// whose I/O is short. As many calls may run at once as threads fault. The
	// stack is the signal stack, 32 KiB on Go's threads.
	Inline bool
}
