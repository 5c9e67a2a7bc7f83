package liveness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// assembly are looks at a page by code that the runtime cannot stop, or stops
// only as a leaf: what it faults in holds its thread and P.
var assembly = []struct {
	name string
	look func(mem, want []byte) bool
}{
	{"copy", func(mem, want []byte) bool {
		b := make([]byte, len(want))
		copy(b, mem)
		return string(b) == string(want)
	}},
	{"Equal", bytes.Equal},
	{"IndexByte", func(mem, want []byte) bool { return bytes.IndexByte(mem, want[0]) == 0 }},
	{"Count", func(mem, want []byte) bool { return bytes.Count(mem, want[:1]) == bytes.Count(want, want[:1]) }},
	{"map key", func(mem, want []byte) bool { return map[string]int{string(want): 1}[string(mem)] == 1 }},
	{"crc32", func(mem, want []byte) bool { return crc32.ChecksumIEEE(mem) == crc32.ChecksumIEEE(want) }},
	{"sha256", func(mem, want []byte) bool { return sha256.Sum256(mem) == sha256.Sum256(want) }},
}

// stir faults through every look in every worker until stop, over a region of
// pages pages with seed 1.
func stir(r *pager.Region, workers int, stop *atomic.Bool) (rounds int64, err error) {
	pages := r.Len() / page
	errs := make([]error, workers)
	var n atomic.Int64
	var wg sync.WaitGroup
	for i := range int64(workers) {
		wg.Go(func() {
			want := make([]byte, page)
			for k := int64(0); !stop.Load(); k++ {
				off := (i*61 + k*17) % pages * page
				fixture.Fill(want, off, 1)
				a := assembly[(i+k)%int64(len(assembly))]
				errs[i] = pager.Guard(func() error {
					if !a.look(r.Bytes()[off:off+page], want) {
						return fmt.Errorf("%s at %d saw something else", a.name, off)
					}
					return nil
				})
				if errs[i] != nil {
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return n.Load(), errors.Join(errs...)
}

// stirred runs what beside stir for a while in a child, parking and blocking, and
// with one, two and eight Ps.
func stirred(t *testing.T, budget int64, beside func(t *testing.T, stop *atomic.Bool)) {
	for _, procs := range []int{1, 2, 8} {
		for _, mode := range []string{"auto", "block"} {
			if (mode == "block") != (procs == 2) && !fixture.Torture() {
				continue // in the short form each with some of the others
			}
			t.Run(fmt.Sprintf("procs=%d/%s", procs, mode), func(t *testing.T) {
				if child.Isolate(t, child.Options{Procs: procs, Env: []string{"UFFDPAGER_PARK=" + mode}}) {
					return
				}
				p := fixture.Pager(t, pager.Options{Budget: budget * page})
				r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 600*page, 1), store.FileOptions{ReadOnly: true}), quiet)
				fixture.NeedRaw(t, r)
				var stop atomic.Bool
				var rounds int64
				var err error
				done := make(chan struct{})
				go func() {
					defer close(done)
					rounds, err = stir(r, 4*procs, &stop)
				}()
				beside(t, &stop)
				stop.Store(true)
				<-done
				s := p.Stats()
				if err != nil {
					t.Fatalf("%v\n%v", err, s)
				}
				if rounds == 0 || s.Misses == 0 {
					t.Errorf("%d looks, %d misses: nothing was tried", rounds, s.Misses)
				}
				t.Logf("%d looks, %d misses, %d parked, %d blocked", rounds, s.Misses, s.Faults.Parked, s.Faults.Blocked)
			})
		}
	}
}

// lasting is how long the disturbances below go on.
func lasting() time.Duration {
	if fixture.Torture() {
		return time.Minute
	}
	return 400 * time.Millisecond
}

// TestStopTheWorld stops the world in every way there is while threads fault in
// assembly.
func TestStopTheWorld(t *testing.T) {
	stirred(t, 24, func(t *testing.T, _ *atomic.Bool) {
		procs := runtime.GOMAXPROCS(0)
		for end, n := time.Now().Add(lasting()), 0; time.Now().Before(end); n++ {
			switch n % 6 {
			case 0:
				runtime.GC()
			case 1:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
			case 2:
				runtime.GOMAXPROCS(procs%3 + 1)
			case 3:
				runtime.GOMAXPROCS(procs)
			case 4:
				runtime.Stack(make([]byte, 1<<16), true)
			case 5:
				debug.FreeOSMemory()
			}
		}
		runtime.GOMAXPROCS(procs)
	})
}

// TestSignalStorms sends the signals that the runtime itself uses, and the
// profiler's, as fast as it can.
func TestSignalStorms(t *testing.T) {
	stirred(t, 24, func(t *testing.T, stop *atomic.Bool) {
		runtime.SetCPUProfileRate(2000)
		if err := pprof.StartCPUProfile(new(bytes.Buffer)); err == nil {
			defer pprof.StopCPUProfile()
		}
		pid := os.Getpid()
		for end, n := time.Now().Add(lasting()), 0; time.Now().Before(end); n++ {
			sig := unix.SIGURG
			if n%4 == 3 {
				sig = unix.SIGPROF
			}
			if err := unix.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
			if n%16 == 0 { // also to each thread
				tasks, err := os.ReadDir("/proc/self/task")
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range tasks {
					var tid int
					if _, err := fmt.Sscan(e.Name(), &tid); err == nil {
						_ = unix.Tgkill(pid, tid, unix.SIGURG) // it may be gone
					}
				}
			}
		}
	})
}

// TestForkWhileFaulting starts programs while others fault: fork holds locks of
// the runtime and copies the address space.
func TestForkWhileFaulting(t *testing.T) {
	stirred(t, 24, func(t *testing.T, _ *atomic.Bool) {
		for end := time.Now().Add(lasting()); time.Now().Before(end); {
			out, err := exec.Command("/bin/echo", "hello").Output()
			if err != nil || strings.TrimSpace(string(out)) != "hello" {
				t.Fatalf("echo: %q, %v", out, err)
			}
		}
	})
}

// TestStopAndContinue stops the whole process and lets it go on, again and
// again. A process cannot do that to itself: its parent does.
func TestStopAndContinue(t *testing.T) {
	stirred(t, 24, func(t *testing.T, _ *atomic.Bool) {
		script := fmt.Sprintf("for i in 1 2 3 4 5 6 7 8; do kill -STOP %d; sleep 0.02; kill -CONT %d; sleep 0.03; done", os.Getpid(), os.Getpid())
		if out, err := exec.Command("/bin/sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}

// TestAllPsFault: as many threads as there are Ps, and more, wait for pages in
// code that cannot be parked, and nothing else can run.
func TestAllPsFault(t *testing.T) {
	for _, procs := range []int{1, 2, 8} {
		for _, mode := range []string{"auto", "block"} {
			t.Run(fmt.Sprintf("procs=%d/%s", procs, mode), func(t *testing.T) {
				if child.Isolate(t, child.Options{Procs: procs, Env: []string{"UFFDPAGER_PARK=" + mode}}) {
					return
				}
				p := fixture.Pager(t, pager.Options{Budget: 8 * page})
				r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 400*page, 1), store.FileOptions{ReadOnly: true}), quiet)
				fixture.NeedRaw(t, r)
				fixture.CollectGarbage(t)
				errs := make(chan error, 4*procs)
				for i := range int64(4 * procs) {
					go func() {
						errs <- pager.Guard(func() error {
							for k := range int64(60) {
								off := (i*91 + k*7) % 400 * page
								want := make([]byte, page)
								fixture.Fill(want, off, 1)
								if sha256.Sum256(r.Bytes()[off:off+page]) != sha256.Sum256(want) {
									return fmt.Errorf("wrong at %d", off)
								}
							}
							return nil
						})
					}()
				}
				for range 4 * procs {
					if err := <-errs; err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// TestFaultsInFinalizers: the goroutine that runs finalizers is one for all.
func TestFaultsInFinalizers(t *testing.T) {
	for _, procs := range []int{1, 2} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: procs}) {
				return
			}
			p := fixture.Pager(t, pager.Options{Budget: 8 * page})
			r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 400*page, 1), store.FileOptions{ReadOnly: true}), quiet)
			fixture.NeedRaw(t, r)
			errs := make(chan error, 100)
			for i := range int64(100) {
				withFinalizer(func() { errs <- assemblyLook(r, i*3*page, int(i)) })
			}
			fixture.CollectGarbage(t)
			for range 100 {
				if err := <-errs; err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func assemblyLook(r *pager.Region, off int64, i int) error {
	want := make([]byte, page)
	fixture.Fill(want, off, 1)
	if a := assembly[i%len(assembly)]; !a.look(r.Bytes()[off:off+page], want) {
		return fmt.Errorf("%s at %d saw something else", a.name, off)
	}
	return nil
}

//go:noinline
func withFinalizer(f func()) {
	x := new([64]byte)
	runtime.SetFinalizer(x, func(*[64]byte) { f() })
}

// TestFaultsInInit faults before main runs: see init in this file.
func TestFaultsInInit(t *testing.T) {
	if !child.In(t) {
		res := child.Run(t, child.Options{Procs: 1, Env: []string{initEnv + "=1"}})
		if res.Err != nil || !strings.Contains(res.Output, "init has seen 50 pages") {
			t.Fatalf("%v\n%s", res.Err, res.Output)
		}
	}
}

const initEnv = "UFFDPAGER_TEST_INIT"

func init() {
	if os.Getenv(initEnv) == "" {
		return
	}
	const pages = 50
	m := store.NewMemory(pages * page)
	k, _ := m.Kernel()
	fixture.Fill(k.Mem, 0, 1)
	p, err := pager.New(pager.Options{Budget: 8 * page})
	if err != nil {
		panic(err)
	}
	r, err := p.Map(m, quiet)
	if err != nil {
		panic(err)
	}
	if r.Raw() == nil {
		for i := range int64(pages) {
			if err := assemblyLook(r, i*page, int(i)); err != nil {
				panic(err)
			}
		}
	}
	if err := p.Close(); err != nil {
		panic(err)
	}
	fmt.Printf("init has seen %d pages\n", pages)
}

// TestHooksThatBlock: a Verify that does not return keeps its page, and nothing
// else: other pages, other regions, raw access and collections go on.
func TestHooksThatBlock(t *testing.T) {
	for _, procs := range []int{1, 2} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: procs}) {
				return
			}
			p := fixture.Pager(t, pager.Options{Budget: 64 * page})
			free := make(chan struct{})
			blocked := make(chan struct{}, 1)
			o := quiet
			o.Verify = func(n int64, _ []byte) error {
				if n == 5 {
					blocked <- struct{}{}
					<-free
				}
				return nil
			}
			hooked := fixture.Map(t, p, fixture.Memory(t, 100*page, 1), o)
			other := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 400*page, 1), store.FileOptions{ReadOnly: true}), quiet)
			fixture.NeedRaw(t, other)
			ctx := context.Background()
			waits := make(chan error, 1)
			go func() { waits <- explicit[0].read(ctx, hooked, 5*page) }()
			<-blocked
			fixture.CollectGarbage(t)
			for i := range int64(400) {
				if err := raw[i%2].read(ctx, other, i*page); err != nil {
					t.Fatalf("%s of another region: %v", raw[i%2].name, err)
				}
				if err := explicit[i%3].read(ctx, other, (i*7+200)%400*page); err != nil {
					t.Fatalf("%s of another region: %v", explicit[i%3].name, err)
				}
				if n := i % 100; n != 5 {
					if err := explicit[i%3].read(ctx, hooked, n*page); err != nil {
						t.Fatalf("%s of another page: %v", explicit[i%3].name, err)
					}
				}
			}
			select {
			case err := <-waits:
				t.Fatalf("the page whose Verify has not returned was given out (%v)", err)
			default:
			}
			close(free)
			if err := <-waits; err != nil {
				t.Fatal(err)
			}
		})
	}
}
