//go:build !uffdpager_nointernals

package coro

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
)

// reliedOn are the runtime's functions whose doing was read for each allowed
// release: parking and waking, asynchronous preemption and the signal handler
// on the way to it, the scanning of stacks and the moving of them.
var reliedOn = map[string]bool{
	"runtime.gopark": true, "runtime.park_m": true, "runtime.goready": true, "runtime.ready": true,
	"runtime.asyncPreempt": true, "runtime.asyncPreempt2": true, "runtime.asyncPreempt2.func1": true,
	"runtime.xRegSave": true, "runtime.xRegRestore": true, "runtime.xRegScan": true,
	"runtime.sigtramp": true, "runtime.sigtrampgo": true, "runtime.sighandler": true,
	"runtime.doSigPreempt": true, "runtime.isAsyncSafePoint": true,
	"runtime.scanstack": true, "runtime.scanframeworker": true, "runtime.scanConservative": true,
	"runtime.shrinkstack": true, "runtime.suspendG": true,
}

// prints has for each function relied on a fingerprint of its machine code:
// every instruction, without what the linker decides, which is the distance to
// whatever is outside of the function; of a call the name of the callee counts
// instead. It differs between releases that compile to different code, and with
// GOAMD64, -race and -buildmode for a few functions, so that there are several
// known ones for these. A function that is found more than once (a wrapper for
// the other calling convention has its name) has the sum.
type prints map[string]uint64

func (p prints) add(name string, entry, end uintptr) {
	if reliedOn[name] {
		p[name] += fingerprint(entry, end)
	}
}

func fingerprint(entry, end uintptr) uint64 {
	h := fnv.New64a()
	c := code(entry, int(end-entry))
	for at := 0; at < len(c); {
		in, err := decode(c, at)
		if err != nil {
			in = instruction{len: 1} // counts byte by byte
		}
		b := slices.Clone(c[at : at+in.len])
		away := in.target < 0 || in.target >= len(c)
		switch {
		case in.dispPC != 0:
			clear(b[in.dispPC : in.dispPC+4])
		case in.flow == flowCall && in.target != 0 && away, in.flow == flowJump && away:
			t := entry + uintptr(in.target)
			clear(b[1:])
			if f := runtime.FuncForPC(t); f != nil && f.Entry() == t {
				io.WriteString(h, f.Name())
			}
		}
		if b[0] != 0xcc { // the padding between functions is the linker's
			h.Write(b)
		}
		at += in.len
	}
	return h.Sum64()
}

// check compares with what is recorded for the release. A program built with a
// profile is not compared, since the compiler inlines differently then: for it
// the release must be one of those seen.
func (p prints) check(rel release) error {
	if builtWithProfile() {
		if !rel.hasSeen(runtime.Version()) {
			return fmt.Errorf("Go release %s, with a profile, is not known to work", runtime.Version())
		}
		return nil
	}
	return errors.Join(p.differences(rel)...)
}

func (rel release) hasSeen(version string) bool {
	patch := strings.TrimPrefix(strings.TrimPrefix(releasePart(version), rel.minor), ".")
	return strings.Contains(rel.seen, " "+patch+" ")
}

func (p prints) differences(rel release) (errs []error) {
	known := knownCode[rel.minor]
	for _, f := range slices.Sorted(maps.Keys(reliedOn)) {
		got, found := p[f]
		want, expected := known[f]
		switch {
		case found && !expected:
			errs = append(errs, fmt.Errorf("%s is new in %s", f, runtime.Version()))
		case !found && expected:
			errs = append(errs, fmt.Errorf("%s is gone in %s", f, runtime.Version()))
		case found && !slices.Contains(want, got):
			errs = append(errs, fmt.Errorf("%s of %s is not as known of %s: fingerprint %#x", f, runtime.Version(), rel.minor, got))
		}
	}
	return errs
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
