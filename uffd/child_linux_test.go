package uffd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What changes the whole process (a mask, its rights, mlockall) or may hang it
// runs in a child: the test binary again, with childEnv naming the function.
const childEnv = "UFFD_TEST_CHILD"

var children = map[string]func() error{}

func TestMain(m *testing.M) {
	name := os.Getenv(childEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	err := errors.New("no such child")
	if f := children[name]; f != nil {
		err = f()
	}
	var skip skipped
	switch {
	case errors.As(err, &skip):
		fmt.Println("SKIP", skip)
	case err != nil:
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// skipped is the error of a child that cannot test anything here.
type skipped string

func (s skipped) Error() string { return string(s) }

// runChild runs children[name] with a deadline and fails the test with what it
// printed unless it succeeds.
func runChild(t *testing.T, name, features string, attr *syscall.SysProcAttr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// By its name in /proc the binary can be executed by a user who may not
	// enter the directory it lies in.
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+name, MaskEnv+"="+features,
		"GORACE=atexit_sleep_ms=0") // or each child of a -race test takes a second to end
	cmd.SysProcAttr = attr
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v %v: %s", ctx.Err(), err, out)
	}
	if reason, ok := strings.CutPrefix(string(out), "SKIP "); ok {
		t.Skip(reason)
	}
}
