// Package thirdparty holds the tests that let other people's code read from a
// region: libraries that are handed a []byte, have never heard of a pager, and
// bring pure Go, unsafe and SIMD assembly of their own. A region sixteen times
// its budget and a thousand goroutines must give the answers that plain memory
// gives.
//
// It is a module of its own, so that those who import the pager do not get
// these libraries into their go.sum.
package thirdparty
