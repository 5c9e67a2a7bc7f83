#include "textflag.h"

// func cloneServer(flags, stack, tls uintptr) (tid, errno uintptr)
// In the new thread the system call returns 0 on an empty stack; it never
// returns to Go.
TEXT ·cloneServer(SB),NOSPLIT,$0-40
	MOVQ	flags+0(FP), DI
	MOVQ	stack+8(FP), SI
	XORL	DX, DX
	XORL	R10, R10
	MOVQ	tls+16(FP), R8
	MOVQ	$56, AX		// clone
	SYSCALL
	TESTQ	AX, AX
	JZ	child
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	MOVQ	AX, tid+24(FP)
	MOVQ	$0, errno+32(FP)
	RET
failed:
	NEGQ	AX
	MOVQ	$0, tid+24(FP)
	MOVQ	AX, errno+32(FP)
	RET
child:
	XORL	BP, BP		// the end of the chain of frames
	JMP	·serverStart(SB)

DATA serverName<>+0(SB)/8, $"uffd-ser"
DATA serverName<>+8(SB)/8, $"ver\x00\x00\x00\x00\x00"
GLOBL serverName<>(SB), RODATA|NOPTR, $16

// The first code of a thread: no g, no frame above. It names the thread and
// calls the function whose address is on top of its stack, in Go's register
// convention.
TEXT ·serverStart(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVQ	$15, DI		// PR_SET_NAME
	LEAQ	serverName<>(SB), SI
	MOVQ	$157, AX	// prctl
	SYSCALL
	XORL	R14, R14	// g
	PXOR	X15, X15
	MOVQ	0(SP), CX
	CALL	CX
	INT	$3		// it does not return
