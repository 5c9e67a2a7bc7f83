package coro

import "fmt"

// A disassembler that knows as much as checkLeaf asks: how long an instruction
// is, which general registers it names, where it goes. What it does not know
// it refuses. See the Intel SDM, volume 2, chapters 2 and appendix A.

// instruction is what decode says about one instruction.
type instruction struct {
	len    int
	flow   flow
	target int    // of a direct jump, relative to the start of the code given to decode
	regs   uint16 // general registers that are operands, by number; 4 is SP, 5 BP
	stack  bool   // has a memory operand relative to SP, at disp
	bp     bool   // has a memory operand relative to BP
	tls    bool   // has a memory operand relative to FS or GS
	disp   int32
	dispPC int // where in the instruction its displacement to the PC begins; 0: it has none
}

type flow uint8

const (
	flowNext flow = iota
	flowJump      // to target, perhaps
	flowAway      // jump to an address in a register or in memory
	flowRet
	flowCall
	flowStack // PUSH, POP and the like
)

// set is a set of opcodes.
type set [4]uint64

func ops(ranges ...[2]byte) (s set) {
	for _, r := range ranges {
		for o := int(r[0]); o <= int(r[1]); o++ {
			s[o>>6] |= 1 << (o & 63)
		}
	}
	return s
}

func one(o byte) [2]byte { return [2]byte{o, o} }

func (s *set) has(o byte) bool { return s[o>>6]>>(o&63)&1 != 0 }

var (
	// one-byte opcodes beyond the arithmetic block 00-3f
	opModRM = ops(one(0x63), one(0x69), one(0x6b), [2]byte{0x80, 0x8b}, one(0x8d), [2]byte{0xc0, 0xc1},
		[2]byte{0xc6, 0xc7}, [2]byte{0xd0, 0xd3}, [2]byte{0xf6, 0xf7}, [2]byte{0xfe, 0xff})
	opGroup = ops([2]byte{0x80, 0x83}, [2]byte{0xc0, 0xc1}, [2]byte{0xc6, 0xc7}, [2]byte{0xd0, 0xd3}, [2]byte{0xf6, 0xf7}, [2]byte{0xfe, 0xff})
	opByte  = ops(one(0x80), one(0x84), one(0x86), one(0x88), one(0x8a), one(0xc0), one(0xc6), one(0xd0), one(0xd2), one(0xf6), one(0xfe))
	opPlain = ops(one(0x90), [2]byte{0x98, 0x99}, [2]byte{0xa4, 0xa7}, [2]byte{0xaa, 0xaf}, one(0xcc), one(0xf8), one(0xf9), [2]byte{0xfc, 0xfd})
	opImm8  = ops(one(0x6b), one(0x80), one(0x83), one(0xa8), [2]byte{0xb0, 0xb7}, [2]byte{0xc0, 0xc1}, one(0xc6))
	opImm32 = ops(one(0x69), one(0x81), one(0xa9), [2]byte{0xb8, 0xbf}, one(0xc7))

	// 0f xx
	op0fImm8 = ops([2]byte{0x70, 0x73}, one(0xa4), one(0xac), one(0xba), one(0xc2), [2]byte{0xc4, 0xc6})
	op0fNone = ops(one(0x0b), one(0x31), one(0x77), one(0xa2), [2]byte{0xc8, 0xcf})
	op0fBad  = ops([2]byte{0x00, 0x0a}, one(0x0c), [2]byte{0x0e, 0x0f}, [2]byte{0x20, 0x27}, one(0x30), [2]byte{0x32, 0x3f}, [2]byte{0xa0, 0xa1}, [2]byte{0xa6, 0xaa}, one(0xb2), [2]byte{0xb4, 0xb5}, one(0xb9), one(0xff))
	op0fReg  = ops([2]byte{0x2c, 0x2d}, [2]byte{0x40, 0x50}, one(0xa3), [2]byte{0xa4, 0xa5}, [2]byte{0xab, 0xad}, [2]byte{0xaf, 0xb1}, one(0xb3),
		[2]byte{0xb6, 0xb8}, [2]byte{0xbb, 0xbf}, [2]byte{0xc0, 0xc1}, one(0xc3), one(0xc5), one(0xd7))
	op0fRM = ops(one(0x2a), [2]byte{0x40, 0x4f}, one(0x6e), one(0x7e), [2]byte{0x90, 0x9f}, one(0xa3), [2]byte{0xa4, 0xa5}, [2]byte{0xab, 0xad},
		[2]byte{0xaf, 0xb1}, one(0xb3), [2]byte{0xb6, 0xb8}, [2]byte{0xba, 0xbf}, [2]byte{0xc0, 0xc1}, one(0xc4))
	op0f3aRM = ops([2]byte{0x14, 0x17}, one(0x20), one(0x22))
	// VEX and EVEX, where they differ: KMOV, BMI, broadcasts from registers
	opVexReg = ops([2]byte{0x2c, 0x2d}, one(0x50), one(0x93), one(0xc5), one(0xd7))
	opVexRM  = ops(one(0x2a), one(0x6e), one(0x7e), one(0x92), one(0xc4))
)

// decode reads the instruction at c[at:].
func decode(c []byte, at int) (in instruction, err error) {
	d := decoder{c: c, p: at, at: at}
	defer func() {
		if recover() != nil { // ran off the end
			err = d.bad(at)
		}
	}()
	if !d.run() {
		return in, d.bad(at)
	}
	d.in.len = d.p - at
	_ = c[d.p-1]
	return d.in, nil
}

type decoder struct {
	c            []byte
	p, at        int
	in           instruction
	rex          byte // 0x40 | W R X B, or 0
	p66, f2, f3  bool
	rexR, rexX   byte // 8 or 0
	rexB         byte
	mod, reg, rm byte
}

func (d *decoder) bad(at int) error {
	return fmt.Errorf("unknown instruction at +%#x: % x", at, d.c[at:min(at+12, len(d.c))])
}

func (d *decoder) next() byte { d.p++; return d.c[d.p-1] }

func (d *decoder) run() bool {
	for {
		switch d.c[d.p] {
		case 0x66:
			d.p66 = true
		case 0xf2:
			d.f2 = true
		case 0xf3:
			d.f3 = true
		case 0x64, 0x65:
			d.in.tls = true
		case 0xf0, 0x2e, 0x3e:
		default:
			goto opcode
		}
		d.p++
	}
opcode:
	o := d.next()
	if o&0xf0 == 0x40 {
		d.rex = o
		d.rexR, d.rexX, d.rexB = o&4<<1, o&2<<2, o&1<<3
		o = d.next()
	}
	switch o {
	case 0x0f:
		switch o = d.next(); o {
		case 0x38:
			o = d.next()
			return d.modrm(o >= 0xf0, o >= 0xf0, false)
		case 0x3a:
			o = d.next()
			return d.modrm(false, op0f3aRM.has(o), false) && d.imm(1)
		}
		return d.twoByte(o)
	case 0xc4, 0xc5, 0x62:
		return d.rex == 0 && d.vex(o)
	}
	return d.oneByte(o)
}

func (d *decoder) oneByte(o byte) bool {
	imm32 := 4
	if d.p66 {
		imm32 = 2
	}
	switch {
	case o < 0x40:
		switch o & 7 {
		case 0, 2:
			return d.modrm(true, true, true)
		case 1, 3:
			return d.modrm(true, true, false)
		case 4:
			return d.imm(1)
		case 5:
			return d.imm(imm32)
		}
		return false
	case o >= 0x50 && o < 0x60, o == 0x68, o == 0x6a, o == 0x8f, o == 0x9c, o == 0x9d, o == 0xc8, o == 0xc9:
		d.in.flow = flowStack
		return o != 0x8f && o != 0xc8 && d.imm(map[byte]int{0x68: 4, 0x6a: 1}[o])
	case o >= 0x70 && o < 0x80, o == 0xeb, o >= 0xe0 && o < 0xe4:
		rel := int(int8(d.next()))
		d.in.flow, d.in.target = flowJump, d.p+rel
		return true
	case o == 0xe8, o == 0xe9:
		rel := int(rel32(d.c[d.p:]))
		d.p += 4
		d.in.flow, d.in.target = flowJump, d.p+rel
		if o == 0xe8 {
			d.in.flow = flowCall
		}
		return true
	case o == 0xc3:
		d.in.flow = flowRet
		return true
	case o > 0x90 && o < 0x98: // XCHG AX, r
		d.in.regs |= 1 << (o&7 | d.rexB)
		return true
	case opPlain.has(o):
		return true
	case o >= 0xb0 && o < 0xb8: // MOVB
		if r := o&7 | d.rexB; d.rex != 0 || r < 4 {
			d.in.regs |= 1 << r
		}
		return d.imm(1)
	case o >= 0xb8 && o < 0xc0:
		d.in.regs |= 1 << (o&7 | d.rexB)
		if d.rex&8 != 0 {
			return d.imm(8)
		}
		return d.imm(imm32)
	case o == 0xa8, o == 0xa9:
		return d.imm(map[byte]int{0xa8: 1, 0xa9: imm32}[o])
	case !opModRM.has(o):
		return false
	}
	if !d.modrm(!opGroup.has(o), true, opByte.has(o)) {
		return false
	}
	switch {
	case o == 0xff && d.reg&7 >= 2:
		switch d.reg & 7 {
		case 2, 3:
			d.in.flow = flowCall
		case 4:
			d.in.flow = flowAway
		case 6:
			d.in.flow = flowStack
		default:
			return false
		}
	case o == 0xf6 && d.reg&7 < 2:
		return d.imm(1)
	case o == 0xf7 && d.reg&7 < 2:
		return d.imm(imm32)
	case opImm8.has(o):
		return d.imm(1)
	case opImm32.has(o):
		return d.imm(imm32)
	}
	return true
}

func (d *decoder) twoByte(o byte) bool {
	switch {
	case o >= 0x80 && o < 0x90:
		rel := int(rel32(d.c[d.p:]))
		d.p += 4
		d.in.flow, d.in.target = flowJump, d.p+rel
		return true
	case op0fBad.has(o):
		return false
	case op0fNone.has(o):
		if o >= 0xc8 { // BSWAP
			d.in.regs |= 1 << (o&7 | d.rexB)
		}
		return true
	}
	isByte := o >= 0x90 && o < 0xa0 || o == 0xb0 || o == 0xc0
	rm := op0fRM.has(o) && !(o == 0x7e && d.f3) // F3 0F 7E is MOVQ between vectors
	if !d.modrm(op0fReg.has(o), rm, isByte) {
		return false
	}
	if op0fImm8.has(o) {
		return d.imm(1)
	}
	return true
}

// vex reads the rest of an instruction with a VEX (C5, C4) or EVEX (62)
// prefix. The register extensions are inverted in it.
func (d *decoder) vex(prefix byte) bool {
	mapN, v := byte(1), byte(0)
	b := d.next()
	d.rexR = ^b >> 7 << 3
	switch prefix {
	case 0xc5:
		v = ^b >> 3 & 15
	case 0xc4:
		d.rexX, d.rexB, mapN = ^b>>6&1<<3, ^b>>5&1<<3, b&31
		v = ^d.next() >> 3 & 15
	case 0x62:
		if b&0x08 != 0 {
			return false
		}
		d.rexX, d.rexB, mapN = ^b>>6&1<<3, ^b>>5&1<<3, b&7
		v = ^d.next() >> 3 & 15
		d.p++
	}
	o := d.next()
	switch mapN {
	case 1:
		if o == 0x77 && prefix != 0x62 { // VZEROUPPER
			return true
		}
		if !d.modrm(opVexReg.has(o), opVexRM.has(o), false) {
			return false
		}
		if op0fImm8.has(o) {
			return d.imm(1)
		}
		return true
	case 2:
		bmi := prefix != 0x62 && o >= 0xf0
		if bmi {
			d.in.regs |= 1 << v
		}
		return d.modrm(bmi, bmi || o >= 0x7a && o <= 0x7c, false)
	case 3:
		return d.modrm(o == 0xf0, o == 0xf0 || op0f3aRM.has(o), false) && d.imm(1)
	}
	return false
}

// modrm reads the ModRM byte and what belongs to it. reg and rm say whether
// these operands are general registers, isByte whether they are 8 bits wide,
// so that without REX the numbers 4 to 7 mean AH to BH.
func (d *decoder) modrm(reg, rm, isByte bool) bool {
	b := d.next()
	d.mod, d.reg, d.rm = b>>6, b>>3&7|d.rexR, b&7|d.rexB
	operand := func(r byte) {
		if !isByte || d.rex != 0 || r < 4 {
			d.in.regs |= 1 << r
		}
	}
	if reg {
		operand(d.reg)
	}
	if d.mod == 3 {
		if rm {
			operand(d.rm)
		}
		return true
	}
	base, none := d.rm, false
	if b&7 == 4 {
		sib := d.next()
		base = sib&7 | d.rexB
		if index := sib>>3&7 | d.rexX; index == 5 {
			d.in.bp = true
		}
		none = sib&7 == 5 && d.mod == 0
	} else {
		if none = b&7 == 5 && d.mod == 0; none { // relative to the PC
			d.in.dispPC = d.p - d.at
		}
	}
	switch {
	case none, d.mod == 2:
		d.in.disp = rel32(d.c[d.p:])
		d.p += 4
	case d.mod == 1:
		d.in.disp = int32(int8(d.next()))
	}
	if !none {
		d.in.stack = base == 4
		d.in.bp = d.in.bp || base == 5
	}
	return true
}

func (d *decoder) imm(n int) bool { d.p += n; return true }

// checkLeaf says what keeps the function with this code from being a frameless
// leaf, or nil. Every instruction up to the end is looked at, reachable or
// not.
func checkLeaf(c []byte) error {
	for at := 0; at < len(c); {
		in, err := decode(c, at)
		if err != nil {
			return err
		}
		what := ""
		switch {
		case in.flow == flowCall:
			what = "calls"
		case in.flow == flowStack:
			what = "pushes or pops"
		case in.regs&(1<<4) != 0:
			what = "uses SP"
		case in.regs&(1<<5) != 0 || in.bp:
			what = "uses BP"
		case in.tls:
			what = "uses thread-local storage"
		case in.stack && in.disp < 8:
			what = "uses the stack below its arguments"
		}
		if what != "" {
			return fmt.Errorf("not a frameless leaf: %s at +%#x: % x", what, at, c[at:at+in.len])
		}
		at += in.len
	}
	return nil
}
