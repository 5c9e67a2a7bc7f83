//go:build linux

package aio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inChild runs the calling test again in a process of its own and reports
// whether this is that process. The parent is done when it returns false.
func inChild(t *testing.T) bool {
	const key = "UFFDPAGER_AIO_CHILD"
	if os.Getenv(key) == t.Name() {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), key+"="+t.Name())
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("%s", out)
	}
	return false
}

// refuse makes a system call fail in all threads of this process from now on,
// as a container's filter does.
func refuse(t *testing.T, call uint32, errno unix.Errno) {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x00050000 | uint32(errno)}, // SECCOMP_RET_ERRNO
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000},                 // SECCOMP_RET_ALLOW
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Skip(err)
	}
	const setFilter, allThreads = 1, 1
	if n, _, errno := unix.Syscall(unix.SYS_SECCOMP, setFilter, allThreads, uintptr(unsafe.Pointer(&prog))); errno != 0 || n != 0 {
		t.Skip("seccomp: ", n, errno)
	}
}

func autoIs(t *testing.T, want Kind) {
	t.Helper()
	e, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.Kind() != want {
		t.Errorf("Auto opens %v, not %v", e.Kind(), want)
	}
	fd := file(t, []byte("x"), false)
	op := &Op{FD: fd, Buf: buffer(t, 1)}
	run(t, e, op)
	if op.N != 1 || op.Err != nil || op.Buf[0] != 'x' {
		t.Errorf("%d, %v", op.N, op.Err)
	}
}

func TestAutoTakesTheNextWhenRefused(t *testing.T) {
	if !inChild(t) {
		return
	}
	if err := Probe(LinuxAIO); err != nil {
		t.Skip(err)
	}
	autoIs(t, LinuxAIO)
	next := IOURing
	if Probe(IOURing) != nil {
		next = Threads
	}

	// As when other processes hold all of aio-max-nr.
	refuse(t, unix.SYS_IO_SETUP, unix.EAGAIN)
	_, err := Open(Options{Kind: LinuxAIO})
	if !errors.Is(err, unix.EAGAIN) || errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "sysctl -w fs.aio-max-nr") {
		t.Errorf("aio-max-nr used up: %v", err)
	}
	autoIs(t, next)

	refuse(t, unix.SYS_IO_URING_SETUP, unix.EPERM)
	_, err = Open(Options{Kind: IOURing})
	if !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, unix.EPERM) || !errors.Is(Probe(IOURing), ErrNotSupported) {
		t.Errorf("io_uring refused: %v", err)
	}
	autoIs(t, Threads)
}

func TestRefusedLinuxAIOIsUnsupported(t *testing.T) {
	if !inChild(t) {
		return
	}
	refuse(t, unix.SYS_IO_SETUP, unix.ENOSYS)
	if _, err := Open(Options{Kind: LinuxAIO}); !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, unix.ENOSYS) {
		t.Error(err)
	}
}

// The real limit, without taking anything from the other processes of the
// machine: one ring that is larger than it.
func TestAIOMaxNr(t *testing.T) {
	var limit int
	if _, err := fmt.Sscan(sysctl("fs/aio-max-nr"), &limit); err != nil || limit > 1<<24 {
		t.Skipf("fs.aio-max-nr is %d (%v)", limit, err)
	}
	err := newEngine(LinuxAIO, limit+1, nil).openLinuxAIO(-1)
	if isUnsupported(err) {
		t.Skip(err)
	}
	if !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), fmt.Sprintf("fs.aio-max-nr %d", limit)) {
		t.Error(err)
	}
}

// The same with everything taken for a moment, by a child that gives it back
// when it ends, however it does.
func TestAIOMaxNrUsedUp(t *testing.T) {
	if os.Getenv("UFFDPAGER_TORTURE") == "" {
		t.Skip("takes all AIO requests of the machine: only with UFFDPAGER_TORTURE=1")
	}
	if !inChild(t) {
		return
	}
	for depth := MaxDepth; ; {
		e, err := Open(Options{Kind: LinuxAIO, Depth: depth})
		if isUnsupported(err) {
			t.Skip(err)
		}
		if err == nil {
			defer e.Close()
			continue
		}
		if !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), "sysctl -w fs.aio-max-nr") {
			t.Fatal(err)
		}
		if depth == 1 {
			break
		}
		depth /= 2
	}
	if e, err := Open(Options{Depth: 16}); err != nil || e.Kind() == LinuxAIO {
		t.Errorf("Auto: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Depth: -1}, {Depth: MaxDepth + 1}, {Kind: Threads, Depth: -1}, {Kind: 17}} {
		if e, err := Open(o); err == nil {
			e.Close()
			t.Errorf("%+v is accepted", o)
		}
	}
	for _, k := range []Kind{LinuxAIO, IOURing, Threads} {
		e, err := Open(Options{Kind: k, Depth: 4096})
		if isUnsupported(err) {
			continue
		}
		if err != nil || e.Kind() != k || Probe(k) != nil {
			t.Errorf("%v: %v, %v", k, err, Probe(k))
			continue
		}
		e.Close()
	}
	if err := Probe(Auto); err != nil {
		t.Error(err)
	}
}

// What an engine has opened, mapped and started is gone after Close.
func TestCloseLeavesNothing(t *testing.T) {
	fd := file(t, pattern(4096, 15), false)
	buf := buffer(t, 4096)
	for _, k := range engines {
		t.Run(k.name, func(t *testing.T) {
			once := func() {
				e := mustOpen(t, k.open, 16)
				run(t, e, &Op{FD: fd, Buf: buf}, &Op{Code: Flush, FD: fd}, &Op{Code: Flush, FD: -1})
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			}
			once() // what the process itself opens at the first time
			fds, maps, gos := held(t)
			for range 4 {
				once()
			}
			// Threads that end and the kernel's own clean-up take a moment.
			for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
				f, m, g := held(t)
				if f <= fds && m <= maps && g <= gos {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("descriptors %d, ring mappings %d, goroutines %d; were %d, %d, %d", f, m, g, fds, maps, gos)
				}
			}
		})
	}
}

// held counts open descriptors, mappings of rings, and goroutines.
func held(t *testing.T) (fds, maps, goroutines int) {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return len(list), strings.Count(string(text), "[aio]") + strings.Count(string(text), "io_uring"), runtime.NumGoroutine()
}

// The way of an op through an engine allocates nothing, not even in the
// backlog or with a context that can end.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	fd := file(t, pattern(65536, 16), true)
	eachEngine(t, 4, func(t *testing.T, e Engine) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		buf := buffer(t, 65536)
		done := 0
		ops := make([]*Op, 16)
		for i := range ops {
			ops[i] = &Op{FD: fd, Off: int64(i) * 4096, Buf: buf[i*4096:][:4096], Done: func(*Op) { done++ }}
		}
		round := func() {
			done = 0
			e.Submit(ops)
			for done < len(ops) {
				if e.Reap(8) == 0 {
					e.Wait(ctx)
				}
			}
		}
		round()
		if n := testing.AllocsPerRun(50, round); n >= 1 {
			t.Errorf("%.0f allocations for %d ops", n, len(ops))
		}
	})
}
