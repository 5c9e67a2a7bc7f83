package coro

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// program builds one of the programs under testdata and runs it.
func program(t *testing.T, name string, env []string, flags ...string) (out []byte, err error) {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go command to build testdata/" + name + " with")
	}
	bin := filepath.Join(t.TempDir(), name)
	build := exec.Command("go", append(append([]string{"build", "-o", bin}, flags...), "./testdata/"+name)...)
	build.Env = append(os.Environ(), env...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, bin)
	c.Env = append(os.Environ(), env...)
	out, err = c.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s hangs\n%s", name, out)
	}
	return out, err
}

func TestDeadlockDetectorStillWorks(t *testing.T) {
	out, err := program(t, "deadlock", []string{"CGO_ENABLED=0"})
	if err == nil || !bytes.Contains(out, []byte("all goroutines are asleep")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestFaultsInC(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("there is no gcc: ", err)
	}
	for i, c := range []struct{ env, flag string }{
		{"UFFDPAGER_PARK=", "-v"},
		{"UFFDPAGER_PARK=block", "-buildmode=pie"},
		{"UFFDPAGER_PARK=", "-race"},
		{"UFFDPAGER_PARK=", "-tags=uffdpager_nointernals"},
	} {
		if i > 0 && os.Getenv("UFFDPAGER_TORTURE") == "" {
			break
		}
		out, err := program(t, "cgofault", []string{"CGO_ENABLED=1", c.env}, c.flag)
		if bytes.HasPrefix(out, []byte("SKIP")) {
			t.Skipf("%s", out)
		}
		if err != nil || !bytes.Contains(out, []byte("PASS")) {
			t.Errorf("%v: %v\n%s", c, err, out)
		} else {
			t.Logf("%v: %s", c, out)
		}
	}
}

// A third party's kernel blocks its thread until it is allowed as a leaf.
func TestThirdPartyKernel(t *testing.T) {
	if active, why := ParkStatus(); !active {
		t.Skip(why)
	}
	bin := filepath.Join(t.TempDir(), "vectorkernel")
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Dir = filepath.Join("testdata", "vectorkernel")
	build.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("proxy")) || bytes.Contains(out, []byte("dial tcp")) || bytes.Contains(out, []byte("module lookup disabled")) {
			t.Skipf("the kernel's module cannot be downloaded: %s", out)
		}
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, args := range [][]string{nil, {"allow"}} {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
		if bytes.HasPrefix(out, []byte("SKIP")) {
			t.Skipf("%s", out)
		}
		if err != nil || bytes.Contains(out, []byte("blocked 0")) != (args != nil) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
		t.Logf("%v: %s", args, out)
	}
}
