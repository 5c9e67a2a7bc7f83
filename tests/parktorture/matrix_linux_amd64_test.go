package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// cell is one way to build and run the torture.
type cell struct {
	name  string
	env   string // space separated, for building and running
	build string // flags of go build
	run   string // flags of the torture
	short bool   // also without UFFDPAGER_TORTURE
	fails bool   // a negative control
}

// The releases are those that parking is allowed in; "local" is the one that
// runs this test.
var releases = []string{"local", "go1.25.0", "go1.27.0"}

func matrix() (cells []cell) {
	for _, rel := range releases {
		tc := "GOTOOLCHAIN=" + rel
		if rel == "local" {
			tc = "GOTOOLCHAIN=" + runtime.Version()
		}
		for _, c := range []cell{
			{name: "plain", run: "-max-blocked 0.05", short: rel == "local"},
			{name: "one P", env: "GOMAXPROCS=1", short: rel == "local"},
			{name: "eight Ps", env: "GOMAXPROCS=8", run: "-latency 1ms"},
			{name: "no framed assembly", run: "-ops 2047 -max-blocked 0.001"},
			{name: "race", build: "-race"},
			{name: "pie", build: "-buildmode=pie"},
			{name: "stripped", build: "-ldflags=-s\u00a0-w"},
			{name: "random layout", build: "-ldflags=-randlayout=3"},
			{name: "GOAMD64=v3", env: "GOAMD64=v3"},
			{name: "no AVX in Go", env: "GODEBUG=cpu.avx=off,cpu.avx2=off"},
			{name: "clobberfree", env: "GODEBUG=clobberfree=1"},
			{name: "stop-the-world collections", env: "GODEBUG=gcstoptheworld=1"},
			{name: "profile and trace", run: "-profile -trace"},
			{name: "registers hidden from the collector", env: "UFFDPAGER_NEGATIVE=hide-registers", build: "-tags=uffdpager_negative", fails: true, short: rel == "local"},
			{name: "restoring SSE only", env: "UFFDPAGER_NEGATIVE=sse-only", build: "-tags=uffdpager_negative", fails: true, short: rel == "local"},
			{name: "without asyncSafePoint", env: "UFFDPAGER_NEGATIVE=clear-asp", build: "-tags=uffdpager_negative", fails: true, short: rel == "local"},
		} {
			c.name, c.env = rel+", "+c.name, strings.TrimSpace(tc+" "+c.env)
			if c.run += " -must-park"; rel == "go1.25.0" && strings.Contains(c.run, "0.001") {
				// Its duffcopy keeps BP below SP and cannot be parked in.
				c.run = strings.Replace(c.run, "-ops 2047", "-ops 1919", 1)
			}
			cells = append(cells, c)
		}
	}
	return append(cells,
		cell{name: "simd", env: "GOEXPERIMENT=simd", run: "-must-park"},
		cell{name: "jsonv2", env: "GOEXPERIMENT=jsonv2", run: "-must-park"},
		cell{name: "go1.25.0, jsonv2", env: "GOTOOLCHAIN=go1.25.0 GOEXPERIMENT=jsonv2", run: "-must-park"},
		cell{name: "go1.27.0, simd", env: "GOTOOLCHAIN=go1.27.0 GOEXPERIMENT=simd", run: "-must-park"},
		// Where parking is off everything must work by blocking.
		cell{name: "asyncpreemptoff", env: "GODEBUG=asyncpreemptoff=1"},
		cell{name: "gccheckmark", env: "GODEBUG=gccheckmark=1"},
		cell{name: "mode block", env: "UFFDPAGER_PARK=block"},
		cell{name: "nointernals", build: "-tags=uffdpager_nointernals"},
	)
}

// mayBeMissing are the reasons for which a cell may be skipped.
var mayBeMissing = []string{
	"-race requires cgo",                   // no C compiler
	"C compiler",                           // likewise
	"userfaultfd: operation not permitted", // containers
	"userfaultfd: function not implemented",
	"GOTOOLCHAIN", // no network, or a Go command that may not switch
	"toolchain not available",
}

func TestMatrix(t *testing.T) {
	torture := os.Getenv("UFFDPAGER_TORTURE") != ""
	each := 2 * time.Second
	if torture {
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
	for _, c := range matrix() {
		if !torture && !c.short {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			verdict := c.try(t, each)
			fmt.Fprintf(&table, "| %s | %s |\n", c.name, verdict)
		})
	}
	t.Logf("\n%s", &table)
}

func (c cell) try(t *testing.T, each time.Duration) string {
	env := append(os.Environ(), strings.Fields(c.env)...)
	bin := filepath.Join(t.TempDir(), "torture")
	args := []string{"build", "-o", bin}
	for _, f := range strings.Fields(strings.ReplaceAll(c.build, "\u00a0", "\x01")) {
		args = append(args, strings.ReplaceAll(f, "\x01", " "))
	}
	build := exec.Command("go", append(args, ".")...)
	build.Env = env
	if out, err := build.CombinedOutput(); err != nil {
		for _, reason := range mayBeMissing {
			if bytes.Contains(out, []byte(reason)) {
				t.Skipf("%s: %s", c.name, bytes.TrimSpace(out))
			}
		}
		t.Fatalf("build: %v\n%s", err, out)
	}
	if c.fails {
		each = max(each, 20*time.Second) // it ends as soon as it fails
	}
	ctx, cancel := context.WithTimeout(t.Context(), each+3*time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, bin, append([]string{"-dur", each.String()}, strings.Fields(c.run)...)...)
	run.Env = env
	out, err := run.CombinedOutput()
	if s := bytes.TrimSpace(out); bytes.HasPrefix(s, []byte("SKIP")) || bytes.Contains(s, []byte("\nSKIP")) {
		for _, reason := range mayBeMissing {
			if bytes.Contains(s, []byte(reason)) {
				t.Skipf("%s: %s", c.name, s)
			}
		}
		t.Fatalf("skipped for a reason that is not on the list: %s", s)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last := lines[len(lines)-1]
	if c.fails {
		if err == nil {
			t.Fatalf("it passes with a safety step left out:\n%s", out)
		}
		for _, l := range lines {
			if strings.HasPrefix(l, "WRONG") || strings.HasPrefix(l, "fatal error") || strings.Contains(l, "self-test") {
				return "fails, as it must: " + l
			}
		}
		return "fails, as it must"
	}
	if err != nil || !strings.HasPrefix(last, "PASS") {
		t.Fatalf("%v\n%s", err, out[max(0, len(out)-20000):])
	}
	return last
}
