package parkforms

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"hash/maphash"
	"iter"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"unsafe"
)

// form is one way to touch a page. run gets the page, and ordinary memory with
// what it holds; a form that writes makes the same of both.
type form struct {
	name    string // as in the table of the docs
	run     func(m, w []byte) error
	writes  bool
	blocks  bool // the thread, in every release
	blocks5 bool // in Go 1.25
	fatal   bool // on a page that cannot be read it kills the process
}

var errDiffers = errors.New("wrong value")

func same[T comparable](got, want T) error {
	if got != want {
		return errDiffers
	}
	return nil
}

type large [64]uint64

var (
	seed  = maphash.MakeSeed()
	boxed any
)

func word(m []byte) *uint64 { return (*uint64)(unsafe.Pointer(&m[64])) }

var forms = []form{
	{name: "load", run: func(m, w []byte) error { return same(m[5], w[5]) }},
	{name: "range loop", run: func(m, w []byte) error {
		got, want := 0, 0
		for _, c := range m {
			got += int(c)
		}
		for _, c := range w {
			want += int(c)
		}
		return same(got, want)
	}},
	{name: "atomic load", run: func(m, w []byte) error { return same(atomic.LoadUint64(word(m)), *word(w)) }},
	{name: "copy from it", run: func(m, w []byte) error {
		b := make([]byte, len(m))
		copy(b, m)
		return same(bytes.Equal(b, w), true)
	}},
	{name: "append", run: func(m, w []byte) error {
		return same(string(append([]byte("x"), m...)), "x"+string(w))
	}},
	{name: "string(b)", run: func(m, w []byte) error { return same(string(m), string(w)) }},
	{name: "== on strings", run: func(m, w []byte) error {
		return same(unsafe.String(&m[0], len(m)) == unsafe.String(&w[0], len(w)), true)
	}},
	{name: "bytes.Equal", run: func(m, w []byte) error { return same(bytes.Equal(m, w), true) }},
	{name: "bytes.Compare", run: func(m, w []byte) error { return same(bytes.Compare(m, w), 0) }},
	{name: "bytes.IndexByte", run: func(m, w []byte) error { return same(bytes.IndexByte(m, w[4000]), bytes.IndexByte(w, w[4000])) }},
	{name: "bytes.Index", run: func(m, w []byte) error { return same(bytes.Index(m, w[4000:4040]), bytes.Index(w, w[4000:4040])) }},
	{name: "bytes.Count", run: func(m, w []byte) error { return same(bytes.Count(m, w[:1]), bytes.Count(w, w[:1])) }},
	{name: "map lookup by string", run: func(m, w []byte) error {
		k := map[string]int{string(w): 1}
		for i := range 100 {
			k[string(w[i:])] = 2 + i
		}
		return same(k[unsafe.String(&m[0], len(m))], 2)
	}},
	{name: "map insert by array", run: func(m, w []byte) error {
		k := map[[16]byte]int{}
		k[[16]byte(m[16:])]++
		return same(k[[16]byte(w[16:])], 1)
	}},
	{name: "maphash", run: func(m, w []byte) error { return same(maphash.Bytes(seed, m), maphash.Bytes(seed, w)) }},
	{name: "crc32", run: func(m, w []byte) error { return same(crc32.ChecksumIEEE(m), crc32.ChecksumIEEE(w)) }},
	{name: "struct copy", blocks5: true, run: func(m, w []byte) error {
		v := *(*large)(unsafe.Pointer(&m[512]))
		return same(v, *(*large)(unsafe.Pointer(&w[512])))
	}},
	{name: "boxing in an interface", run: func(m, w []byte) error {
		boxed = [24]byte(m[8:])
		return same(boxed, any([24]byte(w[8:])))
	}},
	{name: "sort.Search", run: func(m, w []byte) error {
		at := func(b []byte) int { return sort.Search(len(b), func(i int) bool { return b[i] > 100 }) }
		return same(at(m), at(w))
	}},
	{name: "strings.ToUpper", run: func(m, w []byte) error {
		return same(strings.ToUpper(unsafe.String(&m[0], len(m))), strings.ToUpper(string(w)))
	}},
	{name: "deferred function", run: func(m, w []byte) (err error) {
		defer func() { err = same(m[9], w[9]) }()
		return nil
	}},
	{name: "iter.Pull coroutine", run: func(m, w []byte) error {
		next, stop := iter.Pull(func(yield func(byte) bool) {
			debug.SetPanicOnFault(true) // it is a goroutine of its own
			slices.Values(m)(yield)
		})
		defer stop()
		c, _ := next()
		return same(c, w[0])
	}},
	{name: "goroutine locked to its thread", run: func(m, w []byte) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return same(m[11], w[11])
	}},
	{name: "reflect.Copy", run: func(m, w []byte) error {
		b := make([]byte, len(m))
		reflect.Copy(reflect.ValueOf(b), reflect.ValueOf(m))
		return same(bytes.Equal(b, w), true)
	}},
	{name: "store", writes: true, run: func(m, w []byte) error { m[7], w[7] = 1, 1; return nil }},
	{name: "read, add, write", writes: true, run: func(m, w []byte) error { m[8]++; w[8]++; return same(m[8], w[8]) }},
	{name: "atomic add", writes: true, run: func(m, w []byte) error {
		return same(atomic.AddUint64(word(m), 3), atomic.AddUint64(word(w), 3))
	}},
	{name: "compare-and-swap that fails", writes: true, run: func(m, w []byte) error {
		return same(atomic.CompareAndSwapUint64(word(m), *word(w)+1, 9), false)
	}},
	{name: "copy to it", writes: true, run: func(m, w []byte) error {
		b := bytes.Repeat([]byte("ab"), 1000)
		return same(copy(m[3:], b), copy(w[3:], b))
	}},
	{name: "clear", writes: true, run: func(m, w []byte) error { clear(m[100:3000]); clear(w[100:3000]); return nil }},
	{name: "binary.PutUvarint", writes: true, run: func(m, w []byte) error {
		return same(binary.PutUvarint(m, 1<<40), binary.PutUvarint(w, 1<<40))
	}},
	{name: "sha256 (framed assembly)", blocks: true, run: func(m, w []byte) error { return same(sha256.Sum256(m), sha256.Sum256(w)) }},
	{name: "lookup by a long string in a map of 3 (the runtime's own code)", blocks: true, run: func(m, w []byte) error {
		return same(map[string]int{string(w): 1, "": 2, "y": 3}[unsafe.String(&m[0], len(m))], 1)
	}},
	{name: "string(b) of one byte (the runtime's own code)", blocks: true, run: func(m, w []byte) error {
		return same(string(m[13:14]), string(w[13:14]))
	}},
	{name: "reflect.Value.Uint (reflect's own code)", blocks: true, run: func(m, w []byte) error {
		return same(reflect.ValueOf(m).Index(3).Uint(), uint64(w[3]))
	}},
	{name: "channel send of an element in it (under the runtime's lock)", blocks: true, fatal: true, run: func(m, w []byte) error {
		c := make(chan large, 1)
		reflect.ValueOf(c).Send(reflect.NewAt(reflect.TypeFor[large](), unsafe.Pointer(&m[1024])).Elem())
		return same(<-c, *(*large)(unsafe.Pointer(&w[1024])))
	}},
}
