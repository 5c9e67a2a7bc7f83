package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"math/bits"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"
)

func die(format string, a ...any) {
	fmt.Printf("WRONG: "+format+"\n", a...)
	os.Exit(3)
}

// worker is one goroutine's state.
type worker struct {
	r      *region
	rnd    *rand.Rand
	id     uint64
	counts map[uint64]uint64 // what this worker's words in the writable half hold
	keys   map[string]int
	heap   []byte
	n      int
	seed   maphash.Seed
}

// ops are the forms of access, in groups that the flag -ops selects by bit.
var ops = []struct {
	name string
	run  func(*worker, uint64)
}{
	{"load", (*worker).loads},
	{"copy", (*worker).copies},
	{"registers", (*worker).registers},
	{"recursion", (*worker).recursion},
	{"compare", (*worker).compares},
	{"map", (*worker).maps},
	{"append", (*worker).appends},
	{"struct", (*worker).structs},
	{"write", (*worker).writes},
	{"fail", (*worker).fails},
	{"vector", (*worker).vectors},
	{"overlap", (*worker).overlaps},
	// From here on: what blocks the thread.
	{"framed", (*worker).framed},
	{"locked", (*worker).locked},
}

func (w *worker) check(what string, off, got uint64) {
	if got != mix(off) {
		die("%s at %#x: %#x, want %#x", what, off, got, mix(off))
	}
}

func (w *worker) loads(off uint64) {
	for k := uint64(0); k < 40; k++ {
		o := (off + k*400) &^ 7
		w.check("load", o, *w.r.at(o))
	}
	o := off &^ 7
	w.check("atomic load", o, atomic.LoadUint64(w.r.at(o)))
}

func (w *worker) copies(off uint64) {
	n := w.rnd.IntN(16384)
	d := make([]byte, n)
	copy(d, w.r.mem(off, n))
	for k := 0; k+8 <= n; k += 8 {
		w.check("copy", off+uint64(k), *(*uint64)(unsafe.Pointer(&d[k])))
	}
}

type node struct {
	next *node
	v    uint64
	pad  [4]uint64
}

// inRegisters has n alive only in a register while *p faults: the load is
// atomic so that the compiler does not look at n first.
//
//go:noinline
func inRegisters(n *node, p *uint64) uint64 { return atomic.LoadUint64(p) + n.v + n.next.v }

// newNodes allocates on the heap, for it does not see who uses them.
//
//go:noinline
func newNodes() *node { return &node{next: &node{v: 7}, v: 5} }

//go:noinline
func inFloats(p *uint64, a, b, c, d float64) (uint64, float64) {
	x, y, z := a*b+c, c*d+a, a*d-b*c
	v := *p
	return v, x + y + z
}

//go:noinline
func inFlags(a, b uint64, p *uint64) uint64 {
	s, c := bits.Add64(a, b, 0)
	t, _ := bits.Add64(*p, s, c)
	return t
}

func (w *worker) registers(off uint64) {
	if v := inRegisters(newNodes(), w.r.at(off)); v != mix(off)+12 {
		die("registers: off by %#x", v-mix(off)-12)
	}
	o := off + 4096
	v, f := inFloats(w.r.at(o), 1.5, 2.5, 3.5, 4.5)
	if v != mix(o) || f != 1.5*2.5+3.5+3.5*4.5+1.5+1.5*4.5-2.5*3.5 {
		die("float registers: %#x, %v", v, f)
	}
	o += 4096
	if v := inFlags(^uint64(0), 2, w.r.at(o)); v != mix(o)+2 {
		die("carry: %#x", v-mix(o))
	}
}

//go:noinline
func deep(r *region, n int, off uint64, p *node) uint64 {
	var pad [16]uint64
	pad[n&15] = p.v
	if n == 0 {
		return *r.at(off) + pad[0] - p.v
	}
	return deep(r, n-1, off, &node{next: p, v: p.v}) + pad[n&15] - p.v
}

func (w *worker) recursion(off uint64) {
	n := w.rnd.IntN(400)
	w.check("recursion", off, deep(w.r, n, off, &node{v: 3}))
}

func (w *worker) compares(off uint64) {
	n := 1 + w.rnd.IntN(9000)
	m := w.r.mem(off, n)
	s := string(m)
	if !bytes.Equal([]byte(s), m) || s != unsafe.String(&m[0], n) || bytes.Compare([]byte(s), m) != 0 {
		die("compare of %d bytes at %#x", n, off)
	}
	want := []byte(s)
	if k := bytes.Index(m, want[len(want)/2:]); k < 0 || k > n/2 {
		die("index: %d of %d", k, n)
	}
	if strings.Compare(unsafe.String(&m[0], n), s) != 0 || !strings.HasSuffix(s, unsafe.String(&m[n/2], n-n/2)) {
		die("strings of %d bytes at %#x", n, off)
	}
}

func (w *worker) maps(off uint64) {
	k := unsafe.String(&w.r.mem(off, 256)[0], 24+w.rnd.IntN(200))
	w.keys[strings.Clone(k)] = w.n
	if v, ok := w.keys[k]; !ok || v != w.n {
		die("map")
	}
	if len(w.keys) > 64 {
		clear(w.keys)
	}
	n := 1 + w.rnd.IntN(300)
	m := w.r.mem(off+8192, n)
	if h := maphash.Bytes(w.seed, m); h != maphash.Bytes(w.seed, bytes.Clone(m)) {
		die("hash")
	}
}

func (w *worker) appends(off uint64) {
	n := w.rnd.IntN(5000)
	m := w.r.mem(off, n)
	w.heap = append(w.heap, m...)
	if !bytes.Equal(w.heap[len(w.heap)-n:], m) {
		die("append")
	}
	if len(w.heap) > 1<<16 {
		w.heap = make([]byte, 0, 64)
	}
	c := 0
	for b := m; len(b) > 0; c++ {
		j := bytes.IndexByte(b, 'x')
		if j < 0 {
			break
		}
		b = b[j+1:]
	}
	if c != bytes.Count(m, []byte{'x'}) {
		die("count")
	}
}

type large struct{ a [40]uint64 }

var sink atomic.Pointer[large]

func (w *worker) structs(off uint64) {
	v := *(*large)(unsafe.Pointer(w.r.at(off)))
	for k := range v.a {
		w.check("struct", off+uint64(k)*8, v.a[k])
	}
	sink.Store(&v)
	words := slices.Clone(unsafe.Slice(w.r.at(off), 100))
	slices.Sort(words)
	if _, ok := slices.BinarySearch(words, mix(off)); !ok {
		die("sorted words")
	}
}

// writes counts in this worker's word of some writable pages.
func (w *worker) writes(off uint64) {
	for range 8 {
		p := w.rnd.Uint64N(uint64(w.r.scratch-w.r.writable)/page/4-1)*4 + w.id/(page/8)%4
		o := uint64(w.r.writable) + p*page + w.id%(page/8)*8
		if got := *w.r.at(o); got != w.counts[o] {
			die("write at %#x: %d, want %d", o, got, w.counts[o])
		}
		switch w.n % 3 {
		case 0:
			*w.r.at(o)++
		case 1:
			atomic.AddUint64(w.r.at(o), 1)
		case 2:
			var b [8]byte
			*(*uint64)(unsafe.Pointer(&b)) = w.counts[o] + 1
			copy(w.r.mem(o, 8), b[:])
		}
		w.counts[o]++
	}
}

// fails touches the page that cannot be read: a fault with its address, and
// variables that are as they were.
func (w *worker) fails(off uint64) {
	o := uint64(failing) + off%page&^7
	done, addr := 0, uintptr(0)
	func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if a, ok := recover().(interface{ Addr() uintptr }); ok {
				addr = a.Addr()
			}
		}()
		n := &node{v: 9}
		for i := range 3 {
			done += int(n.v)
			if i == 1 {
				if w.n%2 == 0 {
					done += int(*w.r.at(o))
				} else {
					var b [8]byte
					copy(b[:], w.r.mem(o, 8))
				}
			}
		}
		done = 1000
	}()
	if done != 18 || addr != w.r.lo+uintptr(o) {
		die("failing load: %d, address %#x", done, addr-w.r.lo)
	}
}

func (w *worker) vectors(off uint64) {
	n := 64 + w.rnd.IntN(20000)
	d := bytes.Clone(w.r.mem(off, n))
	m := w.r.mem(off, n)
	if crc32.ChecksumIEEE(d) != crc32.ChecksumIEEE(m) {
		die("crc32 of %d bytes at %#x", n, off)
	}
}

// overlaps moves bytes of its own scratch pages, which have just been dropped,
// up by a few: backward, with the direction flag set where there is no AVX.
func (w *worker) overlaps(off uint64) {
	o := uint64(w.r.scratch) + w.id*scratchPages*page
	w.r.drop(o, scratchPages*page)
	m := w.r.mem(o, scratchPages*page)
	model := make([]byte, len(m))
	for i := range model[:page] {
		model[i] = byte(w.rnd.Uint32())
	}
	copy(m, model[:page])
	d := 1 + w.rnd.IntN(64)
	n := 2*page + w.rnd.IntN(page)
	copy(m[d:], m[:n])
	copy(model[d:], model[:n])
	if !bytes.Equal(m, model) {
		die("overlapping copy of %d bytes by %d", n, d)
	}
}

func (w *worker) framed(off uint64) {
	n := w.rnd.IntN(20000)
	d := bytes.Clone(w.r.mem(off, n))
	m := w.r.mem(off, n)
	if sha256.Sum256(d) != sha256.Sum256(m) {
		die("sha256 of %d bytes at %#x", n, off)
	}
}

// locked has the runtime copy from the region while it holds a channel's lock.
func (w *worker) locked(off uint64) {
	type element [24]uint64
	c := make(chan element, 1)
	reflect.ValueOf(c).Send(reflect.NewAt(reflect.TypeFor[element](), unsafe.Pointer(w.r.at(off))).Elem())
	for i, v := range <-c {
		w.check("channel", off+uint64(i)*8, v)
	}
}
