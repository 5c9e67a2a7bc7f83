//go:build !uffdpager_nointernals

package coro

import (
	"fmt"
	"hash/fnv"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
)

// reliedOn are the runtime's functions whose doing was read for each allowed
// release: parking and waking, asynchronous preemption, the scanning of stacks
// and the moving of them.
var reliedOn = map[string]bool{
	"runtime.gopark": true, "runtime.park_m": true, "runtime.goready": true, "runtime.ready": true,
	"runtime.asyncPreempt": true, "runtime.asyncPreempt2": true, "runtime.asyncPreempt2.func1": true,
	"runtime.xRegSave": true, "runtime.xRegRestore": true, "runtime.xRegScan": true,
	"runtime.doSigPreempt": true, "runtime.isAsyncSafePoint": true, "runtime.sigtrampgo": true,
	"runtime.scanstack": true, "runtime.scanframeworker": true, "runtime.scanConservative": true,
	"runtime.shrinkstack": true, "runtime.suspendG": true,
}

// callGraph says for each function relied on which functions it calls. Unlike
// the code itself that does not depend on registers, addresses, GOAMD64, -race
// or the build mode.
type callGraph map[string]map[string]bool

func (g callGraph) add(name string, entry, end uintptr) {
	if !reliedOn[name] {
		return
	}
	if g[name] == nil {
		g[name] = map[string]bool{}
	}
	maps.Copy(g[name], callees(entry, end))
}

func (g callGraph) fingerprint() uint64 {
	h := fnv.New64a()
	for _, f := range slices.Sorted(maps.Keys(g)) {
		fmt.Fprintln(h, f, slices.Sorted(maps.Keys(g[f])))
	}
	return h.Sum64()
}

// check compares the graph with the one recorded for the release. A program
// built with a profile inlines differently and is not compared.
func (g callGraph) check(rel release) error {
	if got := g.fingerprint(); got != rel.calls && !builtWithProfile() {
		return fmt.Errorf("the runtime of %s differs from what is known of %s: fingerprint %#x, not %#x", runtime.Version(), rel.minor, got, rel.calls)
	}
	return nil
}

func builtWithProfile() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	return slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool {
		return s.Key == "-pgo" && s.Value != "" && s.Value != "off"
	})
}
