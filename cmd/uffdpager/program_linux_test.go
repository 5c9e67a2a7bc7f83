package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests in the files program_*_test.go run the program as its users do: the
// binary, in a process of its own, with a deadline.

var built struct {
	once sync.Once
	dir  string
	path string
	err  error
}

func TestMain(m *testing.M) {
	status := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(status)
}

// programDeadline is far beyond what any of these runs takes.
const programDeadline = 2 * time.Minute

func buildProgram(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "uffdpager-test-"); built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "uffdpager")
		out, err := exec.Command("go", "build", "-o", built.path, ".").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("go build: %v\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// program prepares a run of the binary in a directory of its own, which is also
// that of temporary files.
func program(t *testing.T, args ...string) (cmd *exec.Cmd, dir string, stdout, stderr *bytes.Buffer) {
	t.Helper()
	path := buildProgram(t)
	// Not below the directory for temporary files: that may be in memory.
	dir, err := os.MkdirTemp(".", ".test-")
	if err != nil {
		dir = t.TempDir()
	} else if dir, err = filepath.Abs(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), programDeadline)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, path, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // with a dump of where it hangs
	cmd.WaitDelay = 5 * time.Second
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, dir, stdout, stderr
}

// statusOf waits for a command that was started.
func statusOf(t *testing.T, err error, stderr *bytes.Buffer) int {
	t.Helper()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		if exit.ExitCode() > 2 {
			t.Fatalf("exit status %d\n%s", exit.ExitCode(), stderr)
		}
		return exit.ExitCode()
	}
	t.Fatalf("%v\n%s", err, stderr)
	return -1
}

func runProgram(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd, _, out, errs := program(t, args...)
	status = statusOf(t, cmd.Run(), errs)
	return status, out.String(), errs.String()
}

// oneObject decodes exactly one JSON object.
func oneObject[T any](t *testing.T, s string) (v T) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(s))
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%v in %q", err, s)
	}
	if dec.More() {
		t.Fatalf("more than one object in %q", s)
	}
	return v
}

// mustRun runs the program with --json and checks what is true of every good
// run.
func mustRun(t *testing.T, args ...string) report {
	t.Helper()
	status, stdout, stderr := runProgram(t, append([]string{"run", "--json", "--idle", "20ms"}, args...)...)
	if status != exitDone {
		t.Fatalf("run %s: status %d\n%s%s", strings.Join(args, " "), status, stderr, stdout)
	}
	if stderr != "" {
		t.Errorf("run %s: not quiet: %q", strings.Join(args, " "), stderr)
	}
	r := oneObject[report](t, stdout)
	checkReport(t, r)
	return r
}

func checkReport(t *testing.T, r report) {
	t.Helper()
	switch {
	case r.Errors != 0 || r.Mismatches != 0 || r.Error != "":
		t.Errorf("%d errors, %d mismatches, error %q", r.Errors, r.Mismatches, r.Error)
	case r.Ops == 0:
		t.Error("no ops")
	case r.Hits > r.Ops:
		t.Errorf("%d hits in %d ops", r.Hits, r.Ops)
	case r.PeakResidentBytes > r.BudgetBytes:
		t.Errorf("%d bytes were resident under a budget of %d", r.PeakResidentBytes, r.BudgetBytes)
	case r.IO.Engine == "" || r.IO.Engine == "auto" || r.Park.Mode == "":
		t.Errorf("engine %q, park mode %q", r.IO.Engine, r.Park.Mode)
	case r.Verified != 0 && r.Verified != r.AccessedBytes:
		t.Errorf("%d bytes verified of %d accessed", r.Verified, r.AccessedBytes)
	}
}

// raw says whether the machine allows raw access, as doctor has it.
func raw(t *testing.T) bool {
	t.Helper()
	_, stdout, _ := runProgram(t, "doctor", "--json")
	return oneObject[diagnosis](t, stdout).Uses.Raw
}

func needRaw(t *testing.T) {
	t.Helper()
	if !raw(t) {
		t.Skip("userfaultfd is not to be had here, and Bytes and View need it (see uffdpager doctor)")
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
