package child

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestIsolateRunsTheTestInAnotherProcess(t *testing.T) {
	parent := os.Getenv("CHILD_TEST_PARENT")
	if parent == "" {
		t.Setenv("CHILD_TEST_PARENT", "yes")
	}
	if Isolate(t, Options{Procs: 1}) {
		return
	}
	if parent != "yes" || os.Getenv("GOMAXPROCS") != "1" {
		t.Fatal("not in the child's environment")
	}
}

func TestIsolateReachesOneSubtest(t *testing.T) {
	for _, name := range []string{"a", "b (1+1)"} {
		t.Run(name, func(t *testing.T) {
			if Isolate(t, Options{}) {
				return
			}
			if name == "a" && !strings.HasSuffix(os.Getenv(marker), "/a") {
				t.Fatal("another subtest's child ran this one")
			}
		})
	}
}

func TestRunTellsFailureFromSuccess(t *testing.T) {
	if In(t) {
		t.Fatal("on purpose")
	}
	if r := Run(t, Options{}); r.Err == nil || !strings.Contains(r.Output, "on purpose") {
		t.Fatalf("a failing child was reported as %+v", r)
	}
}

func TestRunEndsAChildThatHangs(t *testing.T) {
	if In(t) {
		hang()
	}
	r := Run(t, Options{Deadline: 500 * time.Millisecond})
	if !r.TimedOut || !strings.Contains(r.Output, "child.hang") {
		t.Fatalf("no goroutines of the hanging child (timed out: %v):\n%s", r.TimedOut, r.Output)
	}
}

//go:noinline
func hang() {
	for {
		time.Sleep(time.Hour)
	}
}

func TestRunReportsACrash(t *testing.T) {
	if In(t) {
		go func() { panic("boom") }()
		time.Sleep(time.Minute)
	}
	if r := Run(t, Options{}); r.Err == nil || r.TimedOut || !strings.Contains(r.Output, "boom") {
		t.Fatalf("a crash was reported as %+v", r)
	}
}

func TestRunAsAnotherUser(t *testing.T) {
	if In(t) {
		if os.Getuid() != 65534 {
			t.Fatal("uid is", os.Getuid())
		}
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	defer Cleanup()
	if r := Run(t, Options{UID: 65534}); r.Err != nil {
		t.Fatalf("%v\n%s", r.Err, r.Output)
	}
}
