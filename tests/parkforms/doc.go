// Package parkforms holds the test that each form of access to a page that is
// not there, that is write-protected or that cannot be read ends as the table in
// docs/park-in-place.md says: the goroutine parked or the thread blocked, with
// the right value or the right error.
package parkforms
