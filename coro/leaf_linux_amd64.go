//go:build !uffdpager_nointernals

package coro

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"sync"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// The runtime stops no goroutine in assembly, because it cannot know what the
// assembly keeps where. In a frameless leaf there is nothing to know: its
// return address is at the stack pointer, its arguments are in registers,
// which are saved, or in its caller's frame, which is scanned conservatively.
// Since that is most of what reads memory in bulk – memmove, memequal,
// IndexByte … – such routines are parked in too, if they are on the list and
// their code, disassembled at start-up, is as it must be.

const maxLeaves = 256

type leafRange struct{ lo, hi uintptr }

// leaves is append-only; entries below nLeaves never change.
var (
	leaves  [maxLeaves]leafRange
	nLeaves uint32
	leafMu  sync.Mutex
)

// leafNames are the routines of the Go distribution, by symbol. A name that a
// release does not have, or has with a frame, is simply not used.
var leafNames = map[string]bool{
	"runtime.memmove": true, "runtime.memclrNoHeapPointers": true,
	"runtime.memequal": true, "runtime.memequal_varlen": true, "memeqbody": true,
	"runtime.cmpstring": true, "cmpbody": true,
	"runtime.memhash": true, "runtime.strhash": true, "runtime.memhash32": true, "runtime.memhash64": true,
	"aeshashbody":                      true,
	"internal/runtime/maps.memHashAES": true, "internal/runtime/maps.memHash32AES": true, "internal/runtime/maps.memHash64AES": true,
	"internal/bytealg.Compare": true, "internal/bytealg.Count": true, "internal/bytealg.CountString": true,
	"internal/bytealg.IndexByte": true, "internal/bytealg.IndexByteString": true,
	"internal/bytealg.Index": true, "internal/bytealg.IndexString": true,
	"indexbytebody": true, "indexbody": true, "countbody": true,
	"hash/crc32.ieeeCLMUL": true, "hash/crc32.castagnoliSSE42": true, "hash/crc32.castagnoliSSE42Triple": true,
}

//go:nosplit
//go:norace
//go:nocheckptr
func isLeaf(pc uintptr) bool {
	for i := bare.Load32(&nLeaves); i != 0; {
		i--
		if l := &leaves[i%maxLeaves]; pc >= l.lo && pc < l.hi {
			return true
		}
	}
	return false
}

func addLeaf(lo, hi uintptr) error {
	if err := checkLeaf(code(lo, int(hi-lo))); err != nil {
		return err
	}
	leafMu.Lock()
	defer leafMu.Unlock()
	n := nLeaves
	for i := range n {
		if leaves[i].lo == lo {
			return nil
		}
	}
	if n == maxLeaves {
		return errors.New("coro: too many leaves")
	}
	leaves[n] = leafRange{lo, hi}
	bare.Store32(&nLeaves, n+1)
	return nil
}

// AllowLeaf lets goroutines be parked inside fn, an assembly function of the
// program or of a library that it uses: a distance kernel, a checksum. fn is
// the function itself or, if it is not exported, a string with its full name
// as in Stats.BlockedBy ("example.com/vector/internal/asm.Dot"), which takes a
// walk over the program's symbols.
//
// The function must be a leaf without a frame (NOSPLIT, $0): it calls nothing,
// pushes nothing, changes neither SP nor BP, keeps nothing below SP; that is
// checked in its machine code, and an error says which instruction is in the
// way. What cannot be checked is on the caller:
//   - at every instruction that touches memory, each heap object that is still
//     needed has a pointer into it in a general register, or in memory that
//     the collector knows (the caller's variables, if they are used after the
//     call); one past the end does not count;
//   - no pointer into the heap exists only in a vector register;
//   - running an instruction again is harmless if it did not complete, as it
//     is for all instructions of the processor.
//
// It must be called before the first fault in fn; calling it twice is
// harmless.
func AllowLeaf(fn any) error {
	if name, ok := fn.(string); ok {
		return allowNamed(name)
	}
	v := reflect.ValueOf(fn)
	if v.Kind() != reflect.Func || v.IsNil() {
		return errors.New("coro: AllowLeaf: not a function")
	}
	f := runtime.FuncForPC(v.Pointer())
	if f == nil {
		return errors.New("coro: AllowLeaf: no such function")
	}
	// The value of an assembly function is a wrapper, compiled Go that calls
	// the function with the arguments on the stack, under the same name.
	lo := v.Pointer()
	if t, ok := wrapped(code(lo, int(funcEnd(lo)-lo)), lo, f.Name()); ok {
		lo = t
	}
	if err := addLeaf(lo, funcEnd(lo)); err != nil {
		return fmt.Errorf("coro: AllowLeaf: %s: %w", f.Name(), err)
	}
	return nil
}

// allowNamed allows what has the name and is a leaf; a wrapper has the same
// name and is none.
func allowNamed(name string) error {
	err := errors.New("no such function")
	symbols(func(n string, entry, end uintptr) {
		if n == name && err != nil {
			err = addLeaf(entry, end)
		}
	})
	if err != nil {
		return fmt.Errorf("coro: AllowLeaf: %s: %w", name, err)
	}
	return nil
}

// wrapped finds the one function of the same name that the code at pc calls.
func wrapped(c []byte, pc uintptr, name string) (target uintptr, ok bool) {
	for i := 0; i+5 <= len(c); i++ {
		if c[i] != 0xe8 {
			continue
		}
		t := pc + uintptr(i) + 5 + uintptr(rel32(c[i+1:]))
		if f := runtime.FuncForPC(t); f != nil && f.Entry() == t && t != pc && f.Name() == name {
			return t, true
		}
	}
	return 0, false
}
