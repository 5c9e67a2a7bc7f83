package bare

import "unsafe"

// Ptr turns an address outside the Go heap into a pointer. The address must
// not be that of a Go object: the collector does not see a uintptr.
//
//go:nosplit
//go:norace
//go:nocheckptr
func Ptr(a uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&a)) }
