// Package model holds the tests that compare random histories of operations on
// regions with a plain []byte.
//
// One table of operations (ops_test.go) covers every public way in. It is
// driven in two ways: by rapid, one operation after the other, so that a
// failure is shrunk to a few steps (sequential_test.go); and by many goroutines
// with generators of their own, while the budget breathes and the collector
// runs (concurrent_test.go). In the second, 512-byte slots of a region are
// locked by the model while an operation works on them, so that what it sees
// is known to the byte, while pages – which hold eight slots and more – are
// shared by many operations at once.
//
// A failure names its seed; -seed N or UFFDPAGER_SEED=N replays it. rapid
// replays exactly; a concurrent history replays its operations, not their
// interleaving. UFFDPAGER_TORTURE=1 runs minutes instead of seconds.
package model
