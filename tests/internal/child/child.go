// Package child runs a test in a process of its own, with a deadline.
//
// What may crash or hang must not take the rest of the suite with it. A test
// says so in its first line and goes on as usual:
//
//	func TestX(t *testing.T) {
//		if child.Isolate(t, child.Options{Deadline: 30 * time.Second}) {
//			return // the parent: the child has run and been judged
//		}
//		… // the child
//	}
//
// The child is the same test binary with -test.run set to exactly this test. It
// must report that very test as passed or skipped; a child that ran nothing is
// a failure. At the deadline it is asked for its goroutines (SIGQUIT), then
// killed.
package child

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// marker is set in the environment of a child to the name of its test.
const marker = "UFFDPAGER_TEST_CHILD"

// patience is how long a child gets to print its goroutines before it is
// killed.
const patience = 5 * time.Second

// Options say how a child runs. The zero value works.
type Options struct {
	Deadline time.Duration // 0: 60 s; doubled under -race
	Procs    int           // GOMAXPROCS; 0: inherited
	Env      []string      // added to the environment, "KEY=value"
	UID      uint32        // user and group to run as; 0: the same
	Args     []string      // added to the command line, after -test.run
}

// Result is what became of a child.
type Result struct {
	Output   string
	Err      error // from exec: nil for exit status 0
	TimedOut bool
}

// In reports whether this process is a child for the test t or one of its
// subtests.
func In(t testing.TB) bool {
	name := os.Getenv(marker)
	return name == t.Name() || strings.HasPrefix(name, t.Name()+"/")
}

// Isolate returns false in the child. In the parent it runs the child, fails or
// skips t as the child did, and returns true.
func Isolate(t *testing.T, o Options) bool {
	t.Helper()
	if os.Getenv(marker) == t.Name() {
		return false
	}
	r := Run(t, o)
	switch {
	case r.TimedOut:
		t.Fatalf("the child hung; its goroutines:\n%s", r.Output)
	case skipped(t, r):
		t.Skipf("the child skipped:\n%s", excerpt(r.Output))
	case r.Err != nil:
		t.Fatalf("the child failed (%v):\n%s", r.Err, excerpt(r.Output))
	case !strings.Contains(r.Output, "--- PASS: "+t.Name()+" "):
		t.Fatalf("the child did not run the test:\n%s", excerpt(r.Output))
	}
	if testing.Verbose() {
		t.Logf("child:\n%s", excerpt(r.Output))
	}
	return true
}

func skipped(t *testing.T, r Result) bool {
	return r.Err == nil && strings.Contains(r.Output, "--- SKIP: "+t.Name()+" ")
}

// Run starts the child for t and waits for it. Use it, with In, where the end
// of the child is itself what is tested.
func Run(t *testing.T, o Options) Result {
	t.Helper()
	cmd := exec.Command(binary(t, o.UID != 0), append([]string{"-test.v", "-test.run=" + pattern(t.Name())}, o.Args...)...)
	cmd.Env = append(os.Environ(), marker+"="+t.Name(), "GOTRACEBACK=all")
	if o.Procs != 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("GOMAXPROCS=%d", o.Procs))
	}
	if os.Getenv("GOCOVERDIR") == "" && testing.CoverMode() != "" {
		cmd.Env = append(cmd.Env, "GOCOVERDIR="+t.TempDir())
	}
	cmd.Env = append(cmd.Env, o.Env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// A grandchild that keeps the pipe open must not hold us.
	cmd.WaitDelay = patience
	cmd.SysProcAttr = attributes()
	if o.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: o.UID, Gid: o.UID}
		cmd.Dir = os.TempDir()
	}

	deadline := o.Deadline
	if deadline == 0 {
		deadline = time.Minute
	}
	if Race {
		deadline *= 2
	}
	// The death signal of attributes follows the thread that starts the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Fatalf("start child: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var r Result
	select {
	case r.Err = <-done:
	case <-time.After(deadline):
		r.TimedOut = true
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case r.Err = <-done:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			r.Err = <-done
		}
	}
	r.Output = out.String()
	return r
}

// pattern makes a -test.run argument that matches one test or subtest only.
func pattern(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

// excerpt keeps the beginning and the end of long output: the reason is at one
// of the two.
func excerpt(s string) string {
	const keep = 12 << 10
	if len(s) <= 2*keep {
		return s
	}
	return s[:keep] + "\n\t[…]\n" + s[len(s)-keep:]
}

var public struct {
	once sync.Once
	path string
	err  error
}

// binary is the path of this test binary; with others, of a copy that other
// users may run (the go command builds in a directory of mode 0700).
func binary(t *testing.T, others bool) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if !others {
		return self
	}
	public.once.Do(func() {
		var data []byte
		if data, public.err = os.ReadFile(self); public.err != nil {
			return
		}
		var dir string
		if dir, public.err = os.MkdirTemp("", "uffdpager-child-"); public.err != nil {
			return
		}
		if public.err = os.Chmod(dir, 0o755); public.err != nil {
			return
		}
		public.path = filepath.Join(dir, "child.test")
		public.err = os.WriteFile(public.path, data, 0o755)
	})
	if public.err != nil {
		t.Fatal(public.err)
	}
	return public.path
}

// Cleanup removes what children of other users needed. Call it at the end of
// TestMain of a package that uses Options.UID.
func Cleanup() {
	if public.path != "" {
		_ = os.RemoveAll(filepath.Dir(public.path))
	}
}
