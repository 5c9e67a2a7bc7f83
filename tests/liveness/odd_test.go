package liveness

import "runtime"

// finalized arranges for f to run as the cleanup of something that is garbage
// at once.
//
//go:noinline
func finalized(f func()) {
	x := new([64]byte)
	runtime.AddCleanup(x, func(f func()) { f() }, f)
}
