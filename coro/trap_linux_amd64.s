#include "textflag.h"

// The SIGBUS handler, C calling convention: DI = signal, SI = *siginfo_t,
// DX = *ucontext_t; on the thread's signal stack; all signals blocked; g (TLS)
// is that of the code that faulted, or 0.
//
// What returns from here goes to the restorer and to sigreturn, which loads
// every register from the context: nothing needs to be saved, except the three
// arguments for the previous handler, to which we jump with the stack as we
// found it.
//
// onFault is called through a variable: in Go's register convention (AX, BX;
// R14 = g, X15 = 0) and without the linker adding the handler's stack use to
// that of whatever it may call.
TEXT ·sigbus(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	SUBQ	$40, SP		// 16 bytes of spill space for onFault's arguments, then ours
	MOVQ	DI, 16(SP)
	MOVQ	SI, 24(SP)
	MOVQ	DX, 32(SP)
	MOVQ	(TLS), R14
	PXOR	X15, X15
	MOVQ	SI, AX
	MOVQ	DX, BX
	MOVQ	·onFaultFn(SB), DX
	MOVQ	(DX), CX
	CALL	CX
	MOVQ	16(SP), DI
	MOVQ	24(SP), SI
	MOVQ	32(SP), DX
	ADDQ	$40, SP
	TESTQ	AX, AX
	JZ	forward
	RET
forward:
	MOVQ	·oldHandler(SB), AX
	CMPQ	AX, $1
	JLS	dfl
	JMP	AX
dfl:
	// Nobody was there. Restore the default and let the instruction fault
	// again: the process dies as it would have without us.
	MOVQ	$7, DI		// SIGBUS
	LEAQ	·dflAction(SB), SI
	XORL	DX, DX
	MOVQ	$8, R10
	MOVQ	$13, AX		// rt_sigaction
	SYSCALL
	RET

// The signal trampoline's end. Debuggers know it by these very instructions.
TEXT ·sigreturn(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVQ	$15, AX		// rt_sigreturn
	SYSCALL
	INT	$3

// func trapPCs() (entry, restorer uintptr)
TEXT ·trapPCs(SB),NOSPLIT,$0-16
	LEAQ	·sigbus(SB), AX
	MOVQ	AX, entry+0(FP)
	LEAQ	·sigreturn(SB), AX
	MOVQ	AX, restorer+8(FP)
	RET

// func CurrentG() uintptr
// From TLS, not from R14: signal context has no R14 of its own.
TEXT ·CurrentG(SB),NOSPLIT,$0-8
	MOVQ	(TLS), AX
	MOVQ	AX, ret+0(FP)
	RET
