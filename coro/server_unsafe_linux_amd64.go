package coro

import (
	"fmt"
	"sync"
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// A fault server is a thread of our own, made by clone(2), that the Go runtime
// does not know: no M, no g, no P. It loads pages for threads that cannot be
// parked, and therefore must go on while the world is stopped, since the very
// thread it serves may be the one that the collector waits for.
//
// Why not a Go thread that stays in a system call: it would need a linkname
// into the scheduler, look to the deadlock detector like work under way, and
// receive the process's signals. What the raw thread asks for in return:
//   - It runs only code of the kind package bare describes. Its g is nil.
//   - All signals are blocked, so none of them runs Go's handler on it. A
//     fault of its own kills the process.
//   - It is invisible to what walks over the runtime's or libc's threads:
//     setuid(2) and relatives, whose effect is per thread, do not reach it. It
//     keeps the credentials of the time it was started and uses them for
//     nothing but descriptors that are open already.
//   - It ends with the process (exit_group, execve), not before.
//
// A request slot belongs to the thread that faulted from its bit in slotUsed
// to the moment it has read the answer.
const (
	maxSlots   = 256
	slotWords  = maxSlots / 64
	maxServers = 16

	slotAsked    = 1 // the server's turn
	slotAnswered = 2 // the faulting thread's turn

	noSlotNap = 50_000 // ns a thread sleeps when every slot is taken
)

type requestSlot struct {
	state uint32 // futex word of the faulting thread
	arena uint32 // index in arenas
	fault Fault  // Errno is the answer
	_     [16]byte
}

var _ = [1]struct{}{}[unsafe.Sizeof(requestSlot{})-64] // one cache line each

var (
	slots       [maxSlots]requestSlot
	slotUsed    [slotWords]uint64
	slotPending [slotWords]uint64

	bell        uint32 // counts requests; the futex word of idle servers
	idleServers uint32
	napWord     uint32 // never changes

	serverMu sync.Mutex
	nServers int
)

// ask has a fault server load the page of f while the thread sleeps. The
// result is Serve's: 0 to run the instruction again.
//
//go:nosplit
//go:norace
//go:nocheckptr
func ask(f *Fault, a *arena) uintptr {
	i := claimSlot()
	if i == maxSlots {
		bare.FutexWait(&napWord, 0, noSlotNap)
		return 0 // the instruction faults again, and asks again
	}
	s := &slots[i%maxSlots]
	s.fault = *f
	s.arena = uint32((uintptr(unsafe.Pointer(a)) - uintptr(unsafe.Pointer(&arenas))) / unsafe.Sizeof(arena{}))
	bare.Store32(&s.state, slotAsked)
	bare.Or64(&slotPending[i/64%slotWords], 1<<(i%64))
	bare.Add32(&bell, 1)
	if bare.Load32(&idleServers) != 0 {
		bare.FutexWake(&bell, 1)
	}
	for bare.Load32(&s.state) != slotAnswered {
		bare.FutexWait(&s.state, slotAsked, -1)
	}
	errno := s.fault.Errno
	bare.And64(&slotUsed[i/64%slotWords], ^uint64(1<<(i%64)))
	return errno
}

// claimSlot takes a free slot; maxSlots: there is none.
//
//go:nosplit
//go:norace
//go:nocheckptr
func claimSlot() uint32 {
	for w := uint32(0); w < slotWords; w++ {
		for {
			used := bare.Load64(&slotUsed[w])
			b := firstZero(used)
			if b == 64 {
				break
			}
			if bare.Cas64(&slotUsed[w], used, used|1<<b) {
				return w*64 + b
			}
		}
	}
	return maxSlots
}

// firstZero is the number of the lowest zero bit, 64 if there is none.
//
//go:nosplit
//go:norace
//go:nocheckptr
func firstZero(w uint64) uint32 {
	for b := uint32(0); b < 64; b++ {
		if w>>b&1 == 0 {
			return b
		}
	}
	return 64
}

// serve is a fault server's life. A request made after the bell was read rings
// it, so that the wait returns at once: none is slept over.
//
//go:nosplit
//go:norace
//go:nocheckptr
func serve() {
	for {
		seen := bare.Load32(&bell)
		worked := false
		for i := uint32(0); i < maxSlots; i++ {
			w := &slotPending[i/64%slotWords]
			if bare.Load64(w)>>(i%64)&1 == 0 || bare.And64(w, ^uint64(1<<(i%64)))>>(i%64)&1 == 0 {
				continue
			}
			s := &slots[i%maxSlots]
			s.fault.Errno = arenas[s.arena%maxArenas].serve(&s.fault)
			bare.Add64(&counters.served, 1)
			bare.Store32(&s.state, slotAnswered)
			bare.FutexWake(&s.state, 1)
			worked = true
		}
		if !worked {
			bare.Add32(&idleServers, 1)
			bare.FutexWait(&bell, seen, -1)
			bare.Add32(&idleServers, ^uint32(0))
		}
	}
}

const (
	serverStack = 64 << 10
	serverGuard = 4 << 10
	serverTop   = 16      // of the stack: the address of the code to run
	serverTLS   = 8 << 10 // zeros on both sides of the thread pointer: g, at a small offset from it, is nil

	cloneFlags = syscall.CLONE_VM | syscall.CLONE_FS | syscall.CLONE_FILES | syscall.CLONE_SIGHAND |
		syscall.CLONE_THREAD | syscall.CLONE_SYSVSEM | syscall.CLONE_SETTLS
)

// Defined in server_linux_amd64.s.
func cloneServer(flags, stack, tls uintptr) (tid, errno uintptr)

// StartServers makes sure that there are at least n fault servers (at most
// 16). One is enough for correctness; more of them overlap the reads of
// threads that fault at the same time and cannot be parked. They inherit
// affinity, priority and credentials of the calling thread and live as long as
// the process. See clone(2).
func StartServers(n int) error {
	if err := Install(); err != nil {
		return err
	}
	serverMu.Lock()
	defer serverMu.Unlock()
	for nServers < min(n, maxServers) {
		if err := StartThread(serve); err != nil {
			return err
		}
		nServers++
	}
	return nil
}

// StartThread runs fn, a top-level function that never returns and keeps the
// rules of package bare, on a thread of the kind of a fault server. It lives as
// long as the process.
func StartThread(fn func()) error {
	mem, err := syscall.Mmap(-1, 0, serverGuard+serverStack+serverTLS, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return fmt.Errorf("coro: stack of a thread: %w", err)
	}
	if err := syscall.Mprotect(mem[:serverGuard], syscall.PROT_NONE); err != nil {
		syscall.Munmap(mem)
		return fmt.Errorf("coro: guard page of a thread: %w", err)
	}
	// What it calls lies on top of its stack: the address of a constant.
	*(*uintptr)(unsafe.Pointer(&mem[serverGuard+serverStack-serverTop])) = **(**uintptr)(unsafe.Pointer(&fn))
	base := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	if errno := startServer(base+serverGuard+serverStack-serverTop, base+serverGuard+serverStack+serverTLS/2); errno != 0 {
		syscall.Munmap(mem)
		return fmt.Errorf("coro: clone: %w", syscall.Errno(errno))
	}
	return nil
}

// startServer clones with all signals blocked, which the new thread inherits.
// It is nosplit so that the goroutine cannot move to another thread in
// between.
//
//go:nosplit
//go:norace
//go:nocheckptr
func startServer(stack, tls uintptr) (errno uintptr) {
	const setmask = 2 // SIG_SETMASK
	all, old := ^uint64(0), uint64(0)
	bare.Syscall(syscall.SYS_RT_SIGPROCMASK, setmask, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	_, errno = cloneServer(cloneFlags, stack, tls)
	bare.Syscall(syscall.SYS_RT_SIGPROCMASK, setmask, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return errno
}
