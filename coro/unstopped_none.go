//go:build !linux || !amd64

package coro

// Unstopped begins code in which a goroutine is not preempted. Here nobody waits
// for it without a P.
func Unstopped() uint64 { return 0 }

// Stoppable ends what Unstopped began.
func Stoppable(uint64) {}
