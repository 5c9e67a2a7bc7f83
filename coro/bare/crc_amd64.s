#include "textflag.h"

// A frameless NOSPLIT leaf, as all routines of this package; needs SSE4.2.

// func crc32cSSE(p unsafe.Pointer, n uintptr) uint32
TEXT ·crc32cSSE(SB),NOSPLIT,$0-20
	MOVQ	p+0(FP), SI
	MOVQ	n+8(FP), CX
	MOVL	$0xffffffff, AX
	SHRQ	$3, CX
	JZ	done
loop:
	CRC32Q	(SI), AX
	ADDQ	$8, SI
	DECQ	CX
	JNZ	loop
done:
	NOTL	AX
	MOVL	AX, ret+16(FP)
	RET
