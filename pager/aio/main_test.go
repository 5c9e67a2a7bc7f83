//go:build linux

package aio

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// engines are the ways an op can go, those this machine refuses excepted.
var engines = []struct {
	name string
	open func(depth int) (Engine, error)
}{
	{"aio", func(d int) (Engine, error) { return Open(Options{Kind: LinuxAIO, Depth: d}) }},
	{"aio-getevents", func(d int) (Engine, error) {
		e, err := Open(Options{Kind: LinuxAIO, Depth: d})
		if err == nil {
			e.(*engine).back.(*kaio).ring = nil
		}
		return e, err
	}},
	{"io_uring", func(d int) (Engine, error) { return Open(Options{Kind: IOURing, Depth: d}) }},
	{"aio-solo", func(d int) (Engine, error) { return Open(Options{Kind: LinuxAIO, Depth: d, Solo: true}) }},
	{"io_uring-solo", func(d int) (Engine, error) { return Open(Options{Kind: IOURing, Depth: d, Solo: true}) }},
	{"threads", func(d int) (Engine, error) { return Open(Options{Kind: Threads, Depth: d}) }},
}

// eachEngine runs f with every engine of the given depth, and checks that it
// closes with nothing under way.
func eachEngine(t *testing.T, depth int, f func(t *testing.T, e Engine)) {
	for _, k := range engines {
		t.Run(k.name, func(t *testing.T) {
			e := mustOpen(t, k.open, depth)
			f(t, e)
			if err := e.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if n := e.InFlight(); n != 0 {
				t.Errorf("%d ops in flight after Close", n)
			}
		})
	}
}

func mustOpen(t testing.TB, open func(int) (Engine, error), depth int) Engine {
	e, err := open(depth)
	if isUnsupported(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// buffer is n bytes that do not move, on a page boundary.
func buffer(t testing.TB, n int) []byte {
	b, err := unix.Mmap(-1, 0, max(n, 1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b[:n]
}

// file makes a file of the given bytes and opens it with O_DIRECT if asked and
// if the file system can.
func file(t testing.TB, content []byte, direct bool) int {
	return fileIn(t, t.TempDir(), content, direct)
}

func fileIn(t testing.TB, dir string, content []byte, direct bool) int {
	name := filepath.Join(dir, "data")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if direct {
		flags |= unix.O_DIRECT
	}
	fd, err := unix.Open(name, flags, 0)
	if err == unix.EINVAL && direct {
		t.Skip("no O_DIRECT here")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// fataler is what testing.T, testing.B and rapid.T have in common.
type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// run submits ops and reaps until all of them, and nothing else, is done. Each
// must be done once.
func run(t fataler, e Engine, ops ...*Op) {
	t.Helper()
	var left atomic.Int64
	left.Store(int64(len(ops)))
	times := make(map[*Op]*atomic.Int32, len(ops))
	for _, op := range ops {
		times[op] = new(atomic.Int32)
		op.Done = func(op *Op) {
			times[op].Add(1)
			left.Add(-1)
		}
	}
	e.Submit(ops)
	reapUntil(t, e, func() bool { return left.Load() <= 0 })
	for i, op := range ops {
		if n := times[op].Load(); n != 1 {
			t.Fatalf("op %d of %d: Done ran %d times", i, len(ops), n)
		}
	}
}

// deadline is what nothing here takes unless it hangs.
const deadline = 20 * time.Second

func reapUntil(t fataler, e Engine, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	for !ok() {
		if e.Reap(8) == 0 && !ok() {
			if err := e.Wait(ctx); err != nil {
				t.Fatalf("Wait: %v; %d in flight", err, e.InFlight())
			}
		}
	}
}
