// Package ccode changes memory from C, which the Go runtime does not see. Test
// files may not use cgo, hence a package.
package ccode
