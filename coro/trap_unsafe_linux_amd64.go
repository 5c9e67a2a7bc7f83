package coro

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// Defined in trap_linux_amd64.s.
func trapPCs() (entry, restorer uintptr)
func copyPCs() (fast, slow, done uintptr)

// CurrentG identifies the calling goroutine for [Delivered]: the address of
// its g, unique while the goroutine lives and reused afterwards.
func CurrentG() uintptr

// Written once by Install, before the trap is armed; read by the handler.
var (
	oldHandler     uintptr   // where a fault goes that is not ours: 0 SIG_DFL, 1 SIG_IGN, else a C function
	dflAction      sigaction // all zero: SIG_DFL
	fastLo, fastHi uintptr   // CopyOut
	slowLo, slowHi uintptr   // copyOutSlow, where a fault in CopyOut lands
	donePC         uintptr   // copyOutDone, where a fault in copyOutSlow lands
	parkFn         = park    // a variable, so that the linker does not add up its stack and ours
	onFaultFn      = onFault // called by the assembly through the variable: see trap_linux_amd64.s
	installMu      sync.Mutex
	installed      bool
	_              = [1]struct{}{}[unsafe.Sizeof(sigaction{})-32]
	_              = [1]struct{}{}[unsafe.Offsetof(sigContext{}.fpstate)-224]
)

// sigaction is the kernel's struct sigaction on amd64.
type sigaction struct{ handler, flags, restorer, mask uintptr }

const (
	saSiginfo  = 0x4
	saRestorer = 0x04000000
	saOnstack  = 0x08000000
)

// sigContext is the part of the kernel's ucontext_t that we use: what the
// registers were, and will be after sigreturn. See arch/x86 sigcontext.h.
type sigContext struct {
	uc                                          [40]byte // uc_flags, uc_link, uc_stack
	r8, r9, r10, r11, r12, r13, r14, r15        uintptr
	rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip uintptr
	eflags, csgsfs, err, trapno, oldmask, cr2   uintptr
	fpstate                                     uintptr // the FXSAVE/XSAVE image, or 0
}

// sigInfo is the part of siginfo_t that a SIGBUS fills in.
type sigInfo struct {
	signo, errno, code, _ int32
	addr                  uintptr
}

const busAdrerr = 2 // BUS_ADRERR: userfaultfd, or the end of a file

// Supported says whether the trap, and with it raw access to arenas, exists
// on this system: nil, or an error that Is [ErrNotSupported].
func Supported() error { return nil }

// Install arms the trap: it replaces the process's SIGBUS handler by one that
// keeps the faults of arenas and hands every other SIGBUS to the handler that
// was there before, untouched. It is idempotent and cannot be undone, because
// somebody may have chained behind us. A program that installs a SIGBUS
// handler of its own later must chain likewise. See sigaction(2).
func Install() error {
	installMu.Lock()
	defer installMu.Unlock()
	if installed {
		return nil
	}
	// With -race and -cover together (of this package) the compiler counts by
	// calling into the race detector, which the handler cannot survive.
	entry := reflect.ValueOf(onFault).Pointer()
	for name := range callees(entry, funcEnd(entry)) {
		if strings.HasPrefix(name, "sync/atomic.") {
			return fmt.Errorf("coro: built with -race and -cover: %w", ErrNotSupported)
		}
	}
	fast, slow, done := copyPCs()
	fastLo, fastHi = fast, funcEnd(fast)
	slowLo, slowHi = slow, funcEnd(slow)
	donePC = done
	trap, restorer := trapPCs()
	var old sigaction
	if _, errno := bare.Syscall(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGBUS), 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0); errno != 0 {
		return fmt.Errorf("coro: rt_sigaction: %w", syscall.Errno(errno))
	}
	oldHandler = old.handler
	// All signals stay blocked in the handler: a preemption or profiling
	// signal would run Go's handler on top of ours, on the same stack, with a
	// context in which nothing can be done.
	act := sigaction{trap, saSiginfo | saOnstack | saRestorer, restorer, ^uintptr(0)}
	if _, errno := bare.Syscall(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGBUS), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0); errno != 0 {
		return fmt.Errorf("coro: rt_sigaction: %w", syscall.Errno(errno))
	}
	installed = true
	return nil
}

// onFault judges one SIGBUS in signal context. Its result is 0 if the signal
// belongs to the previous handler, 1 if the context is to be resumed as it now
// is. The thread's g is still that of the code that faulted.
//
//go:nosplit
//go:norace
//go:nocheckptr
func onFault(info *sigInfo, ctx *sigContext) uintptr {
	if info.code != busAdrerr {
		if isRaise(info, ctx) {
			deliverParked(info, ctx)
		}
		return 0
	}
	a := arenaOf(info.addr)
	if a == nil {
		return 0
	}
	bare.Add64(&counters.faults, 1)
	if pc := ctx.rip; pc >= fastLo && pc < fastHi {
		ctx.rip, ctx.rax = slowLo, info.addr
		bare.Add64(&counters.landed, 1)
		return 1
	} else if pc >= slowLo && pc < slowHi {
		ctx.rip, ctx.rax = donePC, info.addr
		return 1 // the second half of a landing, counted already
	}
	f := Fault{Addr: info.addr, PC: ctx.rip, G: CurrentG(), Access: Access(ctx.err & 7)}
	// The compiler must not see that the pointer goes to a function it does
	// not know, or it would allocate the Fault.
	switch a.decide((*Fault)(noescape(unsafe.Pointer(&f)))) {
	case Retry:
		bare.Add64(&counters.retried, 1)
		return 1
	case Wait:
		return wait((*Fault)(noescape(unsafe.Pointer(&f))), a, ctx)
	case WaitGo:
		if a.mode == Restart {
			f.Errno = ErrnoRestart
		} else if why := parkFn((*Fault)(noescape(unsafe.Pointer(&f))), a, ctx); why == parkedOK {
			return 1
		} else {
			countBlocked(f.PC, why)
			f.Errno = ErrnoCannotPark
		}
	}
	deliver((*Fault)(noescape(unsafe.Pointer(&f))), ctx)
	return 0
}

// wait parks the goroutine or blocks the thread. Its result is onFault's.
//
//go:nosplit
//go:norace
//go:nocheckptr
func wait(f *Fault, a *arena, ctx *sigContext) uintptr {
	if a.mode == Restart {
		f.Errno = ErrnoRestart
	} else {
		why := parkFn(f, a, ctx)
		if why == parkedOK {
			return 1
		}
		countBlocked(f.PC, why)
		switch {
		case a.serve == nil:
			f.Errno = ErrnoCannotPark
		case a.inline:
			f.Errno = a.serve(f)
			bare.Add64(&counters.served, 1)
		default:
			f.Errno = ask(f, a)
		}
		if f.Errno == 0 {
			return 1
		}
	}
	deliver(f, ctx)
	return 0
}

// directionFlag of RFLAGS: a backward memmove has it set, all other code takes
// it for clear, also the code that Go runs when the memmove has failed.
const directionFlag = 0x400

// deliver notes a fault that goes to the previous handler.
//
//go:nosplit
//go:norace
//go:nocheckptr
func deliver(f *Fault, ctx *sigContext) {
	ctx.eflags &^= directionFlag
	logFault(f.G, f.Addr, f.Errno)
	bare.Add64(&counters.delivered, 1)
}

// noescape hides a pointer from escape analysis.
//
//go:nosplit
//go:norace
//go:nocheckptr
func noescape(p unsafe.Pointer) unsafe.Pointer { return bare.Ptr(uintptr(p)) }
