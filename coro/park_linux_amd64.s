//go:build !uffdpager_nointernals

#include "textflag.h"
#include "funcdata.h"

// parkSlot
#define S_NEXT	0
#define S_PC	8
#define S_LEAF	16
#define S_CLASS	17
#define S_ERRNO	48
#define S_IMAGE	64

// slotClass is 24 bytes with free first.

// waitForPage is where the handler sends a goroutine that is to wait. It is
// entered by sigreturn, as if runtime.asyncPreempt had called it:
//	0(SP) = a PC in asyncPreempt	BP = its frame pointer
//	BX = *parkSlot	R14 = g	direction flag clear
// It parks the goroutine. Afterwards the goroutine runs, on whatever thread,
// at no safe point, and nothing here may look at the stack limit: the frame
// above holds registers that nobody could relocate.
//
// gopark is entered behind its stack check for the same reason (stackNeed has
// made sure that there is room). Its arguments, in Go's register convention:
// unlockf AX, lock BX, reason CL = waitReasonIOWait, traceReason DI = traceBlockNet,
// skip SI.
TEXT ·waitForPage(SB),NOSPLIT,$64-0
	NO_LOCAL_POINTERS
	MOVQ	BX, 48(SP)
	PXOR	X15, X15
	MOVQ	·parkedFn(SB), AX
	MOVL	$2, CX
	MOVL	$2, DI
	XORL	SI, SI
	MOVQ	·goparkPC(SB), DX
	CALL	DX
	MOVQ	48(SP), BX
	MOVQ	·offASP(SB), CX
	MOVB	$0, (R14)(CX*1)
	MOVQ	·offXRegs(SB), CX
	TESTQ	CX, CX
	JZ	cleared
	MOVQ	$0, (R14)(CX*1)
cleared:
	CMPQ	S_ERRNO(BX), $0
	JNE	failed
	JMP	·resumeFaulted(SB)
failed:
	JMP	·raiseFault(SB)

// raiseFault sends SIGBUS to its own thread. It arrives before the system call
// returns, with the PC here and BX = *parkSlot, and the handler replaces the
// whole context by that of the access that failed: this never goes on. If the
// signal does not come – a filter of system calls forbids it, or somebody has
// blocked it on this thread of Go's – the process dies here, as it would have
// died of the fault.
//
// A profile's signal may come between the system calls. What it would take for
// the return address is not one: TOPFRAME ends its walk.
TEXT ·raiseFault(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVL	$39, AX		// getpid
	SYSCALL
	MOVQ	AX, R12
	MOVL	$186, AX	// gettid
	SYSCALL
	MOVQ	AX, SI
	MOVQ	R12, DI
	MOVL	$7, DX		// SIGBUS
	MOVL	$234, AX	// tgkill
	SYSCALL
	INT	$3
	UNDEF

// resumeFaulted makes everything as it was at the faulting instruction and
// goes there. BX = *parkSlot, SP as in waitForPage.
//
// The slot is freed in the middle: behind the last use of it, while there are
// still registers to do it with. XRSTOR takes x87, SSE, AVX and AVX-512 from
// the kernel's image, which is in the standard format; what the header says
// was in its initial state is initialised.
//
// Below the stack pointer nothing is lost at the end: signals use their own
// stack, and the runtime does not stop goroutines in assembly. The stack
// pointer is nothing that the unwinder could follow: TOPFRAME ends its walk.
TEXT ·resumeFaulted(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVQ	·xrstorMask(SB), AX
	XORL	DX, DX
	LEAQ	S_IMAGE(BX), CX
	XRSTOR64	(CX)
	MOVQ	S_PC(BX), R12
	MOVBLZX	S_LEAF(BX), R13
	MOVBLZX	S_CLASS(BX), DI
	LEAQ	(DI)(DI*2), DI		// a slotClass is 24 bytes
	SHLQ	$3, DI
	LEAQ	·slotClasses(SB), SI
	ADDQ	SI, DI
	MOVQ	BX, SI
	SHRQ	$6, SI
	MOVQ	$0x1ffffffffff, R9	// addrMask
free:
	MOVQ	(DI), AX
	MOVQ	AX, R8
	ANDQ	R9, R8
	SHLQ	$6, R8
	MOVQ	R8, S_NEXT(BX)
	MOVQ	AX, DX
	SHRQ	$41, DX
	INCQ	DX
	SHLQ	$41, DX
	ORQ	SI, DX
	LOCK
	CMPXCHGQ	DX, (DI)
	JNE	free
	LEAQ	80(SP), SP		// frame and saved BP of waitForPage, PC in asyncPreempt
	ADDQ	·fakeExtra(SB), SP
	MOVQ	R12, -8(SP)
	TESTQ	R13, R13
	MOVQ	0(SP), AX
	MOVQ	8(SP), CX
	MOVQ	16(SP), DX
	MOVQ	24(SP), BX
	MOVQ	32(SP), SI
	MOVQ	40(SP), DI
	MOVQ	48(SP), R8
	MOVQ	56(SP), R9
	MOVQ	64(SP), R10
	MOVQ	72(SP), R11
	MOVQ	80(SP), R12
	MOVQ	88(SP), R13
	MOVQ	96(SP), R14
	MOVQ	104(SP), R15
	LEAQ	112(SP), SP
	JNZ	leaf
	BYTE	$0x9d			// POPFQ, and below POPQ BP: as bytes, since the
	BYTE	$0x5d			// assembler would miss the pushes to go with them
	RET				// to the resume PC that the runtime pushed
leaf:
	BYTE	$0x9d
	BYTE	$0x5d
	JMP	-136(SP)		// the stack pointer is the leaf's own again

// func callC(fn, sig, info, ctx uintptr)
// Calls a signal handler in the C calling convention, on the stack we are on.
TEXT ·callC(SB),NOSPLIT,$64-32
	MOVQ	fn+0(FP), AX
	MOVQ	sig+8(FP), DI
	MOVQ	info+16(FP), SI
	MOVQ	ctx+24(FP), DX
	MOVQ	SP, BX		// callee-saved in C
	ANDQ	$~15, SP
	CALL	AX
	MOVQ	BX, SP
	RET

// func parkPCs() (wait, raise uintptr)
TEXT ·parkPCs(SB),NOSPLIT,$0-16
	LEAQ	·waitForPage(SB), AX
	MOVQ	AX, wait+0(FP)
	LEAQ	·raiseFault(SB), AX
	MOVQ	AX, raise+8(FP)
	RET

// func cpuid(leaf, sub uint32) (a, b, c, d uint32)
TEXT ·cpuid(SB),NOSPLIT,$0-24
	MOVL	leaf+0(FP), AX
	MOVL	sub+4(FP), CX
	CPUID
	MOVL	AX, a+8(FP)
	MOVL	BX, b+12(FP)
	MOVL	CX, c+16(FP)
	MOVL	DX, d+20(FP)
	RET
