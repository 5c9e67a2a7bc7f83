//go:build cgo

package ccode

/*
#include <stdint.h>

// Byte by byte, so that the compiler does not make one store of it.
static void add_one(volatile uint8_t *p) {
	unsigned carry = 1;
	for (int i = 0; i < 8 && carry; i++) {
		carry += p[i];
		p[i] = (uint8_t)carry;
		carry >>= 8;
	}
}
*/
import "C"

import "unsafe"

// Have: this build has C in it.
const Have = true

// AddOne adds one to the little-endian word at b, a byte at a time.
func AddOne(b *[8]byte) { C.add_one((*C.uint8_t)(unsafe.Pointer(b))) }
