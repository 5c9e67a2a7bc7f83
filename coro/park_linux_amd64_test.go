//go:build !uffdpager_nointernals

package coro

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// miniPark looks after parked goroutines until the test ends: it fills their
// pages, whatever those need, and resumes them. It skips the test where
// parking is off for a reason that is the machine's.
func miniPark(t testing.TB, delay time.Duration) []byte {
	t.Helper()
	mem := mini(t)
	if active, why := ParkStatus(); !active {
		t.Fatal("parking in place is off: ", why)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		var ps []Parked
		for {
			ps = NextParked(ps[:0])
			if len(ps) == 0 {
				return
			}
			for _, p := range ps {
				if delay == 0 {
					p.Resume(miniLoad(p.Fault))
					continue
				}
				time.AfterFunc(delay, func() { p.Resume(miniLoad(p.Fault)) })
			}
		}
	}()
	t.Cleanup(func() { WakeParked(); wg.Wait() })
	return mem
}

func miniLoad(f Fault) uintptr {
	st := &miniState[(f.Addr-miniLo)/miniPage]
	bare.Cas32(st, miniGo, 0)
	return miniFill(&f)
}

const inPlace = "UFFDPAGER_TEST_MODE=in-place"

// needTrap skips the test in a build that has no trap.
func needTrap(t *testing.T) {
	t.Helper()
	if err := Install(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
}

func TestParkingIsActiveHere(t *testing.T) {
	needTrap(t)
	if _, err := releaseOf(runtime.Version()); err != nil {
		t.Skip(err)
	}
	if active, why := ParkStatus(); !active {
		t.Fatal(why)
	}
}

func TestEverydayCodeParks(t *testing.T) {
	if !inChild(t, 100*time.Second, inPlace) {
		return
	}
	mem := miniPark(t, 0)
	for _, procs := range []int{1, 2, 8} {
		runtime.GOMAXPROCS(procs)
		stop := gcLoop()
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for round := range 5 {
					first := (g*5 + round) * everydayPages
					if n, err := everyday(mem, first); err != nil || n != everydayPages {
						t.Errorf("GOMAXPROCS %d: after %d accesses: %v", procs, n, err)
					}
				}
			}()
		}
		wg.Wait()
		stop()
		miniReset(0, 8*5*everydayPages)
	}
	s := ReadStats()
	t.Logf("%+v", s)
	// Blocked: framed assembly, the runtime's own code, reflect.
	if s.Parked < 3*8*5*(everydayPages*6/10) {
		t.Errorf("only %d faults were parked", s.Parked)
	}
}

func TestFailedPageIsAGoFaultWithAddressAlsoAfterParking(t *testing.T) {
	if !inChild(t, 60*time.Second, inPlace) {
		return
	}
	mem := miniPark(t, 0)
	stop := gcLoop()
	defer stop()
	for range 20 {
		for i := range failures {
			bare.Store32(&miniState[i], miniFail)
		}
		testFailures(t, mem, uintptr(syscall.EIO))
	}
	if s := ReadStats(); s.Parked < 20*4 || s.Delivered < 20*uint64(len(failures)) {
		t.Errorf("%+v", s)
	}
	// What was in registers is there after the fault, too.
	miniReset(0, len(failures))
	if _, err := everyday(mem, 0); err != nil {
		t.Error(err)
	}
}

// A fault is delivered with the registers of the instruction: a deferred
// function sees the variables as they were.
func TestVariablesSurviveAFailedLoad(t *testing.T) {
	if !inChild(t, 60*time.Second, inPlace) {
		return
	}
	mem := miniPark(t, 0)
	bare.Store32(&miniState[7], miniFail)
	sum, steps := 0, 0
	_, faulted := faultAddr(func() {
		for i := range 20 {
			sum += int(mem[i*miniPage])
			steps++
		}
	})
	want7 := 0
	for i := range 7 {
		want7 += int(want(i*miniPage, 1)[0])
	}
	if !faulted || steps != 7 || sum != want7 {
		t.Fatalf("faulted %v after %d steps with sum %d, want 7 steps and %d", faulted, steps, sum, want7)
	}
}

func TestPageThatNeedsGoParks(t *testing.T) {
	if !inChild(t, 60*time.Second, inPlace) {
		return
	}
	mem := miniPark(t, 0)
	for i := range 16 {
		bare.Store32(&miniState[i], miniGo)
		o := i * miniPage
		if i%2 == 0 {
			if touch(mem, o+1) != want(o+1, 1)[0] {
				t.Errorf("page %d", i)
			}
		} else if b := bytes.Clone(mem[o : o+miniPage]); !bytes.Equal(b, want(o, miniPage)) {
			t.Errorf("page %d", i)
		}
	}
	if s := ReadStats(); s.Parked < 16 || s.Blocked != 0 {
		t.Errorf("%+v", s)
	}
}

func TestManyParkAtOnceOnFewThreads(t *testing.T) {
	if !inChild(t, 100*time.Second, inPlace) {
		return
	}
	mem := mini(t)
	n := 4000
	if os.Getenv("UFFDPAGER_TORTURE") != "" {
		n = 100_000
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			o := i % miniPages * miniPage
			if i%3 == 0 {
				if b := bytes.Clone(mem[o : o+miniPage]); !bytes.Equal(b, want(o, miniPage)) {
					t.Errorf("page %d", i)
				}
			} else if touch(mem, o) != want(o, 1)[0] {
				t.Errorf("page %d", i)
			}
		}()
	}
	var ps []Parked
	for len(ps) < n {
		ps = NextParked(ps)
	}
	var ms runtime.MemStats
	collected := time.Hour // the best of three
	for range 3 {
		start := time.Now()
		runtime.GC()
		collected = min(collected, time.Since(start))
	}
	if n == 100_000 && collected > 200*time.Millisecond {
		t.Errorf("a collection with %d goroutines parked takes %v at best", n, collected)
	}
	runtime.ReadMemStats(&ms)
	t.Logf("%d parked: a collection takes %v, stacks %d bytes each", n, collected, ms.StackInuse/uint64(n))
	tasks, _ := os.ReadDir("/proc/self/task")
	if len(tasks) > 20 {
		t.Errorf("%d threads for %d parked goroutines", len(tasks), n)
	}
	buf := make([]byte, 1<<20)
	if s := string(buf[:runtime.Stack(buf, true)]); !strings.Contains(s, "[IO wait]:\ngithub.com/uffdpager/uffdpager/coro.waitForPage") || !strings.Contains(s, "coro.touch") {
		t.Errorf("a traceback does not say what the goroutines wait for:\n%s", s[:min(len(s), 3000)])
	}
	for _, p := range ps {
		p.Resume(miniLoad(p.Fault))
	}
	wg.Wait()
	if s := ReadStats(); s.Parked < uint64(n) || s.Blocked != 0 {
		t.Errorf("%+v", s)
	}
}

func TestResumeTwicePanics(t *testing.T) {
	if !inChild(t, 60*time.Second, inPlace) {
		return
	}
	mem := mini(t)
	done := make(chan byte)
	go func() { done <- touch(mem, 0) }()
	ps := NextParked(nil)
	ps[0].Resume(miniLoad(ps[0].Fault))
	<-done
	defer func() {
		if recover() == nil {
			t.Error("the second Resume was accepted")
		}
	}()
	ps[0].Resume(0)
}

func TestWakeParkedEndsTheWait(t *testing.T) {
	needTrap(t)
	for range 100 {
		done := make(chan int)
		go func() { done <- len(NextParked(nil)) }()
		if runtime.Gosched(); true {
			WakeParked()
		}
		if n := <-done; n != 0 {
			t.Fatalf("%d parked goroutines from nowhere", n)
		}
	}
}

// Ways to call code that are not a plain goroutine.
func TestFaultsInUnusualGoroutines(t *testing.T) {
	if !inChild(t, 60*time.Second, inPlace) {
		return
	}
	mem := miniPark(t, 100*time.Microsecond)
	stop := gcLoop()
	defer stop()
	page := 0
	next := func() int { page++; return page * miniPage }
	check := func(t *testing.T, o int) {
		t.Helper()
		if touch(mem, o+3) != want(o+3, 1)[0] || !bytes.Equal(bytes.Clone(mem[o+miniPage:o+2*miniPage]), want(o+miniPage, miniPage)) {
			t.Errorf("wrong bytes at %d", o)
		}
	}
	t.Run("iter.Pull", func(t *testing.T) {
		seq := func(yield func(byte) bool) {
			for {
				o := next()
				if !yield(touch(mem, o) - want(o, 1)[0]) {
					return
				}
			}
		}
		pull, end := iter.Pull(iter.Seq[byte](seq))
		for range 100 {
			if v, ok := pull(); !ok || v != 0 {
				t.Fatalf("got %d, %v", v, ok)
			}
		}
		end()
	})
	t.Run("synctest", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			go func() { check(t, next()); page++; time.Sleep(time.Second) }()
			synctest.Wait()
			time.Sleep(2 * time.Second)
			if d := time.Since(start); d != 2*time.Second {
				t.Errorf("the bubble's clock went %v", d)
			}
		})
	})
	t.Run("locked to its thread", func(t *testing.T) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		check(t, next())
		page++
	})
	t.Run("deferred while panicking", func(t *testing.T) {
		defer func() { recover() }()
		defer func() { check(t, next()); page++ }()
		panic("x")
	})
	t.Run("finalizer and AfterFunc", func(t *testing.T) {
		done := make(chan bool, 2)
		o1, o2 := next(), next()
		x := &struct{ b [64]byte }{}
		runtime.SetFinalizer(x, func(any) { done <- touch(mem, o1) == want(o1, 1)[0] })
		x = nil
		time.AfterFunc(time.Millisecond, func() { done <- touch(mem, o2) == want(o2, 1)[0] })
		for range 2 {
			if !<-done {
				t.Error("wrong byte")
			}
		}
	})
	t.Run("lock held", func(t *testing.T) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		n := 0
		for range 10 {
			o := next()
			wg.Add(1)
			go func() {
				defer wg.Done()
				mu.Lock()
				defer mu.Unlock()
				if touch(mem, o) == want(o, 1)[0] {
					n++
				}
			}()
		}
		wg.Wait()
		if n != 10 {
			t.Errorf("%d of 10", n)
		}
	})
	t.Run("channel of large elements", func(t *testing.T) {
		c := make(chan [512]byte)
		o, p := next(), next()
		go func() { c <- *(*[512]byte)(unsafe.Pointer(&mem[o])) }()
		*(*[512]byte)(unsafe.Pointer(&mem[p])) = <-c
		if !bytes.Equal(mem[p:p+512], want(o, 512)) || !bytes.Equal(mem[p+512:p+1024], want(p+512, 512)) {
			t.Error("wrong bytes")
		}
	})
}

// backward is how a memmove is made to go backward with the direction flag set,
// which it does without AVX only.
const backward = "GODEBUG=cpu.avx=off"

// A backward memmove sets the direction flag; overlapping operands must come
// out right wherever it is interrupted.
func TestOverlappingCopiesWithMissingPages(t *testing.T) {
	for _, env := range []string{"GODEBUG=", backward} {
		t.Run(env, func(t *testing.T) {
			if inChild(t, 60*time.Second, inPlace, env) {
				overlappingCopies(t, miniPark(t, 0))
			}
		})
	}
}

func overlappingCopies(t *testing.T, mem []byte) {
	for _, size := range []int{300, 2049, 5000, 40000} {
		for _, d := range []int{1, 3, 8, 64, 4096, 5000} {
			for _, al := range []int{0, 5} {
				for _, up := range []bool{false, true} {
					miniReset(10, 20)
					o := 10*miniPage + 1000 + al
					w := want(o, size+d)
					if up {
						copy(w[d:], w[:size])
						copy(mem[o+d:o+d+size], mem[o:o+size])
					} else {
						copy(w[:size], w[d:])
						copy(mem[o:o+size], mem[o+d:o+d+size])
					}
					if !bytes.Equal(w, mem[o:o+size+d]) {
						t.Fatalf("size %d, distance %d, up %v", size, d, up)
					}
				}
			}
		}
	}
}

// A copy that fails while it goes backward must not leave the direction flag
// set for the code that handles its failure: Go takes it for clear.
func TestFailedBackwardCopy(t *testing.T) {
	for _, mode := range []string{inPlace, "UFFDPAGER_TEST_MODE=block"} {
		t.Run(mode, func(t *testing.T) {
			if !inChild(t, 60*time.Second, mode, backward) {
				return
			}
			mem := miniPark(t, 0)
			src := bytes.Repeat([]byte("abcdefgh"), miniPage)
			for round := range 20 {
				miniReset(0, 8)
				bare.Store32(&miniState[2], miniFail)
				dst := make([]byte, len(src)+64)
				func() {
					defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
					defer func() {
						if recover() == nil {
							t.Error("no fault")
						}
						copy(dst[round:], src) // forward, by REP MOVSQ or MOVSB
					}()
					copy(mem[miniPage+8:4*miniPage+8], mem[miniPage:4*miniPage])
				}()
				if !bytes.Equal(dst[round:round+len(src)], src) {
					t.Fatal("the copy after the fault went backward")
				}
			}
		})
	}
}

func TestRestartDeliversEveryWait(t *testing.T) {
	if !inChild(t, 60*time.Second, "UFFDPAGER_PARK=restart") {
		return
	}
	mem := mini(t)
	for _, st := range []uint32{0, miniGo} {
		bare.Store32(&miniState[0], st)
		mark := Seq()
		addr, faulted := faultAddr(func() { touch(mem, 12) })
		if _, errno, ok := Delivered(CurrentG(), mark); !faulted || addr != miniLo+12 || !ok || errno != ErrnoRestart {
			t.Fatalf("faulted %v at %#x, errno %#x (%v)", faulted, addr, errno, ok)
		}
	}
}

func TestParkingCanBeSwitchedOff(t *testing.T) {
	needTrap(t)
	for _, c := range []struct{ env, why string }{
		{"UFFDPAGER_PARK=block", "UFFDPAGER_PARK=block"},
		{"UFFDPAGER_PARK=nonsense", "unknown park mode"},
		{"GODEBUG=asyncpreemptoff=1", "asyncpreemptoff"},
	} {
		t.Run(c.env, func(t *testing.T) {
			if !inChild(t, 60*time.Second, c.env) {
				return
			}
			active, why := ParkStatus()
			if active || !strings.Contains(why, c.why) {
				t.Fatalf("active %v, %q", active, why)
			}
			if strings.HasPrefix(c.env, "GODEBUG") {
				err := AddArena(ArenaConfig{Lo: 1 << 20, Hi: 2 << 20, Decide: miniDecide, Mode: Require})
				if err == nil || !strings.Contains(err.Error(), c.why) {
					t.Fatalf("mode require was accepted: %v", err)
				}
			}
		})
	}
}

func TestOnlyKnownReleasesAreAllowed(t *testing.T) {
	for v, ok := range map[string]bool{
		"go1.25": true, "go1.25.0": true, "go1.26.8": true, "go1.27.13": true, "go1.26.3 X:simd": true, "go1.26.3 X:jsonv2,simd": true, "go1.26.8-X:simd": true,
		"go1.24.9": false, "go1.28.0": false, "go1.2": false, "go1.270": false, "go1.27rc1": false, "go1.26.": false,
		"go1.26.1-custom": false, "go1.26.1b4": false, "devel go1.27-abc": false, "go1.26.3 X:arenas": false, "go1.26.3 X:simd,foo": false,
		"go1.26.8-X:nocoverageredesign": false, "": false,
	} {
		if _, err := releaseOf(v); (err == nil) != ok {
			t.Errorf("%q: %v", v, err)
		}
	}
}

// Blocked faults are counted with function and reason.
func TestBlockedFaultsAreNamed(t *testing.T) {
	if !inChild(t, 60*time.Second, inPlace) {
		return
	}
	mem := miniPark(t, 0)
	for i := range 10 {
		if _, err := everyday(mem, i*everydayPages); err != nil {
			t.Fatal(err)
		}
	}
	s := ReadStats()
	var sum uint64
	for _, b := range s.BlockedBy {
		sum += b.Count
		if b.Func == "" || b.Reason == parkedOK {
			t.Errorf("%+v", b)
		}
	}
	if sum != s.Blocked || !slices.ContainsFunc(s.BlockedBy, func(b Blocked) bool { return strings.Contains(b.Func, "sha256") && b.Reason == Refused }) {
		t.Errorf("%+v", s)
	}
	t.Log(fmt.Sprint(s))
}
