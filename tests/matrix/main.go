// Command matrix runs the model test in many environments: Go releases,
// GOMAXPROCS, ways of waiting, I/O engines, kernels without this or that feature,
// with and without privileges, cgo, the race detector, the runtime's internals
// and the pager's own checks. Every pair of values meets in some cell; a table
// says what ran.
//
//	go run ./tests/matrix              all cells: half an hour or more
//	go run ./tests/matrix -for 3m      as many as begin within 3 minutes
//	go run ./tests/matrix -list        the cells, without running them
//	go run ./tests/matrix -run race    those whose name matches
//
// A cell that cannot run fails unless its reason stands in skips.txt. The exit
// status is 1 if a cell fails.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

//go:embed skips.txt
var skipList string

const pkg = "github.com/uffdpager/uffdpager/tests/model"

func main() {
	var (
		only  = flag.String("run", "", "only cells whose name matches this regular expression")
		list  = flag.Bool("list", false, "print the cells and stop")
		limit = flag.Duration("for", 0, "begin no cell after this time (0: no limit)")
		seed  = flag.Uint64("seed", 0, "order of the cells (0: by name; with -for a new one every day)")
		under = flag.String("exec", "", "run the cells under this program")
		verb  = flag.Bool("v", false, "print the output of every cell")
	)
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: matrix [flags]; see -help:", err)
		os.Exit(2)
	}
	skips, err := parseSkips(skipList)
	if err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
	cells := pairwise(dimensions, allowed)
	if *seed == 0 && *limit > 0 {
		*seed = uint64(time.Now().Unix() / 86400)
	}
	if *seed != 0 {
		rand.New(rand.NewPCG(*seed, 0)).Shuffle(len(cells), func(i, j int) { cells[i], cells[j] = cells[j], cells[i] })
	}
	m := &runner{skips: skips, under: *under, verbose: *verb, built: map[string]build{}}
	if m.dir, err = os.MkdirTemp("", "uffdpager-matrix-"); err == nil {
		err = os.Chmod(m.dir, 0o755) // others run what is in it
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
	defer os.RemoveAll(m.dir)
	began := time.Now()
	count := map[string]int{}
	for _, c := range cells {
		if !match.MatchString(c.String()) {
			continue
		}
		switch {
		case *list:
			fmt.Println(c)
			continue
		case *limit > 0 && time.Since(began) > *limit:
			count["not begun"]++
			continue
		}
		start := time.Now()
		how, why := m.run(c)
		count[how]++
		fmt.Printf("%-7s %5.1fs  %v%s\n", how, time.Since(start).Seconds(), c, why)
	}
	if *list {
		return
	}
	fmt.Printf("\n%d ok, %d skipped, %d failed, %d not begun, of %d cells\n", count["ok"], count["skipped"], count["FAILED"], count["not begun"], len(cells))
	if count["FAILED"] > 0 || count["ok"] == 0 {
		os.RemoveAll(m.dir)
		os.Exit(1)
	}
}

// dimensions in which cells differ; the first value of each is the usual one.
var dimensions = []dimension{
	{"go", []string{"local", "go1.25.0", "go1.27.0"}},
	{"procs", []string{"2", "1", "8"}},
	{"park", []string{"auto", "in-place", "block", "restart"}},
	{"engine", []string{"auto", "aio", "io_uring", "threads"}},
	{"features", []string{"", "-userfaultfd", "-process_madvise,-move", "-user_mode_only", "-wp", "-pagemap_scan,-poison,-wp_async"}},
	{"user", []string{"root", "nobody"}},
	{"cgo", []string{"1", "0"}},
	{"build", []string{"", "race", "uffdpager_nointernals", "uffdpager_invariants"}},
}

// allowed: the race detector needs cgo, and nobody gets a userfaultfd without
// user_mode_only.
func allowed(c cell) bool {
	return (c["build"] != "race" || c["cgo"] != "0") && (c["features"] != "-user_mode_only" || c["user"] != "nobody")
}

type runner struct {
	dir     string
	skips   []skip
	under   string
	verbose bool
	built   map[string]build
}

// build is a test binary, or why there is none.
type build struct {
	path, out string
	err       error
}

const nobody = 65534

// run builds and runs a cell.
func (m *runner) run(c cell) (how, why string) {
	if c["user"] == "nobody" && os.Getuid() != 0 {
		return m.verdict("not root: cannot become nobody", errors.New("skipped"))
	}
	b := m.build(c)
	if b.err != nil {
		return m.verdict(b.out, b.err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	args := []string{b.path, "-test.run=^TestCell$", "-test.v", "-test.timeout=150s"}
	if m.under != "" {
		args = append(strings.Fields(m.under), args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = os.TempDir()
	cmd.Env = append(os.Environ(), "UFFDPAGER_MATRIX="+c["engine"], "UFFDPAGER_PARK="+c["park"], "UFFDPAGER_FEATURES="+c["features"], "GOMAXPROCS="+c["procs"])
	attr := deathSignal()
	if c["user"] == "nobody" && attr != nil {
		attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	cmd.SysProcAttr = attr
	cmd.WaitDelay = 5 * time.Second
	runtime.LockOSThread() // whose end the child would take for ours
	out, err := cmd.CombinedOutput()
	runtime.UnlockOSThread()
	if m.verbose {
		fmt.Printf("%s", out)
	}
	if err == nil && !bytes.Contains(out, []byte("--- PASS: TestCell")) {
		err = errors.New("skipped")
	}
	if err == nil {
		if line := regexp.MustCompile(`CELL (.*)`).FindSubmatch(out); line != nil {
			return "ok", "\n               " + string(line[1])
		}
		return "FAILED", ": it does not say what was in force"
	}
	return m.verdict(string(out), err)
}

// verdict on a cell that did not pass.
func (m *runner) verdict(out string, err error) (how, why string) {
	said := regexp.MustCompile(`(?m)^.*CELL .*$`).ReplaceAllString(out, "") // what was in force is no reason
	for _, s := range m.skips {
		if s.pattern.MatchString(said) {
			return "skipped", ": " + s.why
		}
	}
	const most = 5000
	if len(out) > most {
		out = out[:most/2] + "\n[…]\n" + out[len(out)-most/2:]
	}
	return "FAILED", fmt.Sprintf(": %v\n%s", err, out)
}

// build makes the test binary of a cell, once.
func (m *runner) build(c cell) build {
	key := c["go"] + c["cgo"] + c["build"]
	if b, ok := m.built[key]; ok {
		return b
	}
	b := build{path: filepath.Join(m.dir, fmt.Sprintf("cell-%d.test", len(m.built)))}
	args := []string{"test", "-c", "-vet=off", "-o", b.path}
	switch c["build"] {
	case "":
	case "race":
		args = append(args, "-race")
	default:
		args = append(args, "-tags", c["build"])
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+c["cgo"])
	if c["go"] != "local" {
		cmd.Env = append(cmd.Env, "GOTOOLCHAIN="+c["go"])
	}
	out, err := cmd.CombinedOutput()
	b.out, b.err = string(out), err
	m.built[key] = b
	return b
}

// skip is a reason for which a cell may be left out.
type skip struct {
	pattern *regexp.Regexp
	why     string
}

// parseSkips reads skips.txt: on each line a regular expression that is looked
// for in the cell's output, a tab, and why that is no failure.
func parseSkips(text string) (list []skip, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		pattern, why, ok := strings.Cut(line, "\t")
		if !ok || strings.TrimSpace(why) == "" {
			return nil, fmt.Errorf("skips.txt: no reason on the line %q", line)
		}
		re, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("skips.txt: %w", err)
		}
		list = append(list, skip{re, strings.TrimSpace(why)})
	}
	return list, nil
}
