package coro

// Code that must not be stopped
//
// Threads that wait without a P, in a signal handler, rely on others to get on.
// What those do meanwhile must not be interrupted by the scheduler, least of all
// to stop the world, for a thread that waits in a handler keeps its P and so the
// world from being stopped, and the others from going on.
//
// That a function is nosplit is not enough. The compiler marks all of it as no
// safe-point, but for its prologue, which the assembler adds: three instructions
// of every nosplit function that has a frame, at which a goroutine can be
// preempted asynchronously. (go build -gcflags=-S shows PCDATA $0, $-2 behind
// PUSHQ BP, MOVQ SP, BP, SUBQ. It is so in Go 1.25 to 1.27.) Calls between nosplit
// functions are in the middle of what must not be stopped, so now and then it was.
//
// Unstopped and Stoppable are around such code. They cost a few nanoseconds, or
// with the tag uffdpager_nointernals two system calls.
