//go:build !uffdpager_nointernals

package coro

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// The audit of a Go release, in one command:
//
//	GOTOOLCHAIN=go1.N.P go test -run TestAudit -v ./coro
//
// It prints what was found in the runtime and which leaves are parked in, and
// ends with ACCEPTED, or fails with REFUSED and all that differs from the table
// in internals_unsafe_linux_amd64.go, knownCode and the lists here. A new
// release of Go fails; other versions, which are never accepted, are skipped
// unless UFFDPAGER_AUDIT is set.

// expectedLeaves must be found and accepted in every supported release.
var expectedLeaves = []string{
	"runtime.memmove", "runtime.memclrNoHeapPointers", "runtime.memequal", "runtime.memequal_varlen", "memeqbody",
	"runtime.cmpstring", "cmpbody", "internal/bytealg.IndexByte", "indexbytebody", "internal/bytealg.Index", "indexbody",
	"internal/bytealg.Count", "countbody", "internal/bytealg.Compare", "hash/crc32.ieeeCLMUL",
}

// TestAuditOfThisRelease accepts or refuses the release that runs it.
func TestAuditOfThisRelease(t *testing.T) {
	needTrap(t)
	rel, err := releaseOf(runtime.Version())
	refused := err
	if err != nil {
		if _, isRelease := strings.CutPrefix(strings.TrimRight(runtime.Version(), "0123456789."), "go"); (!isRelease || strings.ContainsAny(runtime.Version(), "-X: ")) && os.Getenv("UFFDPAGER_AUDIT") == "" {
			t.Skipf("%v; UFFDPAGER_AUDIT=1 looks at it all the same", err)
		}
		rel = releases[len(releases)-1] // how far is it from the newest known?
	}
	active, why := ParkStatus()
	var in *inner
	if refused != nil {
		in = inside()
		if err := in.resolve(rel); err != nil {
			t.Errorf("patterns of %s: %v", rel.minor, err)
		}
	} else {
		in = &inner{prints: prints{}}
		symbols(in.prints.add)
	}
	for _, err := range in.prints.differences(rel) {
		t.Error(err)
	}
	for _, f := range slices.Sorted(maps.Keys(in.prints)) {
		t.Logf("%-36s %#016x", f, in.prints[f])
	}
	defer func() {
		if t.Failed() || refused != nil || !active {
			t.Errorf("REFUSED: %s: %v; parking in place: %v, %s", runtime.Version(), refused, active, why)
		} else {
			t.Logf("ACCEPTED: %s", runtime.Version())
		}
	}()
	// Keep everything on the list linked in.
	b := []byte(os.Args[0])
	_ = fmt.Sprint(bytes.Count(b, b[:1]), bytes.IndexByte(b, b[2]), bytes.Index(b, b[1:3]), bytes.Compare(b, b[1:]), strings.Compare(string(b), "x"), crc32.ChecksumIEEE(b))
	t.Logf("%s (%s): asyncPreempt %#x, marker +%#x, vector area %d, g.preempt %#x, g.asyncSafePoint %#x, g.xRegs %#x, AVX-512 image from %d, slots %d and %d bytes",
		runtime.Version(), rel.minor, asyncPreemptPC, markerPC-asyncPreemptPC, fakeExtra, offPreempt, offASP, offXRegs, zmmOffset, slotClasses[0].size, slotClasses[1].size)
	accepted := map[string]bool{}
	symbols(func(name string, entry, end uintptr) {
		if !leafNames[name] {
			return
		}
		err := checkLeaf(code(entry, int(end-entry)))
		if wrapper := err != nil && isWrapper(entry, end, name); wrapper {
			return
		}
		t.Logf("%-40s %5d bytes  %v", name, end-entry, err)
		if err == nil {
			accepted[name] = true
		}
		if (err == nil) != slices.ContainsFunc(leaves[:nLeaves], func(l leafRange) bool { return l.lo == entry }) {
			t.Errorf("%s: parked in or not, against the check", name)
		}
	})
	for _, name := range expectedLeaves {
		if !accepted[name] {
			t.Errorf("%s is not a leaf of this release", name)
		}
	}
	if duff := accepted["runtime.duffcopy"] || accepted["runtime.duffzero"]; duff {
		t.Error("duffcopy or duffzero are parked in: their callers keep BP below SP")
	}
}

// A patch release in which one function differs, is new or is gone is unknown.
func TestOtherRuntimeCodeIsUnknown(t *testing.T) {
	rel, err := releaseOf(runtime.Version())
	if err != nil {
		t.Skip(err)
	}
	p := prints{}
	symbols(p.add)
	if err := p.check(rel); err != nil {
		t.Fatal(err)
	}
	for f := range p {
		other := maps.Clone(p)
		other[f]++
		if err := other.check(rel); err == nil || !strings.Contains(err.Error(), f) {
			t.Errorf("%s was changed: %v", f, err)
		}
		delete(other, f)
		if err := other.check(rel); err == nil || !strings.Contains(err.Error(), f) {
			t.Errorf("%s was taken away: %v", f, err)
		}
	}
	less := maps.Clone(knownCode[rel.minor])
	delete(less, "runtime.scanstack")
	defer func(m map[string][]uint64) { knownCode[rel.minor] = m }(knownCode[rel.minor])
	knownCode[rel.minor] = less
	if err := p.check(rel); err == nil || !strings.Contains(err.Error(), "runtime.scanstack is new") {
		t.Errorf("a new function: %v", err)
	}
	for v, seen := range map[string]bool{"go1.26.8": true, "go1.26.8-X:simd": true, "go1.26.0": true, "go1.26.99": false, "go1.26": false} {
		r, err := releaseOf(v)
		if err != nil || r.hasSeen(v) != seen {
			t.Errorf("%s was seen: %v (%v)", v, r.hasSeen(v), err)
		}
	}
}

// The fingerprint sees every byte of a function except for distances to what
// is outside of it.
func TestFingerprintSeesEveryByte(t *testing.T) {
	entry := reflect.ValueOf(testGrowth).Pointer()
	size := int(funcEnd(entry) - entry)
	mem, err := syscall.Mmap(-1, 0, size+64, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(mem)
	at := uintptr(unsafe.Pointer(&mem[0]))
	copy(mem, code(entry, size))
	c := mem[:size]
	want := fingerprint(at, at+uintptr(size))
	outside := make([]bool, size)
	for i := 0; i < size; {
		in, err := decode(c, i)
		if err != nil {
			t.Fatal(err)
		}
		if in.dispPC != 0 {
			for k := range 4 {
				outside[i+in.dispPC+k] = true
			}
		}
		if (in.flow == flowCall || in.flow == flowJump) && (in.target < 0 || in.target >= size) {
			for k := 1; k < in.len; k++ {
				outside[i+k] = true
			}
		}
		i += in.len
	}
	for i := range c {
		if c[i] == 0xcc {
			continue
		}
		c[i] ^= 1
		if got := fingerprint(at, at+uintptr(size)); got == want && !outside[i] {
			t.Errorf("a change of byte %d of %d is not seen", i, size)
		}
		c[i] ^= 1
	}
}

// isWrapper says whether the code only passes arguments on to a function of
// the same name with the other calling convention.
func isWrapper(entry, end uintptr, name string) bool {
	_, ok := wrapped(code(entry, int(end-entry)), entry, name)
	return ok
}

func TestRefusedAsLeaf(t *testing.T) {
	for _, c := range []struct {
		what string
		code []byte
	}{
		{"push", []byte{0x55, 0xc3}},
		{"pop r12", []byte{0x41, 0x5c, 0xc3}},
		{"call", []byte{0xe8, 0, 0, 0, 0, 0xc3}},
		{"indirect call", []byte{0xff, 0xd0, 0xc3}},
		{"sub rsp", []byte{0x48, 0x83, 0xec, 0x10, 0xc3}},
		{"lea rsp", []byte{0x48, 0x8d, 0x64, 0x24, 0xf8, 0xc3}},
		{"mov rbp, rsp", []byte{0x48, 0x89, 0xe5, 0xc3}},
		{"mov rbp, rax", []byte{0x48, 0x89, 0xc5, 0xc3}},
		{"load from rbp", []byte{0x48, 0x8b, 0x45, 0x08, 0xc3}},
		{"store below rsp", []byte{0x48, 0x89, 0x44, 0x24, 0xf8, 0xc3}},
		{"store to the return address", []byte{0x48, 0x89, 0x04, 0x24, 0xc3}},
		{"pushfq", []byte{0x9c, 0xc3}},
		{"leave", []byte{0xc9, 0xc3}},
		{"syscall", []byte{0x0f, 0x05, 0xc3}},
		{"truncated", []byte{0x48, 0x8b}},
	} {
		if checkLeaf(c.code) == nil {
			t.Errorf("%s: accepted", c.what)
		}
	}
	for _, c := range [][]byte{
		{0x48, 0x8b, 0x44, 0x24, 0x08, 0xc3},             // MOVQ 8(SP), AX
		{0xc5, 0xfc, 0x10, 0x20, 0xc5, 0xf8, 0x77, 0xc3}, // VMOVUPS (AX), Y4; VZEROUPPER
		{0xf3, 0xa4, 0xc3, 0xcc, 0xcc},                   // REP MOVSB
	} {
		if err := checkLeaf(c); err != nil {
			t.Errorf("% x: %v", c, err)
		}
	}
	if err := AllowLeaf(42); err == nil {
		t.Error("AllowLeaf(42) was accepted")
	}
	if err := AllowLeaf((func())(nil)); err == nil {
		t.Error("AllowLeaf(nil) was accepted")
	}
	if err := AllowLeaf("no/such.function"); err == nil {
		t.Error("AllowLeaf of a name that is not there was accepted")
	}
	if err := AllowLeaf("strings.ToUpper"); err == nil {
		t.Error("AllowLeaf of a Go function by name was accepted")
	}
	if err := AllowLeaf(strings.ToUpper); err == nil {
		t.Error("AllowLeaf of a Go function with a frame was accepted")
	}
}

// Assembly of one's own is parked in once it was allowed.
func TestAllowedLeafParks(t *testing.T) {
	if !inChild(t, 60*time.Second, inPlace) {
		return
	}
	mem := miniPark(t, 0)
	before := nLeaves
	for _, fn := range []any{bare.Copy, bare.Copy, "github.com/uffdpager/uffdpager/coro/bare.Copy"} {
		if err := AllowLeaf(fn); err != nil {
			t.Fatal(err)
		}
	}
	if nLeaves != before+1 {
		t.Fatalf("%d leaves added", nLeaves-before)
	}
	stop := gcLoop()
	defer stop()
	for i := range 100 {
		o := i * 2 * miniPage
		dst := make([]byte, miniPage)
		bare.Copy(unsafe.Pointer(&dst[0]), unsafe.Pointer(&mem[o+100]), miniPage)
		if !bytes.Equal(dst, want(o+100, miniPage)) {
			t.Fatalf("wrong bytes at %d", o)
		}
	}
	if s := ReadStats(); s.Parked < 200 || s.Blocked != 0 {
		t.Errorf("%+v", s)
	}
}

// While a leaf is parked, its heap operand may be alive in nothing but the
// saved registers. So at every fault in a leaf some register must point into
// that operand.
func TestLeavesKeepAPointerIntoTheirOperand(t *testing.T) {
	if !inChild(t, 100*time.Second, inPlace) {
		return
	}
	debug.SetGCPercent(-1)
	mem := mini(t)
	var opLo, opHi atomic.Uintptr
	var faults, bad atomic.Int64
	var where sync.Map
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			ps := NextParked(nil)
			if len(ps) == 0 {
				return
			}
			for _, p := range ps {
				s := (*parkSlot)(bare.Ptr(p.slot))
				if hi := opHi.Load(); s.leaf != 0 && hi != 0 {
					faults.Add(1)
					if !registerInto(s, opLo.Load(), hi) {
						bad.Add(1)
						f := runtime.FuncForPC(p.PC)
						where.Store(fmt.Sprintf("%s+%#x", f.Name(), p.PC-f.Entry()), true)
					}
				}
				p.Resume(miniLoad(p.Fault))
			}
		}
	}()
	var sizes []int
	for n := 1; n < 300; n += 1 + n/60 {
		sizes = append(sizes, n)
	}
	sizes = append(sizes, 511, 512, 700, 1024, 2048, 2049, 4096, 5000, 9000)
	for _, c := range []struct {
		name string
		run  func(heap, region []byte)
	}{
		{"copy out", func(h, r []byte) { copy(h, r) }},
		{"copy in", func(h, r []byte) { copy(r, h) }},
		{"equal", func(h, r []byte) { bytes.Equal(h, r) }},
		{"equal, swapped", func(h, r []byte) { bytes.Equal(r, h) }},
		{"compare", func(h, r []byte) { bytes.Compare(h, r) }},
		{"compare, swapped", func(h, r []byte) { bytes.Compare(r, h) }},
		{"index", func(h, r []byte) { bytes.Index(r, h[:min(60, len(h))]) }},
	} {
		faults.Store(0)
		bad.Store(0)
		for _, n := range sizes {
			for _, d := range []int{1, 7, 15, 16, 33, 63, 64, 128, 200, 257, 1000, 2049} {
				if d > n {
					continue
				}
				h := append(make([]byte, 0, n), want(16*miniPage-d, n)...)
				o := 16*miniPage - d
				miniReset(15, 6)
				opLo.Store(uintptr(unsafe.Pointer(&h[0])))
				opHi.Store(opLo.Load() + uintptr(n))
				c.run(h, mem[o:o+n])
				opHi.Store(0)
				runtime.KeepAlive(h)
			}
		}
		if bad.Load() != 0 || faults.Load() < 100 {
			t.Errorf("%s: %d of %d faults without a register in the heap operand", c.name, bad.Load(), faults.Load())
			where.Range(func(k, _ any) bool { t.Log(k); return true })
		}
		t.Logf("%s: %d faults", c.name, faults.Load())
	}
	WakeParked()
	<-stopped
}

// registerInto looks at the general registers of a parked goroutine, which lie
// on its stack behind waitForPage's frame: that has the slot's address at 48,
// and a PC in asyncPreempt above it at 72.
//
//go:norace
func registerInto(s *parkSlot, lo, hi uintptr) bool {
	g := s.fault.G
	for a := *word(g); a < *word(g + 8)-256; a += 8 {
		if *word(a) != uintptr(unsafe.Pointer(s)) || *word(a - 48 + 72) != markerPC {
			continue
		}
		for r := range uintptr(14) {
			if v := *word(a - 48 + 80 + fakeExtra + 8*r); v >= lo && v < hi {
				return true
			}
		}
		return false
	}
	return false
}
