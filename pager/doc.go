// Package pager maps files and devices that are larger than memory as ordinary
// byte slices whose page faults are served in this process: under a budget,
// with direct asynchronous I/O, parking only the goroutine that faulted.
//
// A [Pager] owns a budget and an I/O engine. [Pager.Map] turns a store (see
// package store) into a [Region]. There are four ways in:
//
//   - [Region.Acquire] and its relatives make a range resident and pin it: the
//     memory may go to system calls, cgo and O_DIRECT. A hit is a look at one
//     word.
//   - [Region.ReadAt] and [Region.WriteAt] copy.
//   - [Region.View] and [Region.Update] run any code over the raw slice and
//     turn faults that fail into errors.
//   - [Region.Bytes] is the raw slice itself. Most callers use it within
//     [Guard], so that a page that cannot be read is an error and not the end
//     of the process.
//
// All of them see the same pages and may be mixed freely. Writes become durable
// by [Region.Sync], or by [Region.SyncEventfd] without anybody waiting, as
// [Region.LockEventfd] pins a range without anybody waiting.
//
// Two traps of lifetime. A pin that is not released, and a [Region.View] that
// does not return, keep [Region.Close] waiting. And after Close the addresses
// of Bytes are not somebody else's memory and not zeros: touching them faults.
//
// Raw access needs Linux on amd64 and userfaultfd; [Region.Raw] says whether a
// region has it, and docs/limits.md what is needed. Without it the first two
// ways still work on Linux; elsewhere everything returns [ErrNotSupported].
//
// How it works inside is told in docs/how-it-works.md and at the top of
// state.go, table.go, wait.go, line.go and fault.go.
package pager
