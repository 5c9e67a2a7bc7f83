package model

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// drawn is a chooser whose choices rapid shrinks.
type drawn struct{ *rapid.T }

// intn draws short ranges evenly and long ones as rapid likes to: near the ends.
func (d drawn) intn(n int, what string) int {
	if n <= len(even) {
		return rapid.SampledFrom(even[:n]).Draw(d.T, what)
	}
	return rapid.IntRange(0, n-1).Draw(d.T, what)
}

var even = func() (list [256]int) {
	for i := range list {
		list[i] = i
	}
	return list
}()

// drawSpec draws a small world: what fails should fail small.
func drawSpec(c chooser, writes bool) spec {
	s := spec{writes: writes, engine: []aio.Kind{aio.Auto, aio.Threads}[c.intn(2, "engine")]}
	pages := []int{4 << 10, 4 << 10, 4 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10, 2 << 20}
	stores := kinds
	if c.intn(4, "failing stores") == 3 {
		stores = append(failing[:len(failing):len(failing)], kinds...)
	}
	s.pagers = 1 + c.intn(2, "pagers - 1")
	largest := int64(0)
	for i := range 1 + c.intn(4, "regions - 1") {
		r := regionSpec{
			kind:     stores[c.intn(len(stores), "kind")],
			page:     pages[c.intn(len(pages), "page")],
			evict:    []string{"", "fifo", "own s3fifo"}[c.intn(3, "evict")],
			prefetch: []string{"", "next"}[c.intn(2, "prefetch")],
		}
		if i > 0 && r.page > 64<<10 {
			r.page = 4 << 10
		}
		r.size = 1 + int64(c.intn(40*r.page, "size"))
		if writes {
			r.private = c.intn(4, "private") == 3
			r.readOnly = !r.private && c.intn(6, "read-only") == 5
			r.atomic = (r.kind == "file" || r.kind == "cached") && !r.private && !r.readOnly && c.intn(3, "atomic") == 2
			if r.kind != "reader" && !r.private && !r.readOnly && c.intn(3, "grows") == 2 {
				r.maxSize = r.size + int64(c.intn(8*r.page, "room to grow"))
			}
		}
		largest = max(largest, int64(r.page))
		s.regions = append(s.regions, r)
	}
	s.least = largest * int64(4+c.intn(12, "pages"))
	s.budget = s.least + largest*int64(c.intn(24, "more pages"))
	return s
}

// TestSequential runs random histories one operation at a time and shrinks what
// fails.
func TestSequential(t *testing.T) {
	seed := fixture.Seed(t)
	for _, procs := range []int{1, 2} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: procs, Deadline: duration(90*time.Second, 15*time.Minute)}) {
				return
			}
			sequential(t, seed, duration(3*time.Second, 5*time.Minute))
		})
	}
}

// sequential checks histories for about as long as told, by rounds, each with
// a seed of its own.
func sequential(t *testing.T, seed uint64, lasts time.Duration) {
	writes := writesSupported(t)
	set := func(name, value string) {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	set("rapid.nofailfile", "true")
	set("rapid.shrinktime", "20s")
	set("rapid.checks", "5")
	dir := t.TempDir()
	n := 0
	for end := time.Now().Add(lasts); time.Now().Before(end) && !t.Failed(); seed++ {
		set("rapid.seed", strconv.FormatUint(seed|1<<40, 10)) // 0 would be random
		// The process may die: then these two lines say what of.
		fmt.Printf("history seed %d; replay with -seed %d\n", seed, seed)
		rapid.Check(t, func(rt *rapid.T) {
			n++
			history(rt, dir, writes)
		})
	}
	t.Logf("%d histories", n)
}

func history(rt *rapid.T, dir string, writes bool) {
	c := drawn{rt}
	dir, err := os.MkdirTemp(dir, "world")
	if err != nil {
		rt.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sp := drawSpec(c, writes)
	w, err := newWorld(dir, sp, 1)
	if err != nil {
		rt.Fatalf("%v: %v", sp, err)
	}
	a := newActor(c, w, 0)
	// rapid panics out of Draw when it gives up on an attempt: close anyway.
	closed := false
	defer func() {
		if !closed {
			if a.held != nil {
				a.held.pin.Release()
			}
			for _, r := range w.regions {
				if r.faults {
					r.slow.Clear()
				}
			}
			_ = w.close()
		}
	}()
	w.allowHold()
	for range c.intn(200, "operations") {
		if err := a.do(); err != nil {
			stats, _ := w.stats()
			rt.Fatalf("%v\nworld: %v\nlast operations:\n\t%s\n%v", err, sp, strings.Join(a.history(), "\n\t"), stats)
		}
		if c.intn(16, "collect") == 15 {
			runtime.GC()
		}
	}
	if err := a.finish(); err != nil {
		rt.Fatalf("a held pin: %v\nworld: %v", err, sp)
	}
	if err := w.sweep(); err != nil {
		rt.Fatalf("%v\nworld: %v", err, sp)
	}
	closed = true
	if err := w.close(); err != nil {
		rt.Fatalf("%v\nworld: %v", err, sp)
	}
}

// duration is the short one, or the long one of a torture run.
func duration(short, long time.Duration) time.Duration {
	if fixture.Torture() {
		return long
	}
	return short
}
