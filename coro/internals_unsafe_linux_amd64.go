//go:build !uffdpager_nointernals

package coro

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"unsafe"
)

// Everything that parking in place assumes of the Go runtime. A release is
// allowed (releases) when each line was read in its source and the torture ran
// on it; the lines marked "checked" are found in the running program's code at
// start-up, and parking stays off if one is not found as expected.
//
// "until" is the last release in which it was read and found to hold; none of
// it is promised for the next one.
//
//	what                              since  until  how it is known
//	runtime.gopark, goready           1.0    1.27   push-linknamed (go.dev/issue/67401), signatures stable
//	gopark's prologue: the stack      1.17   1.27   checked: CMPQ SP, 16(R14); JBE; PUSHQ BP; MOVQ SP, BP; SUBQ $16, SP
//	  check may be jumped over
//	waitReason 2 is "IO wait"         1.11   1.27   read; wrong only in tracebacks
//	traceBlockReason 2 is "network"   1.22   1.27   read; wrong only in execution traces
//	ABIInternal: AX BX CX DI SI,      1.17   1.27   documented in abi-internal.md
//	  R14 = g, X15 = 0
//	g.stack at 0 and 8                1.4    1.27   read; the self-test would not park
//	g.preempt                         1.3    1.27   checked: in gopark (releasem) and in preemptone, both with stackguard0
//	g.asyncSafePoint                  1.14   1.27   checked: cleared last in asyncPreempt2
//	g.xRegs.state                     1.26   1.27   checked: first compare in xRegSave; must not exist in 1.25
//	asyncPreempt's frame              1.14   1.27   checked: pushes, order of all 14 registers, one CALL asyncPreempt2;
//	  with X0 to X15 in it            1.14   1.25   checked: its size
//	the PC behind that CALL makes a   1.14   1.27   read (scanstack); the torture's negative control shows it
//	  frame and its parent conservative
//	asyncSafePoint forbids shrinking  1.14   1.27   read (isShrinkStackSafe); negative control
//	g.xRegs.state is scanned, 2112    1.27   1.27   read (xRegScan); the image is laid out so that all vector
//	  bytes, if asyncSafePoint                      registers lie in them; negative control
//	SIGURG's handler calls            1.14   1.27   checked: it is runtime.sigtramp or cgoSigtramp; whether it does,
//	  asyncPreempt at a safe point,                 park sees each time
//	  and else changes nothing
//	frameless assembly leaves         -      1.27   checked: each is disassembled (leaf_linux_amd64.go)
//	functions read (reliedOn)         -      -      checked: fingerprints of their machine code (known_linux_amd64.go)
//
// A patch release may change what no pattern shows. Therefore the machine code
// of the functions that were read is compared with what is recorded, and a
// release in which one differs is not known, however small the difference.
//
// A program that cannot have this (a policy against linkname, say) is built
// with the tag uffdpager_nointernals.

//go:linkname gopark runtime.gopark
func gopark(unlockf func(gp, lock unsafe.Pointer) bool, lock unsafe.Pointer, reason uint8, traceReason uint8, traceskip int)

//go:linkname goready runtime.goready
func goready(gp unsafe.Pointer, traceskip int)

const (
	waitReasonIOWait  = 2
	traceBlockGeneric = 0
	traceBlockNet     = 2 // as whoever else waits for I/O
)

// release is one Go minor version that is allowed.
type release struct {
	minor       string
	xRegs       bool   // has g.xRegs
	experiments string // that the torture was run with; others are unknown
	seen        string // patch releases that went into knownCode
}

var releases = []release{
	{"go1.25", false, " jsonv2 ", " 0 14 "},
	{"go1.26", true, " jsonv2 simd ", " 0 8 11 "},
	{"go1.27", true, " simd ", " 0 4 "},
}

// releaseOf judges a runtime.Version. Only "go1.N" and "go1.N.P" of an allowed
// minor, alone or followed by "-X:" (before 1.26 " X:") and allowed
// experiments, are known: development toolchains, release candidates and
// vendors' suffixes are not.
func releaseOf(version string) (release, error) {
	v := releasePart(version)
	exps := strings.TrimPrefix(version[len(v):], "-")
	exps = strings.TrimPrefix(strings.TrimPrefix(exps, " "), "X:")
	for _, r := range releases {
		patch, ok := strings.CutPrefix(v, r.minor)
		if !ok || patch != "" && (len(patch) < 2 || patch[0] != '.' || strings.Trim(patch[1:], "0123456789") != "") {
			continue
		}
		for _, e := range strings.FieldsFunc(exps, func(c rune) bool { return c == ',' }) {
			if !strings.Contains(r.experiments, " "+e+" ") {
				return r, fmt.Errorf("GOEXPERIMENT %s is not known to work", e)
			}
		}
		return r, nil
	}
	return release{}, fmt.Errorf("Go release %s is not known to work", version)
}

// releasePart is a version without what "-X:" or " X:" says of experiments.
func releasePart(version string) string {
	v, _, found := strings.Cut(version, "-X:")
	if !found {
		v, _, _ = strings.Cut(version, " X:")
	}
	return v
}

// symbols finds functions by walking over the program's text: the linker lets
// nobody refer to them. visit is called with each function's name, entry and
// end.
func symbols(visit func(name string, entry, end uintptr)) {
	const align = 16 // of functions, at least
	lo := reflect.ValueOf(runtime.GC).Pointer() &^ (align - 1)
	for runtime.FuncForPC(lo-align) != nil {
		lo -= align
	}
	var name string
	var entry uintptr
	for pc := lo; ; pc += align {
		f := runtime.FuncForPC(pc)
		if f != nil && f.Entry() == entry {
			continue
		}
		if name != "" {
			visit(name, entry, pc)
		}
		if f == nil {
			return
		}
		name, entry = f.Name(), f.Entry()
		if entry != pc {
			name = "" // inlining hides the name of its outermost function, or the alignment is smaller
		}
	}
}

// resolve finds and checks what the table above says is checked.
func resolve() error {
	rel, err := releaseOf(runtime.Version())
	if err != nil {
		return err
	}
	in := inside()
	if err := in.prints.check(rel); err != nil {
		return err
	}
	return in.resolve(rel)
}

// inner is what a walk over the program's functions finds of the runtime.
type inner struct {
	prints                        prints
	preempt, xRegSave, preemptone [2]uintptr
	preempt2                      [][2]uintptr // the function, and the wrapper through which assembly calls it
}

// inside looks for the functions of the runtime that matter, and makes the
// list of leaves on its way.
func inside() *inner {
	in := &inner{prints: prints{}}
	leaves = [maxLeaves]leafRange{}
	nLeaves = 0
	symbols(func(name string, entry, end uintptr) {
		in.prints.add(name, entry, end)
		switch name {
		case "runtime.asyncPreempt":
			in.preempt = [2]uintptr{entry, end}
		case "runtime.asyncPreempt2":
			in.preempt2 = append(in.preempt2, [2]uintptr{entry, end})
		case "runtime.xRegSave":
			in.xRegSave = [2]uintptr{entry, end}
		case "runtime.preemptone":
			in.preemptone = [2]uintptr{entry, end}
		default:
			if leafNames[name] {
				_ = addLeaf(entry, end)
			}
		}
	})
	return in
}

// resolve finds the numbers that parking needs, in code that must look as it
// does in the release.
func (in *inner) resolve(rel release) error {
	preempt, xRegSave, preemptone, preempt2 := in.preempt, in.xRegSave, in.preemptone, in.preempt2
	if preempt[0] == 0 || len(preempt2) == 0 || preemptone[0] == 0 {
		return errors.New("runtime.asyncPreempt, asyncPreempt2 or preemptone not found")
	}
	if (xRegSave[0] != 0) != rel.xRegs {
		return fmt.Errorf("runtime.xRegSave: found %v, expected %v", xRegSave[0] != 0, rel.xRegs)
	}
	asyncPreemptPC = preempt[0]
	if err := resolveAsyncPreempt(code(preempt[0], int(preempt[1]-preempt[0])), preempt2, rel); err != nil {
		return err
	}
	// asyncPreempt2 ends: MOVB $0, disp32(reg); ADDQ $x, SP; POPQ BP; RET
	offASP = 0
	for _, p := range preempt2 {
		if off := storeByte(code(p[0], int(p[1]-p[0])), 0, []byte{0x48, 0x83, 0xc4}); off != 0 {
			offASP = off
		}
	}
	if offASP == 0 {
		return errors.New("runtime.asyncPreempt2 does not end as expected")
	}
	if offXRegs = 0; rel.xRegs {
		// CMPQ $0, disp32(AX)
		c := code(xRegSave[0], 64)
		i := bytes.Index(c, []byte{0x48, 0x83, 0xb8})
		if i < 0 || i > 32 || c[i+7] != 0 {
			return fmt.Errorf("runtime.xRegSave does not begin as expected: %x", c)
		}
		offXRegs = uintptr(rel32(c[i+3:]))
	}
	if err := resolveGopark(); err != nil {
		return err
	}
	c := code(preemptone[0], int(preemptone[1]-preemptone[0]))
	// MOVB $1, disp32(reg); MOVQ $stackPreempt, 16(reg)
	if off := storeByte(c, 1, []byte{0x48, 0xc7}); off == 0 || off != offPreempt {
		return fmt.Errorf("offset of g.preempt: %#x in preemptone, %#x in gopark", off, offPreempt)
	}
	if offASP < 0x80 || offASP > 0x200 || offPreempt < 0x80 || offPreempt >= offASP || offXRegs > 0x400 || offXRegs%8 != 0 {
		return fmt.Errorf("offsets in g are out of order: preempt %#x, asyncSafePoint %#x, xRegs %#x", offPreempt, offASP, offXRegs)
	}
	return nil
}

// storeByte finds MOVB $v, disp32(reg), low registers, followed by the given
// bytes, and returns the displacement, or 0.
func storeByte(c []byte, v byte, then []byte) uintptr {
	for i := 0; i+7+len(then) <= len(c); i++ {
		if c[i] == 0xc6 && c[i+1]&0xf8 == 0x80 && c[i+1]&7 != 4 && c[i+6] == v && bytes.HasPrefix(c[i+7:], then) {
			return uintptr(rel32(c[i+2:]))
		}
	}
	return 0
}

// resolveAsyncPreempt checks that asyncPreempt makes the frame that saveFrame
// imitates and resumeFaulted takes apart.
func resolveAsyncPreempt(c []byte, preempt2 [][2]uintptr, rel release) error {
	bad := func(what string) error {
		return fmt.Errorf("runtime.asyncPreempt is not as expected: %s: %x", what, c[:min(len(c), 96)])
	}
	// PUSHQ BP; MOVQ SP, BP; PUSHFQ; SUBQ $size, SP
	if !bytes.HasPrefix(c, []byte{0x55, 0x48, 0x89, 0xe5, 0x9c, 0x48}) {
		return bad("prologue")
	}
	var size, k int
	switch {
	case c[6] == 0x83 && c[7] == 0xec:
		size, k = int(c[8]), 9
	case c[6] == 0x81 && c[7] == 0xec:
		size, k = int(rel32(c[8:])), 12
	default:
		return bad("frame size")
	}
	want := 112 // the registers
	if !rel.xRegs {
		want += 256 // and X0 to X15
	}
	if size != want {
		return bad("frame size")
	}
	fakeExtra = uintptr(size - 112)
	// MOVQ AX, 0(SP); MOVQ CX, 8(SP); … MOVQ R15, 104(SP)
	for i, r := range []byte{0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} {
		op := []byte{0x48 | r>>3<<2, 0x89, 0x04 | r&7<<3, 0x24}
		if i > 0 {
			op[2] |= 0x40
			op = append(op, byte(8*i))
		}
		if !bytes.HasPrefix(c[k:], op) {
			return bad("order of registers")
		}
		k += len(op)
	}
	markerPC = 0
	for ; k+5 <= len(c); k++ {
		next := asyncPreemptPC + uintptr(k) + 5
		for _, p := range preempt2 {
			if c[k] != 0xe8 || next+uintptr(rel32(c[k+1:])) != p[0] {
				continue
			}
			if markerPC != 0 {
				return bad("two calls of asyncPreempt2")
			}
			markerPC = next
		}
	}
	if markerPC == 0 {
		return bad("no call of asyncPreempt2")
	}
	return nil
}

func resolveGopark() error {
	pc := reflect.ValueOf(gopark).Pointer()
	c := code(pc, 256)
	k := 6
	if bytes.HasPrefix(c, []byte{0x49, 0x3b, 0x66, 0x10, 0x0f, 0x86}) {
		k = 10
	} else if !bytes.HasPrefix(c, []byte{0x49, 0x3b, 0x66, 0x10, 0x76}) {
		return fmt.Errorf("runtime.gopark has an unexpected prologue: %x", c[:24])
	}
	if !bytes.HasPrefix(c[k:], []byte{0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec}) || c[k+7] > 0x20 {
		return fmt.Errorf("runtime.gopark has an unexpected prologue: %x", c[:24])
	}
	goparkPC = pc + uintptr(k)
	// releasem: CMPB $0, disp32(R14); JEQ; MOVQ $stackPreempt, 16(R14)
	i := bytes.Index(c, []byte{0x74, 0x08, 0x49, 0xc7, 0x46, 0x10})
	if i < 8 || c[i-8] != 0x41 || c[i-7] != 0x80 || c[i-6] != 0xbe || c[i-1] != 0 {
		return errors.New("runtime.gopark does not test g.preempt as expected (is the runtime built with -N?)")
	}
	offPreempt = uintptr(rel32(c[i-5:]))
	return nil
}
