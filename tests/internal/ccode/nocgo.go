//go:build !cgo

package ccode

// Have: this build has C in it.
const Have = false

// AddOne must not be called where Have is false.
func AddOne(*[8]byte) { panic("ccode: there is no C in this build") }
