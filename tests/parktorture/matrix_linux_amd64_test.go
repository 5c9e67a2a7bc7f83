package main

import (
	"bytes"
	"context"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// cell is one way to build and run the torture.
type cell struct {
	name    string
	env     string // space separated, for building and running
	build   string // flags of go build, separated by bars
	run     string // flags of the torture
	short   bool   // also without UFFDPAGER_TORTURE
	rebuild bool   // compiles the standard library anew
	fails   bool   // a negative control
	off     bool   // nothing is parked
}

// The releases are those that parking is allowed in; "local" is the one that
// runs this test.
var releases = []string{"local", "go1.25.0", "go1.27.0"}

// newest are the last patch releases that the audit has seen.
var newest = []string{"go1.25.14", "go1.26.11", "go1.27.4"}

const negative = "-tags=uffdpager_negative"

func matrix() (cells []cell) {
	for _, rel := range releases {
		tc, local := "GOTOOLCHAIN="+rel, rel == "local"
		if local {
			tc = "GOTOOLCHAIN=" + runtime.Version()
		}
		here := []cell{
			{name: "plain", run: "-max-blocked 0.2", short: local},
			{name: "one P", env: "GOMAXPROCS=1", short: local},
			{name: "eight Ps", env: "GOMAXPROCS=8", run: "-latency 1ms"},
			{name: "no framed assembly", run: "-ops 4095 -max-blocked 0.001"},
			{name: "threads of C", env: "CGO_ENABLED=1", run: "-cthreads 4"},
			{name: "race", build: "-race", rebuild: true},
			{name: "race, threads of C", env: "CGO_ENABLED=1", build: "-race", run: "-cthreads 4", rebuild: true},
			{name: "pie", build: "-buildmode=pie", rebuild: true},
			{name: "stripped", build: "-ldflags=-s -w"},
			{name: "random layout", build: "-ldflags=-randlayout=3"},
			{name: "GOAMD64=v3", env: "GOAMD64=v3", rebuild: true},
			{name: "no AVX in Go", env: "GODEBUG=cpu.avx=off,cpu.avx2=off"},
			{name: "clobberfree", env: "GODEBUG=clobberfree=1"},
			{name: "stop-the-world collections", env: "GODEBUG=gcstoptheworld=1"},
			{name: "profile and trace", run: "-profile -trace"},
			{name: "registers hidden from the collector", env: "UFFDPAGER_NEGATIVE=hide-registers", run: "-latency 2ms", build: negative, fails: true, short: local},
			{name: "restoring SSE only", env: "UFFDPAGER_NEGATIVE=sse-only", build: negative, fails: true, short: local},
			{name: "without asyncSafePoint", env: "UFFDPAGER_NEGATIVE=clear-asp", build: negative, fails: true, short: local},
			{name: "direction flag kept", env: "UFFDPAGER_NEGATIVE=keep-direction GODEBUG=cpu.avx=off", build: negative, fails: true},
			{name: "leaves parked in unasked", env: "UFFDPAGER_NEGATIVE=assume-leaves", build: negative, fails: true},
		}
		if rel == "go1.27.0" {
			here = append(here, cell{name: "without g.xRegs", env: "UFFDPAGER_NEGATIVE=no-xregs", build: negative, fails: true})
		}
		for _, c := range here {
			c.name, c.env = rel+", "+c.name, strings.TrimSpace(tc+" "+c.env)
			if c.run += " -must-park"; rel == "go1.25.0" && strings.Contains(c.run, "0.001") {
				// Its duffcopy keeps BP below SP and cannot be parked in.
				c.run = strings.Replace(c.run, "-ops 4095", "-ops 3967", 1)
			}
			cells = append(cells, c)
		}
	}
	for _, rel := range newest {
		cells = append(cells, cell{name: rel, env: "GOTOOLCHAIN=" + rel, run: "-must-park"})
	}
	return append(cells,
		cell{name: "local, simd", env: "GOEXPERIMENT=simd", run: "-must-park", rebuild: true},
		cell{name: "local, jsonv2", env: "GOEXPERIMENT=jsonv2", run: "-must-park", rebuild: true},
		cell{name: "go1.25.0, jsonv2", env: "GOTOOLCHAIN=go1.25.0 GOEXPERIMENT=jsonv2", run: "-must-park"},
		cell{name: "go1.27.0, simd", env: "GOTOOLCHAIN=go1.27.0 GOEXPERIMENT=simd", run: "-must-park"},
		// Where parking is off everything must work by blocking.
		cell{name: "local, asyncpreemptoff", env: "GODEBUG=asyncpreemptoff=1", off: true},
		cell{name: "local, gccheckmark", env: "GODEBUG=gccheckmark=1", off: true},
		cell{name: "local, mode block", env: "UFFDPAGER_PARK=block", off: true},
		cell{name: "local, nointernals", build: "-tags=uffdpager_nointernals", off: true},
		// A runtime compiled to other code, as that of an unknown patch release.
		cell{name: "local, another runtime", build: "-gcflags=runtime=-l", off: true, rebuild: true},
	)
}

var which = flag.String("cells", "", "which cells run: short, local (those of this release that need no other standard library), all; default: short, or all with UFFDPAGER_TORTURE")

func (c cell) selected() bool {
	switch *which {
	case "short":
		return c.short
	case "local":
		return strings.HasPrefix(c.name, "local") && !c.rebuild
	case "all":
		return true
	}
	return c.short || os.Getenv("UFFDPAGER_TORTURE") != ""
}

//go:embed skips.txt
var skips string

// maySkip says whether a cell that printed this may be skipped.
func (c cell) maySkip(out []byte) bool {
	for line := range strings.Lines(skips) {
		pattern, text, ok := strings.Cut(strings.TrimSpace(line), "|")
		if !ok || strings.HasPrefix(pattern, "#") {
			continue
		}
		if fits, _ := path.Match(strings.TrimSpace(pattern), c.name); fits && bytes.Contains(out, []byte(strings.TrimSpace(text))) {
			return true
		}
	}
	return false
}

func TestMatrix(t *testing.T) {
	each := 2 * time.Second
	if os.Getenv("UFFDPAGER_TORTURE") != "" {
		each = 20 * time.Second
	}
	if s := os.Getenv("UFFDPAGER_TORTURE_TIME"); s != "" {
		var err error
		if each, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go command: ", err)
	}
	var table bytes.Buffer
	b := builds{dir: t.TempDir()}
	for _, c := range matrix() {
		if !c.selected() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			verdict := "FAILED"
			defer func() { fmt.Fprintf(&table, "| %s | %s |\n", c.name, verdict) }()
			var out []byte
			if verdict, out = c.try(t, &b, each); verdict != "" {
				return
			}
			verdict = fmt.Sprintf("skipped: %s", bytes.TrimSpace(out))
			if !c.maySkip(out) {
				t.Fatalf("%s, which is not in skips.txt", verdict)
			}
			t.Skip(verdict)
		})
	}
	t.Logf("\n%s", &table)
	if strings.Contains(table.String(), "| skipped: ") && !testing.Verbose() {
		fmt.Fprintf(os.Stderr, "skipped cells of the matrix:\n%s", &table)
	}
}

// builds keeps the programs, for many cells run the same one.
type builds struct {
	dir  string
	done map[string]string
}

func (b *builds) build(c cell) (bin string, out []byte, err error) {
	var env []string
	for _, e := range strings.Fields(c.env) {
		if strings.HasPrefix(e, "GO") && !strings.HasPrefix(e, "GODEBUG=") && !strings.HasPrefix(e, "GOMAXPROCS=") || strings.HasPrefix(e, "CGO_") {
			env = append(env, e)
		}
	}
	key := fmt.Sprint(c.build, env)
	if bin := b.done[key]; bin != "" {
		return bin, nil, nil
	}
	bin = filepath.Join(b.dir, fmt.Sprint("torture", len(b.done)))
	args := []string{"build", "-o", bin}
	if c.build != "" {
		args = append(args, strings.Split(c.build, "|")...)
	}
	build := exec.Command("go", append(args, ".")...)
	build.Env = append(os.Environ(), env...)
	if out, err := build.CombinedOutput(); err != nil {
		return "", out, err
	}
	if b.done == nil {
		b.done = map[string]string{}
	}
	b.done[key] = bin
	return bin, nil, nil
}

// try runs the cell. A verdict of "" is a cell that says in out why it cannot
// run here.
func (c cell) try(t *testing.T, b *builds, each time.Duration) (verdict string, out []byte) {
	bin, out, err := b.build(c)
	if err != nil {
		if c.maySkip(out) {
			return "", out
		}
		t.Fatalf("build: %v\n%s", err, out)
	}
	if c.fails {
		each = max(each, 20*time.Second) // it ends as soon as it fails
	}
	ctx, cancel := context.WithTimeout(t.Context(), each+3*time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, bin, append([]string{"-dur", each.String()}, strings.Fields(c.run)...)...)
	run.Env = append(os.Environ(), strings.Fields(c.env)...)
	out, err = run.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last := lines[len(lines)-1]
	switch {
	case strings.HasPrefix(last, "SKIP"):
		return "", out
	case c.fails:
		if err == nil {
			t.Fatalf("it passes with a safety step left out:\n%s", out)
		}
		for _, l := range lines {
			if strings.HasPrefix(l, "WRONG") || strings.HasPrefix(l, "fatal error") || strings.Contains(l, "self-test") {
				return "fails, as it must: " + l, nil
			}
		}
		return "fails, as it must", nil
	case err != nil || !strings.HasPrefix(last, "PASS") || c.off && !strings.Contains(last, " parked 0,"):
		t.Fatalf("%v\n%s", err, out[max(0, len(out)-20000):])
	}
	return last, nil
}

func TestOnlyListedReasonsSkipACell(t *testing.T) {
	for _, c := range []struct {
		cell, out string
		may       bool
	}{
		{"local, race", "go: -race requires cgo; enable cgo by setting CGO_ENABLED=1", true},
		{"local, plain", "go: -race requires cgo; enable cgo by setting CGO_ENABLED=1", false},
		{"local, plain", "SKIP: userfaultfd: operation not permitted", true},
		{"local, plain", "SKIP: something new", false},
		{"go1.27.0, plain", "go: download go1.27.0 for linux/amd64: toolchain not available", true},
		{"local, plain", "", false},
	} {
		if got := (cell{name: c.cell}).maySkip([]byte(c.out)); got != c.may {
			t.Errorf("%s: %q may be skipped: %v", c.cell, c.out, got)
		}
	}
}
