package store

import "unsafe"

// addressOf is where b starts, for alignment only.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
