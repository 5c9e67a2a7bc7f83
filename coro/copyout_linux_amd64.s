#include "textflag.h"

// CopyOut, and where its faults land. The three functions are one routine in
// three pieces, so that the handler can tell by the PC which of them faulted.
// They jump to each other with the same (empty) frame and so the same
// arguments.
//
// The invariant that makes a landing exact: at every instruction that can
// fault,
//	DI, SI = the next byte to write, to read	CX = bytes left, not 0
// and everything before that is done. Within a step all loads come before all
// stores and stores ascend. A step is at most 128 bytes; a fault in it finds
// up to 127 bytes that could still be copied, which the landing copies one by
// one.

// func CopyOut(dst, src unsafe.Pointer, n uintptr) (left, addr uintptr)
TEXT ·CopyOut(SB),NOSPLIT|NOFRAME,$0-40
	MOVQ	dst+0(FP), DI
	MOVQ	src+8(FP), SI
	MOVQ	n+16(FP), CX
	CMPQ	CX, $128
	JHI	long
tail:	// 0 to 128 bytes: one step by size class
	CMPQ	CX, $64
	JHI	upto128
	CMPQ	CX, $32
	JHI	upto64
	CMPQ	CX, $16
	JHI	upto32
	CMPQ	CX, $8
	JCC	upto16
	CMPQ	CX, $4
	JCC	upto7
	CMPQ	CX, $2
	JCC	upto3
	TESTQ	CX, CX
	JZ	done
	MOVB	(SI), AX
	MOVB	AX, (DI)
done:
	MOVQ	$0, left+24(FP)
	MOVQ	$0, addr+32(FP)
	RET
upto3:
	MOVW	(SI), AX
	MOVB	-1(SI)(CX*1), R8
	MOVW	AX, (DI)
	MOVB	R8, -1(DI)(CX*1)
	JMP	done
upto7:
	MOVL	(SI), AX
	MOVL	-4(SI)(CX*1), R8
	MOVL	AX, (DI)
	MOVL	R8, -4(DI)(CX*1)
	JMP	done
upto16:
	MOVQ	(SI), AX
	MOVQ	-8(SI)(CX*1), R8
	MOVQ	AX, (DI)
	MOVQ	R8, -8(DI)(CX*1)
	JMP	done
upto32:
	MOVOU	(SI), X0
	MOVOU	-16(SI)(CX*1), X1
	MOVOU	X0, (DI)
	MOVOU	X1, -16(DI)(CX*1)
	JMP	done
upto64:
	MOVOU	(SI), X0
	MOVOU	16(SI), X1
	MOVOU	-32(SI)(CX*1), X2
	MOVOU	-16(SI)(CX*1), X3
	MOVOU	X0, (DI)
	MOVOU	X1, 16(DI)
	MOVOU	X2, -32(DI)(CX*1)
	MOVOU	X3, -16(DI)(CX*1)
	JMP	done
upto128:
	MOVOU	(SI), X0
	MOVOU	16(SI), X1
	MOVOU	32(SI), X2
	MOVOU	48(SI), X3
	MOVOU	-64(SI)(CX*1), X4
	MOVOU	-48(SI)(CX*1), X5
	MOVOU	-32(SI)(CX*1), X6
	MOVOU	-16(SI)(CX*1), X7
	MOVOU	X0, (DI)
	MOVOU	X1, 16(DI)
	MOVOU	X2, 32(DI)
	MOVOU	X3, 48(DI)
	MOVOU	X4, -64(DI)(CX*1)
	MOVOU	X5, -48(DI)(CX*1)
	MOVOU	X6, -32(DI)(CX*1)
	MOVOU	X7, -16(DI)(CX*1)
	JMP	done

long:	// more than 128 bytes
	CMPB	·copyAVX(SB), $1
	JNE	sse
	VMOVDQU	(SI), Y0	// up to 32 bytes, so that the loop's stores are aligned
	VMOVDQU	Y0, (DI)
	MOVQ	DI, AX
	NEGQ	AX
	ANDQ	$31, AX
	ADDQ	AX, DI
	ADDQ	AX, SI
	SUBQ	AX, CX
	CMPQ	CX, $128
	JLS	avxdone
	PCALIGN	$32
avx:
	VMOVDQU	(SI), Y0
	VMOVDQU	32(SI), Y1
	VMOVDQU	64(SI), Y2
	VMOVDQU	96(SI), Y3
	VMOVDQA	Y0, (DI)
	VMOVDQA	Y1, 32(DI)
	VMOVDQA	Y2, 64(DI)
	VMOVDQA	Y3, 96(DI)
	ADDQ	$128, SI
	ADDQ	$128, DI
	SUBQ	$128, CX
	CMPQ	CX, $128
	JHI	avx
avxdone:
	VZEROUPPER
	JMP	tail

sse:
	MOVOU	(SI), X0
	MOVOU	16(SI), X1
	MOVOU	32(SI), X2
	MOVOU	48(SI), X3
	MOVOU	X0, (DI)
	MOVOU	X1, 16(DI)
	MOVOU	X2, 32(DI)
	MOVOU	X3, 48(DI)
	ADDQ	$64, SI
	ADDQ	$64, DI
	SUBQ	$64, CX
	CMPQ	CX, $128
	JHI	sse
	JMP	tail

// Where a fault in CopyOut lands: AX = the address that faulted, DI, SI, CX as
// above. It copies byte by byte what lies before that address. A byte of the
// other operand may fault here; that one is exact, and lands in copyOutDone.
TEXT ·copyOutSlow(SB),NOSPLIT|NOFRAME,$0-40
	CMPB	·copyAVX(SB), $1
	JNE	lower
	VZEROUPPER
lower:
	MOVQ	AX, R8
	SUBQ	SI, R8
	CMPQ	R8, CX
	JCS	bytes		// R8 bytes of the source are there
	MOVQ	AX, R8
	SUBQ	DI, R8
	CMPQ	R8, CX
	JCS	bytes		// R8 bytes of the destination are there
	XORL	R8, R8		// neither: not reached by a step, so copy nothing
bytes:
	TESTQ	R8, R8
	JZ	land
	MOVB	(SI), R9
	MOVB	R9, (DI)
	INCQ	SI
	INCQ	DI
	DECQ	CX
	DECQ	R8
	JMP	bytes
land:
	MOVQ	CX, left+24(FP)
	MOVQ	AX, addr+32(FP)
	RET

// Where a fault in copyOutSlow lands: nothing more can be copied.
TEXT ·copyOutDone(SB),NOSPLIT|NOFRAME,$0-40
	MOVQ	CX, left+24(FP)
	MOVQ	AX, addr+32(FP)
	RET

// func copyPCs() (fast, slow, done uintptr)
TEXT ·copyPCs(SB),NOSPLIT,$0-24
	LEAQ	·CopyOut(SB), AX
	MOVQ	AX, fast+0(FP)
	LEAQ	·copyOutSlow(SB), AX
	MOVQ	AX, slow+8(FP)
	LEAQ	·copyOutDone(SB), AX
	MOVQ	AX, done+16(FP)
	RET
