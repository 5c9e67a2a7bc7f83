package coro

import (
	"context"
	"encoding/binary"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// efdTorture says that the long forms of the tests were asked for.
func efdTorture() bool { return os.Getenv("UFFDPAGER_TORTURE") == "1" }

// efdDeadline ends the process with all stacks if the test has not ended in a
// minute: a wake-up that was lost shows as a hang.
func efdDeadline(t testing.TB) {
	d := time.Minute
	if efdTorture() {
		d = 10 * time.Minute
	}
	timer := time.AfterFunc(d, func() {
		debug.SetTraceback("all")
		panic(t.Name() + " hangs")
	})
	t.Cleanup(func() { timer.Stop() })
}

// efdNew makes an eventfd that lives as long as the test.
func efdNew(t testing.TB, flags int) int {
	t.Helper()
	fd, err := unix.Eventfd(0, flags|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func efdSignal(t testing.TB, fd int, n uint64) {
	t.Helper()
	if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, n)); err != nil {
		t.Errorf("write to eventfd %d: %v", fd, err)
	}
}

// efdLeft takes and returns what an eventfd still counts.
func efdLeft(t testing.TB, fd int) (sum uint64) {
	t.Helper()
	for {
		v, ok, err := pollEventfd(int32(fd))
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return sum
		}
		sum += v
	}
}

// efdUntil waits for what another goroutine is about to do.
func efdUntil(cond func() bool) {
	for i := 0; !cond(); i++ {
		if i < 100 {
			runtime.Gosched()
		} else {
			time.Sleep(100 * time.Microsecond)
		}
	}
}

// efdWaiting is how many calls of Await wait for fd.
func efdWaiting(fd int) (n int) {
	awaits.mu.Lock()
	defer awaits.mu.Unlock()
	if awaits.set == nil || awaits.set.sources[int32(fd)] == nil {
		return 0
	}
	for w := awaits.set.sources[int32(fd)].head; w != nil; w = w.next {
		n++
	}
	return n
}

type efdResult struct {
	who   int
	value uint64
	err   error
}

// efdAwait starts a goroutine that awaits fd, and returns when it waits.
func efdAwait(ctx context.Context, fd, who int, out chan<- efdResult) {
	before := efdWaiting(fd)
	go func() {
		v, err := Await(ctx, fd)
		out <- efdResult{who, v, err}
	}()
	efdUntil(func() bool { return efdWaiting(fd) > before })
}

func efdThreads(t testing.TB) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	_, rest, _ := strings.Cut(string(status), "Threads:")
	rest, _, _ = strings.Cut(rest, "\n")
	n, err := strconv.Atoi(strings.TrimSpace(rest))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func efdDescriptors(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(names)
}
