package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/workload"
)

// command runs a command line within the test.
func command(args ...string) (status int, stdout, stderr string) {
	var out, err bytes.Buffer
	status = execute(context.Background(), args, &out, &err)
	return status, out.String(), err.String()
}

// Wrong usage is status 2, nothing on standard output, and one line that says
// what is wrong.
func TestWrongUsage(t *testing.T) {
	for line, says := range map[string]string{
		"":                                     "give a command",
		"walk":                                 "unknown command",
		"run a b":                              "at most 1 arg",
		"doctor x":                             "unknown command",
		"run --size":                           "needs an argument",
		"run --color red":                      "unknown flag",
		"run --size 1XB":                       "unknown unit",
		"run --size 0":                         "--size",
		"run --size -1":                        "out of range",
		"run --budget 0":                       "below the smallest",
		"run --budget 16383":                   "below the smallest",
		"doctor --budget 0":                    "below the smallest",
		"run --page-size 2048":                 "power of two",
		"run --page-size 12KiB":                "power of two",
		"run --huge-pages --page-size 4KiB":    "of 2MiB",
		"run --huge-pages --write-ratio 0.5":   "reading",
		"run --page-size 4MiB":                 "power of two",
		"run --goroutines 0":                   "--goroutines",
		"run --goroutines -3":                  "--goroutines",
		"run --goroutines 1000000000":          "at most 1000000",
		"compare --goroutines 1000000000":      "at most 1000000",
		"run --workload sequential":            "unknown workload",
		"run --write-ratio 1.1":                "--write-ratio",
		"run --write-ratio -0.1":               "--write-ratio",
		"run --write-ratio NaN":                "--write-ratio",
		"run --duration 0s":                    "--duration",
		"run --duration -1s":                   "--duration",
		"run --duration 10":                    "invalid argument",
		"run --ops 0":                          "--ops",
		"run --ops 5 --duration 1s":            "exclude each other",
		"run --idle 0s":                        "--idle",
		"run --engine dma":                     "unknown engine",
		"run --park sometimes":                 "unknown park mode",
		"run --access mmap":                    "unknown access",
		"run --prefetch psychic":               "unknown prefetch policy",
		"run --prefetch record":                "needs a trace file",
		"run --prefetch replay=":               "needs a trace file",
		"run --prefetch none=x":                "takes no file",
		"run --evict lru":                      "unknown eviction policy",
		"run --seed x":                         "invalid argument",
		"run FILE --size 1MiB":                 "when FILE is not given",
		"run FILE --keep":                      "when FILE is not given",
		"run FILE --write-ratio 0.5":           "--allow-writes",
		"run --allow-writes --write-ratio 0.5": "about FILE",
		"run FILE --allow-writes":              "does nothing",
		"run --park restart --access bytes":    "restart",
		"run --park restart --access view --write-ratio 1": "twice",
	} {
		status, stdout, stderr := command(strings.Fields(line)...)
		if status != exitUsage || !strings.Contains(stderr, says) || stdout != "" {
			t.Errorf("uffdpager %s: status %d, stdout %q, stderr %q; want 2 and %q", line, status, stdout, stderr, says)
		}
		last := strings.TrimSuffix(stderr, "\n")
		last = last[strings.LastIndex(last, "\n")+1:]
		if !strings.HasPrefix(last, "uffdpager: ") {
			t.Errorf("uffdpager %s: the last line is %q", line, last)
		}
	}
}

func TestHelpGoesToStandardOutput(t *testing.T) {
	for _, line := range []string{"--help", "run --help", "doctor --help", "help run"} {
		if status, stdout, stderr := command(strings.Fields(line)...); status != exitDone || stdout == "" || stderr != "" {
			t.Errorf("uffdpager %s: status %d, %d bytes of stdout, stderr %q", line, status, len(stdout), stderr)
		}
	}
}

// Every workload is explained where it is offered.
func TestHelpTeachesTheWorkloads(t *testing.T) {
	_, run, _ := command("run", "--help")
	for _, name := range strings.Split(workload.Names(), ", ") {
		if !strings.Contains(run, "\n  "+name+" ") {
			t.Errorf("run --help does not say what the workload %s is", name)
		}
	}
	_, compare, _ := command("compare", "--help")
	text, _, _ := strings.Cut(compare, "Usage:")
	_, text, _ = strings.Cut(text, "Workloads")
	for _, name := range compareWorkloads {
		if !strings.Contains(text, name) {
			t.Errorf("compare --help does not say what the workload %s is", name)
		}
	}
}
