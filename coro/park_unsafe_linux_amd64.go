//go:build !uffdpager_nointernals

package coro

import (
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// Park in place: the goroutine that faulted is made to look as if the runtime
// had preempted it, asynchronously, at the very instruction, except that it
// then parks instead of yielding. docs/park-in-place.md explains each step to
// somebody who wants to find the hole; internals_unsafe_linux_amd64.go lists all that
// is assumed of the runtime.
//
// The frame that park builds, addresses descending. base is where the
// goroutine's stack pointer was, less the resume PC that the runtime pushed;
// for a frameless assembly leaf it is where its return address lies, so that
// the unwinder sees the leaf's caller and the leaf is hidden.
//
//	base        resume PC (leaf: the leaf's return address)
//	base-8      RBP                        ◀─ frame pointer
//	base-16     RFLAGS                        ┐
//	base-24 …   R15 … R8 RDI RSI              │ what runtime.asyncPreempt
//	base-104 …  RBX RDX RCX RAX               │ pushes on its own
//	…           its vector save area, ≤ 1.25  ┘
//	-8          PC after its CALL asyncPreempt2
//	            frame of waitForPage, which calls gopark
//
// Stack scanning knows asyncPreempt by its PC and treats this frame and its
// parent conservatively: everything in them that looks like a pointer keeps
// its object alive and in place.

// parkSlot holds what does not fit on a goroutine's stack. It lies outside the
// Go heap and belongs to the faulting thread, then to the parked goroutine's
// owner (NextParked), then to the goroutine, which frees it as its last act
// before it is itself again. Offsets are known to park_linux_amd64.s.
type parkSlot struct {
	next  uintptr // free list, pending list
	pc    uintptr // where the goroutine goes on
	leaf  uint8   // 1: a frameless leaf, hidden from the unwinder
	class uint8   // index in slotClasses
	queue uint8   // index in queues
	_     uint8
	seq   uint32 // counts uses, so that a second Resume is noticed
	fault Fault  // Errno: not 0 if the access failed
	// The XSAVE image follows, 64-byte aligned.
}

const (
	slotHeader = 64

	xLegacy   = 512 // end of the FXSAVE part, start of the header
	xAVXEnd   = 832 // end of the AVX part: x87, SSE, header, AVX
	xSW       = 464 // software reserved bytes: magic, sizes
	xMagic1   = 0x46505853
	xMask     = 0xe7 // x87, SSE, AVX, opmask, ZMM_Hi256, Hi16_ZMM
	xMask512  = 0xe0
	xKnown    = xMask | 0x218 // and what belongs to the thread, or to nobody: protection keys, MPX
	goXRegs   = 2112          // sizeof(runtime.xRegState), which the collector scans since Go 1.27
	xmmOffset = 160           // XMM0-15 in the FXSAVE part
)

var _ = [1]struct{}{}[unsafe.Sizeof(parkSlot{})-slotHeader]

// Written once, before parking is switched on; read in signal context and by
// the assembly.
var (
	parkOn     uint32  // park, rather than block
	urgHandler uintptr // Go's handler of SIGURG, its preemption signal

	asyncPreemptPC uintptr // runtime.asyncPreempt
	markerPC       uintptr // in it, after CALL asyncPreempt2
	fakeExtra      uintptr // size of its vector save area
	goparkPC       uintptr // runtime.gopark, behind its stack check
	offASP         uintptr // g.asyncSafePoint
	offPreempt     uintptr // g.preempt
	offXRegs       uintptr // g.xRegs.state; 0: Go < 1.26 has none
	safePC         uintptr // an instruction of ours at which the runtime stops goroutines
	lastGoPC       uintptr // the last one seen: how the self-test finds safePC

	xrstorMask uint64  = xMask
	zmmOffset  uintptr // of ZMM_Hi256 in the XSAVE image; 0: no AVX-512, or in a form we do not know
	stackNeed  uintptr // bytes that the frame and gopark need below the stack pointer
	waitPC     uintptr // waitForPage
	raiseLo    uintptr // raiseFault
	raiseHi    uintptr
)

// parkedFn is the assembly's handle on parked.
var parkedFn = parked

// Defined in park_linux_amd64.s.
func parkPCs() (wait, raise uintptr)
func callC(fn, sig, info, ctx uintptr)
func waitForPage() // entered by sigreturn only

//go:nosplit
//go:norace
//go:nocheckptr
func word(a uintptr) *uintptr { return (*uintptr)(bare.Ptr(a)) }

// park makes the goroutine of f stand still, once the handler returns, until
// its Parked is resumed. If it cannot, it changes nothing and says why.
//
//go:nosplit
//go:norace
//go:nocheckptr
func park(f *Fault, a *arena, ctx *sigContext) Reason {
	if a.mode == Block {
		return ModeBlock
	}
	if parkOn == 0 && a.mode != selfTestMode {
		return Inactive
	}
	g := f.G
	if g == 0 {
		return NoGoroutine
	}
	qi := uint8(mainQueue)
	if a.mode == selfTestMode {
		qi = selfQueue
	}
	if g == uintptr(bare.Load64(&queues[qi&1].consumer)) {
		return PagerItself // it would wait for itself
	}
	sp, pc := ctx.rsp, ctx.rip
	lo, hi := *word(g), *word(g + 8)
	if sp <= lo || sp >= hi {
		return SystemStack
	}
	if sp-lo < stackNeed {
		return LowStack
	}
	// A goroutine's frame pointer is on its stack, at or above the stack
	// pointer; a frame-pointer unwinder will follow ours to it.
	if ctx.rbp < sp-8 || ctx.rbp >= hi {
		return OddFrame
	}
	x := ctx.fpstate
	if x == 0 || *(*uint32)(bare.Ptr(x + xSW)) != xMagic1 || *(*uint32)(bare.Ptr(x + xSW + 16)) < xAVXEnd {
		return OddState
	}
	if *word(x + xLegacy)&^xKnown != 0 { // AMX tiles, or what comes after
		return OddState
	}
	class := uint8(0)
	if *word(x + xLegacy)&xMask512 != 0 { // AVX-512 registers in use on this thread
		if class = 1; zmmOffset == 0 || uintptr(*(*uint32)(bare.Ptr(x + xSW + 16))) < zmmOffset+1536 {
			return OddState
		}
	}
	s := newSlot(class)
	if s == nil {
		return NoSlot
	}
	leaf := isLeaf(pc)
	if (!leaf || negative&assumeLeaves == 0) && !stoppable(g, leaf, ctx) {
		freeSlot(s)
		if leaf {
			return Locked
		}
		return Refused
	}
	base := sp
	s.pc, s.leaf = pc, 1
	if !leaf {
		base = ctx.rsp     // the runtime has pushed the resume PC,
		s.pc = *word(base) // which is earlier in a restartable sequence
		s.leaf = 0
		if qi == selfQueue {
			lastGoPC = s.pc
		}
	}
	s.queue, s.fault = qi, *f
	saveVectors(s, x)
	saveFrame(base, ctx)
	if negative&hideRegisters != 0 {
		hideFrame(s, base)
	}
	if negative&clearAsyncSafePoint == 0 {
		*(*uint8)(bare.Ptr(g + offASP)) = 1
	}
	if offXRegs != 0 && negative&noXRegs == 0 {
		v := slotImage(s)
		if class != 0 {
			v += zmmOffset
		}
		*word(g + offXRegs) = v
	}
	ctx.rsp = base - 136 - fakeExtra
	ctx.rbp = base - 8
	ctx.rip = waitPC
	ctx.rbx = uintptr(unsafe.Pointer(s))
	ctx.r14 = g
	if negative&keepDirection == 0 {
		ctx.eflags &^= directionFlag
	}
	bare.Add64(&counters.parked, 1)
	return parkedOK
}

// stoppable asks the runtime whether it would stop this goroutine at this
// instruction, by letting its preemption handler look at the context: if so,
// the context now calls asyncPreempt, otherwise it is unchanged. For a leaf,
// which the runtime would refuse only because it is assembly, the question is
// put with the PC of an instruction known to be safe; what remains is whether
// the thread and the goroutine are in a state to be stopped.
//
//go:nosplit
//go:norace
//go:nocheckptr
func stoppable(g uintptr, leaf bool, ctx *sigContext) bool {
	sp, pc := ctx.rsp, ctx.rip
	if leaf {
		if safePC == 0 {
			return false
		}
		ctx.rip = safePC
	}
	preempt := (*uint8)(bare.Ptr(g + offPreempt))
	was := *preempt
	*preempt = 1 // as the one who sends the signal would have
	callC(urgHandler, sigurg, uintptr(unsafe.Pointer(&urgInfo)), uintptr(unsafe.Pointer(ctx)))
	ok := ctx.rip == asyncPreemptPC
	if was == 0 {
		*preempt = 0
	}
	if leaf || !ok {
		ctx.rsp = sp // forget the resume PC, if one was pushed
	}
	if !ok {
		ctx.rip = pc
	}
	return ok
}

const (
	sigurg  = 23
	siTkill = -6
)

// urgInfo is what a thread-directed SIGURG brings along; nobody writes to it.
var urgInfo = struct {
	sigInfo
	_ [104]byte
}{sigInfo: sigInfo{signo: sigurg, code: siTkill}}

// saveVectors copies the vector state from the signal frame at x.
//
//go:nosplit
//go:norace
//go:nocheckptr
func saveVectors(s *parkSlot, x uintptr) {
	im := slotImage(s)
	if s.class == 0 {
		bare.Copy(bare.Ptr(im), bare.Ptr(x), xAVXEnd)
		return
	}
	// ZMM_Hi256 and Hi16_ZMM are the last 1536 bytes. The collector is given
	// the image from ZMM_Hi256 on, so the lower halves of the registers, which
	// lie before it, are repeated behind it.
	end := zmmOffset + 1536
	bare.Copy(bare.Ptr(im), bare.Ptr(x), end)
	bare.Copy(bare.Ptr(im+end), bare.Ptr(x+xmmOffset), 256)
	bare.Copy(bare.Ptr(im+end+256), bare.Ptr(x+xLegacy+64), 256)
}

//go:nosplit
//go:norace
//go:nocheckptr
func saveFrame(base uintptr, ctx *sigContext) {
	*word(base - 8) = ctx.rbp
	*word(base - 16) = ctx.eflags
	*word(base - 24) = ctx.r15
	*word(base - 32) = ctx.r14
	*word(base - 40) = ctx.r13
	*word(base - 48) = ctx.r12
	*word(base - 56) = ctx.r11
	*word(base - 64) = ctx.r10
	*word(base - 72) = ctx.r9
	*word(base - 80) = ctx.r8
	*word(base - 88) = ctx.rdi
	*word(base - 96) = ctx.rsi
	*word(base - 104) = ctx.rbx
	*word(base - 112) = ctx.rdx
	*word(base - 120) = ctx.rcx
	*word(base - 128) = ctx.rax
	for i := uintptr(0); i < fakeExtra; i += 8 {
		*word(base - 136 - i) = 0
	}
	*word(base - 136 - fakeExtra) = markerPC
}

// isRaise recognises the SIGBUS that raiseFault sends to its own thread.
//
//go:nosplit
//go:norace
//go:nocheckptr
func isRaise(info *sigInfo, ctx *sigContext) bool {
	return info.code == siTkill && ctx.rip >= raiseLo && ctx.rip < raiseHi
}

// deliverParked turns the signal of raiseFault into the one that the access
// would have met without us: the context becomes that of the faulting
// instruction, the information that of its fault. The goroutine, which was
// parked, is running again and is not at a safe point any more.
//
//go:nosplit
//go:norace
//go:nocheckptr
func deliverParked(info *sigInfo, ctx *sigContext) {
	s := (*parkSlot)(bare.Ptr(ctx.rbx))
	r := ctx.rsp + 80 + fakeExtra // where RAX was saved; see saveFrame
	ctx.rax, ctx.rcx, ctx.rdx, ctx.rbx = *word(r), *word(r + 8), *word(r + 16), *word(r + 24)
	ctx.rsi, ctx.rdi, ctx.r8, ctx.r9 = *word(r + 32), *word(r + 40), *word(r + 48), *word(r + 56)
	ctx.r10, ctx.r11, ctx.r12, ctx.r13 = *word(r + 64), *word(r + 72), *word(r + 80), *word(r + 88)
	ctx.r14, ctx.r15, ctx.eflags, ctx.rbp = *word(r + 96), *word(r + 104), *word(r + 112), *word(r + 120)
	ctx.rsp = r + 128
	if s.leaf == 0 {
		ctx.rsp += 8 // the resume PC
	}
	ctx.rip = s.fault.PC
	ctx.cr2, ctx.err = s.fault.Addr, uintptr(s.fault.Access)
	im, x := slotImage(s), ctx.fpstate
	end := uintptr(xAVXEnd)
	if s.class != 0 {
		end = zmmOffset + 1536
	}
	// The bytes from xSW to xLegacy are the kernel's note to itself. Of the
	// header only the components that we keep are ours: the protection keys,
	// for one, are the thread's.
	bv := *word(x + xLegacy)
	bare.Copy(bare.Ptr(x), bare.Ptr(im), xSW)
	bare.Copy(bare.Ptr(x+xLegacy), bare.Ptr(im+xLegacy), end-xLegacy)
	*word(x + xLegacy) = *word(im + xLegacy)&xMask | bv&^xMask
	info.code, info.addr = busAdrerr, s.fault.Addr
	deliver(&s.fault, ctx)
	freeSlot(s)
}
