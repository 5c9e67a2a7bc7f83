package bare

import "unsafe"

// Ptr turns an address outside the Go heap into a pointer. The address must
// not be that of a Go object: the collector does not see a uintptr. It is
// written as an addition because that gives the compiler a value of pointer
// type; reinterpreting the word instead makes some releases fail to compile
// copies from there.
//
//go:nosplit
//go:norace
//go:nocheckptr
func Ptr(a uintptr) unsafe.Pointer { return unsafe.Add(unsafe.Pointer(nil), a) }
