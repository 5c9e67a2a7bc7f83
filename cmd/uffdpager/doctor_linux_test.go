package main

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/gauge"
)

// Each condition that hurts is named, and none without cause.
func TestTroubles(t *testing.T) {
	healthy := func() conditions {
		return conditions{
			machine: gauge.Machine{Memory: 64 << 30, Available: 32 << 30}, aioMax: 65536, maxMaps: 65530,
			files: 1024, space: unix.RLIM_INFINITY, raw: true, budget: 1 << 30, threads: 8,
		}
	}
	for what, change := range map[string]func(*conditions){
		"":                     func(*conditions) {},
		"seccomp":              func(c *conditions) { c.process.Seccomp, c.raw = 2, false },
		"swap":                 func(c *conditions) { c.machine.SwapTotal = 1 << 30 },
		"control group":        func(c *conditions) { c.cgroup = 1 << 30 },
		"memory":               func(c *conditions) { c.machine.Available = 1 << 29 },
		"mlockall":             func(c *conditions) { c.locksAll = true },
		"SIGBUS":               func(c *conditions) { c.busBlocked = 1 },
		"fs.aio-max-nr":        func(c *conditions) { c.aioUsed = 65500 },
		"vm.overcommit_memory": func(c *conditions) { c.overcommit = 2 },
		"vm.max_map_count":     func(c *conditions) { c.maxMaps = 1000 },
		"open files":           func(c *conditions) { c.files = 64 },
		"address space":        func(c *conditions) { c.space = 4 << 30 },
		"temporary files":      func(c *conditions) { c.tempInMemory = true },
	} {
		c := healthy()
		change(&c)
		var got []string
		for _, x := range c.troubles() {
			got = append(got, x.What)
			if x.Why == "" || x.Remedy == "" {
				t.Errorf("%s: no reason or no remedy", x.What)
			}
		}
		want := []string{what}
		if what == "" {
			want = nil
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: named %q", what, got)
		}
	}
	// A filter that lets userfaultfd through, and a limit with room, do not hurt.
	c := healthy()
	c.process.Seccomp, c.cgroup = 2, 2<<30
	if ts := c.troubles(); len(ts) > 0 {
		t.Errorf("harmless, but named: %v", ts)
	}
}
