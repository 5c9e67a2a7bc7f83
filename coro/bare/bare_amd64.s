#include "textflag.h"

// Every routine here is a frameless NOSPLIT leaf that uses neither g nor the
// stack beyond its arguments, so that it may run on a signal stack and on a
// thread whose g is nil. Plain loads are acquire on amd64; stores go through
// XCHG, which is a full barrier.

// func Load32(p *uint32) uint32
TEXT ·Load32(SB),NOSPLIT,$0-12
	MOVQ	p+0(FP), AX
	MOVL	(AX), AX
	MOVL	AX, ret+8(FP)
	RET

// func Load64(p *uint64) uint64
TEXT ·Load64(SB),NOSPLIT,$0-16
	MOVQ	p+0(FP), AX
	MOVQ	(AX), AX
	MOVQ	AX, ret+8(FP)
	RET

// func Store32(p *uint32, v uint32)
TEXT ·Store32(SB),NOSPLIT,$0-12
	MOVQ	p+0(FP), AX
	MOVL	v+8(FP), CX
	XCHGL	CX, (AX)
	RET

// func Store64(p *uint64, v uint64)
TEXT ·Store64(SB),NOSPLIT,$0-16
	MOVQ	p+0(FP), AX
	MOVQ	v+8(FP), CX
	XCHGQ	CX, (AX)
	RET

// func Cas32(p *uint32, old, new uint32) bool
TEXT ·Cas32(SB),NOSPLIT,$0-17
	MOVQ	p+0(FP), BX
	MOVL	old+8(FP), AX
	MOVL	new+12(FP), CX
	LOCK
	CMPXCHGL	CX, (BX)
	SETEQ	ret+16(FP)
	RET

// func Cas64(p *uint64, old, new uint64) bool
TEXT ·Cas64(SB),NOSPLIT,$0-25
	MOVQ	p+0(FP), BX
	MOVQ	old+8(FP), AX
	MOVQ	new+16(FP), CX
	LOCK
	CMPXCHGQ	CX, (BX)
	SETEQ	ret+24(FP)
	RET

// func Add32(p *uint32, delta uint32) uint32
TEXT ·Add32(SB),NOSPLIT,$0-20
	MOVQ	p+0(FP), BX
	MOVL	delta+8(FP), AX
	MOVL	AX, CX
	LOCK
	XADDL	AX, (BX)
	ADDL	CX, AX
	MOVL	AX, ret+16(FP)
	RET

// func Add64(p *uint64, delta uint64) uint64
TEXT ·Add64(SB),NOSPLIT,$0-24
	MOVQ	p+0(FP), BX
	MOVQ	delta+8(FP), AX
	MOVQ	AX, CX
	LOCK
	XADDQ	AX, (BX)
	ADDQ	CX, AX
	MOVQ	AX, ret+16(FP)
	RET

// func Or64(p *uint64, mask uint64) uint64
TEXT ·Or64(SB),NOSPLIT,$0-24
	MOVQ	p+0(FP), BX
	MOVQ	mask+8(FP), CX
	MOVQ	(BX), AX
or:
	MOVQ	AX, DX
	ORQ	CX, DX
	LOCK
	CMPXCHGQ	DX, (BX)
	JNE	or
	MOVQ	AX, ret+16(FP)
	RET

// func And64(p *uint64, mask uint64) uint64
TEXT ·And64(SB),NOSPLIT,$0-24
	MOVQ	p+0(FP), BX
	MOVQ	mask+8(FP), CX
	MOVQ	(BX), AX
and:
	MOVQ	AX, DX
	ANDQ	CX, DX
	LOCK
	CMPXCHGQ	DX, (BX)
	JNE	and
	MOVQ	AX, ret+16(FP)
	RET

// func Xchg32(p *uint32, v uint32) uint32
TEXT ·Xchg32(SB),NOSPLIT,$0-20
	MOVQ	p+0(FP), BX
	MOVL	v+8(FP), AX
	XCHGL	AX, (BX)
	MOVL	AX, ret+16(FP)
	RET

// func Copy(dst, src unsafe.Pointer, n uintptr)
// The direction flag is clear by the ABI, in a signal handler by the kernel.
TEXT ·Copy(SB),NOSPLIT,$0-24
	MOVQ	dst+0(FP), DI
	MOVQ	src+8(FP), SI
	MOVQ	n+16(FP), CX
	REP; MOVSB
	RET

// func Zero(p unsafe.Pointer, n uintptr)
TEXT ·Zero(SB),NOSPLIT,$0-16
	MOVQ	p+0(FP), DI
	MOVQ	n+8(FP), CX
	XORL	AX, AX
	REP; STOSB
	RET

// func Pause()
TEXT ·Pause(SB),NOSPLIT,$0-0
	PAUSE
	RET
