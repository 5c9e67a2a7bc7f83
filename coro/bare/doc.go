// Package bare holds the few primitives that code without a P may use: the
// SIGBUS handler, which runs on a signal stack in the middle of any
// instruction, and the fault server, a thread the Go runtime does not know.
//
// Such code has no g to grow a stack with, no race detector state and no
// right to allocate, to take a Go lock or to write a pointer into the heap. A
// function that runs there is marked
//
//	//go:nosplit
//	//go:norace
//	//go:nocheckptr
//
// (the last because -race turns on pointer checks, which are ordinary Go), is
// top-level, indexes nothing that needs a bounds check, keeps its frame small
// (the linker allows a chain of nosplit calls about 800 bytes), and calls only
// functions of the same kind and those of this package.
//
// On linux/amd64 everything here is assembly: with -race the sync/atomic
// package calls into the detector, which needs a g. Elsewhere there is no
// P-less code, and these are sync/atomic in disguise so that callers build.
package bare
