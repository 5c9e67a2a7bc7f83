//go:build !race

// With the detector everything around the calls is so slow that hardly a stop
// hits one.

package coro

import (
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// stoppedInside stops the world again and again while a goroutine is in code that
// must not be stopped, mostly, until it was stopped there, or most attempts were
// made, or enough time has passed. It returns how many attempts were made, and the
// stack of the goroutine that was stopped there, or "".
func stoppedInside(between func(func()), most int, enough time.Duration) (stops int, inside string) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var done atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !done.Load() {
			between(unstoppable)
		}
	}()
	defer func() { done.Store(true); <-ended }()
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(enough); inside == "" && stops < most && time.Now().Before(end); stops++ {
		all := string(buf[:runtime.Stack(buf, true)]) // stops the world
		for _, g := range strings.Split(all, "\n\n") {
			if strings.Contains(g, "coro.unstoppable") {
				inside = g
			}
		}
	}
	return stops, inside
}

// unstoppable is as pager's code is that leaves a page in a state between: nosplit
// functions that call nosplit functions. It takes long enough for the scheduler to
// ask some times over.
//
//go:noinline
//go:nosplit
func unstoppable() {
	for range 50_000 {
		unstoppableToo(1)
	}
}

//go:noinline
//go:nosplit
func unstoppableToo(n uintptr) uintptr {
	var frame [8]uintptr
	unstoppableLeaf(&frame)
	return frame[n]
}

//go:noinline
//go:nosplit
func unstoppableLeaf(p *[8]uintptr) { p[1]++ }

// TestUnstopped: the world does not stop with a goroutine between Unstopped and
// Stoppable. That it does without them, although all functions are nosplit, is
// what they are for, and shows that the test would see it: both are tried in turns,
// for it depends on which CPUs the threads happen to be, and each time with more
// often than it took without.
func TestUnstopped(t *testing.T) {
	var all [2]int // attempts without and with Unstopped
	for range 6 {
		without, inside := stoppedInside(func(f func()) { f() }, math.MaxInt, 20*time.Second)
		if inside == "" {
			t.Fatalf("never stopped in a nosplit function, in %d attempts: is Unstopped still needed?", without)
		}
		with, inside := stoppedInside(func(f func()) {
			held := Unstopped()
			f()
			Stoppable(held)
		}, max(3*without, 200), 60*time.Second)
		all[0], all[1] = all[0]+without, all[1]+with
		if inside != "" {
			t.Fatalf("stopped at the %d. attempt in\n%s", all[1], inside)
		}
	}
	t.Logf("stopped in a nosplit function at 6 of %d attempts, with Unstopped at none of %d", all[0], all[1])
}
