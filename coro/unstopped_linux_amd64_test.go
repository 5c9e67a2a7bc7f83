//go:build !race

// With the detector everything around the calls is so slow that hardly a stop
// hits one.

package coro

import (
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// stoppedInside stops the world again and again while a goroutine is in code that
// must not be stopped, mostly, and reports whether it was stopped there. It looks
// no longer than enough.
func stoppedInside(between func(func()), enough time.Duration) (stops int, inside string) {
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
	for end := time.Now().Add(enough); inside == "" && time.Now().Before(end); stops++ {
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
// functions that call nosplit functions.
//
//go:noinline
//go:nosplit
func unstoppable() {
	for range 1000 {
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
// what they are for, and shows that the test would see it.
func TestUnstopped(t *testing.T) {
	stops, inside := stoppedInside(func(f func()) { f() }, 20*time.Second)
	if inside == "" {
		t.Errorf("never stopped in a nosplit function, in %d attempts: is Unstopped still needed?", stops)
	}
	t.Logf("stopped in a nosplit function at the %d. attempt", stops)
	stops, inside = stoppedInside(func(f func()) {
		held := Unstopped()
		f()
		Stoppable(held)
	}, 2*time.Second)
	if inside != "" {
		t.Errorf("stopped at the %d. attempt in\n%s", stops, inside)
	}
	t.Logf("not in %d attempts with Unstopped", stops)
}
