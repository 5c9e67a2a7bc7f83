//go:build linux

package pager

import "unsafe"

func ptrOf(b *buffer) unsafe.Pointer { return unsafe.Pointer(&b.mem[0]) }
