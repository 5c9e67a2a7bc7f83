//go:build !uffdpager_nointernals

package coro

import _ "unsafe" // for linkname

// procPin counts up m.locks of the thread, which the scheduler respects for
// asynchronous preemption as for others. It is one of the functions that the
// runtime keeps for packages that link to it.
//
//go:linkname procPin runtime.procPin
func procPin() int

//go:linkname procUnpin runtime.procUnpin
func procUnpin()

// Unstopped begins code of a goroutine, nosplit functions of a few system calls,
// in which it is not preempted. Its result is for Stoppable, which ends it. It
// must not be called where there is no goroutine: that code cannot be stopped.
//
//go:nosplit
//go:norace
func Unstopped() uint64 {
	procPin()
	return 0
}

// Stoppable ends what Unstopped began.
//
//go:nosplit
//go:norace
func Stoppable(uint64) { procUnpin() }
