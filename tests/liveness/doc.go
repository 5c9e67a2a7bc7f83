// Package liveness holds the tests that something goes on: thousands of
// waiters on a few threads, holders that want more, budgets smaller than the
// number of those who work in them, Close among waiters. What fails here hangs,
// so everything runs in a child with a deadline.
package liveness
