package coro

import (
	"runtime"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// code is the n bytes of machine code at pc.
func code(pc uintptr, n int) []byte { return unsafe.Slice((*byte)(bare.Ptr(pc)), n) }

func rel32(b []byte) int32 { return int32(b[0]) | int32(b[1])<<8 | int32(b[2])<<16 | int32(b[3])<<24 }

// funcEnd is the end of the function at entry, padding included. The linker
// may lay functions out in any order, so the end is asked for, not assumed.
func funcEnd(entry uintptr) uintptr {
	end := entry
	for f := runtime.FuncForPC(end); f != nil && f.Entry() == entry; f = runtime.FuncForPC(end) {
		end++
	}
	return end
}

// callees are the names of the functions that the code calls directly; "?" is
// among them if not all of it could be read.
func callees(entry, end uintptr) map[string]bool {
	names := map[string]bool{}
	c := code(entry, int(end-entry))
	for at := 0; at < len(c); {
		in, err := decode(c, at)
		if err != nil {
			names["?"] = true
			break
		}
		if in.flow == flowCall && in.target != 0 {
			t := entry + uintptr(in.target)
			if f := runtime.FuncForPC(t); f != nil && f.Entry() == t {
				names[f.Name()] = true
			}
		}
		at += in.len
	}
	return names
}
