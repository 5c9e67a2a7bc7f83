package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
)

// A quantile of the ladder is never too short and at most a sixteenth too long.
func TestLadder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int64Range(0, int64(2*time.Hour)), 1, 300).Draw(t, "values")
		all, part := new(ladder), new(ladder)
		for i, v := range values {
			if i%2 == 0 {
				all.add(time.Duration(v))
			} else {
				part.add(time.Duration(v))
			}
		}
		all.merge(part)
		slices.Sort(values)
		q := rapid.Float64Range(0, 1).Draw(t, "q")
		exact := values[min(int(q*float64(len(values))), len(values)-1)]
		got := int64(all.quantile(q))
		if got < exact || float64(got) > float64(max(exact, 16))*(1+1.0/16)+1 {
			t.Fatalf("quantile %v is %d, not %d", q, got, exact)
		}
		if all.count != uint64(len(values)) || all.max != values[len(values)-1] {
			t.Fatalf("%d values, at most %d", all.count, all.max)
		}
	})
}

func TestFioReport(t *testing.T) {
	const report = `fio: a warning comes first
{"jobs":[{"error":0,"usr_cpu":5.0,"sys_cpu":15.0,"ctx":500,"majf":1,"job_runtime":2000,
"read":{"iops":50000,"total_ios":100000,"clat_ns":{"max":9000000,"percentile":{"50.000000":700000,"99.000000":3000000}}}}]}`
	for each, want := range map[int64]map[string]float64{ // blocks of a read
		1:   {mOps: 50000, mMisses: 50000, mP50: 700, mP99: 3000, mMax: 9000, mCPU: 4, mCPUOp: 4, mSwitches: 0.005},
		256: {mOps: 12_800_000, mMisses: 12_800_000, mP50: 700, mCPU: 4. / 256, mCPUOp: 4. / 256, mSwitches: 0.005 / 256},
	} {
		res := parseFio([]byte(report), each*blockSize)
		if res.Error != "" {
			t.Fatal(res.Error)
		}
		for name, want := range want {
			if got := res.Metrics[name]; math.Abs(got-want) > 1e-9 {
				t.Errorf("%d blocks each: %s is %v, not %v", each, name, got, want)
			}
		}
	}
	for _, bad := range []string{"", "{}", "no such file", `{"jobs":[{"error":5}]}`} {
		if parseFio([]byte(bad), blockSize).Error == "" {
			t.Errorf("%q is a good report", bad)
		}
	}
}

// Bytes that are not those of the file fail a row.
func TestTakeBlock(t *testing.T) {
	b := make([]byte, blockSize)
	stamp.Fill(b, 8*blockSize, 0)
	if err := takeBlock(b, 8*blockSize, true); err != nil {
		t.Error(err)
	}
	if takeBlock(b, 9*blockSize, true) == nil {
		t.Error("a block of another place passes")
	}
	if takeBlock(make([]byte, blockSize), 8*blockSize, true) == nil {
		t.Error("zeros pass")
	}
	if err := takeBlock(b, 9*blockSize, false); err != nil {
		t.Errorf("a file without stamps: %v", err)
	}
}

// The page cache is full after warmCache and empty after dropAllCache.
func TestWarmAndDropCache(t *testing.T) {
	dir, err := os.MkdirTemp(".", ".test-") // the directory for temporary files may be in memory
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	if inMemory(dir) {
		t.Skip("files here are kept in memory")
	}
	const size = 8 << 20
	f, err := makeFile(context.Background(), dir, size, false, func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := warmCache(f, size); got != size {
		t.Errorf("%d bytes of %d are cached", got, size)
	}
	if left := dropAllCache(f, size); left > size/100 {
		t.Errorf("%d bytes of %d stay cached", left, size)
	}
}

// A group limits memory, says how much was used, and goes away.
func TestMemoryGroup(t *testing.T) {
	g := findMemoryGroups(64 << 20)
	if g.why != "" {
		t.Skip("control groups cannot be made here: ", g.why)
	}
	dir, peak, remove, err := g.make()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, g.files.limit))
	if strings.TrimSpace(string(b)) != "67108864" || err != nil {
		t.Errorf("the limit is %q, %v", b, err)
	}
	if n := peak(); n < 0 || n > 64<<20 {
		t.Errorf("an empty group has used %d bytes", n)
	}
	remove()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the group is still there: %v", err)
	}
}

// A group that a killed compare has left behind goes; one that is new, or has a process
// in it, stays.
func TestMemoryGroupsLeftBehind(t *testing.T) {
	g := findMemoryGroups(64 << 20)
	if g.why != "" {
		t.Skip("control groups cannot be made here: ", g.why)
	}
	parent, _, remove, err := g.make()
	if err != nil {
		t.Fatal(err)
	}
	defer remove()
	g.dir = parent // not where others may be comparing
	dir := filepath.Join(parent, groupPrefix+"left")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	there := func() bool { _, err := os.Stat(dir); return err == nil }
	if g.sweep(time.Now().Add(-groupAge)); !there() {
		t.Fatal("a group that was just made is gone")
	}
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Skip(err)
	}
	defer func() { sleeper.Process.Kill(); sleeper.Wait() }()
	if err := writeNumber(filepath.Join(dir, "cgroup.procs"), int64(sleeper.Process.Pid)); err != nil {
		t.Skip(err)
	}
	if g.sweep(time.Now().Add(groupAge)); !there() {
		t.Fatal("a group that a process is in is gone")
	}
	sleeper.Process.Kill()
	sleeper.Wait()
	for range 100 { // the process may still be on its way out
		if g.sweep(time.Now().Add(groupAge)); !there() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a group that was left behind is still there")
}

// The whole program on a tiny file: every row there is, through all of its
// workloads, and what is printed.
func TestCompareProgram(t *testing.T) {
	needRaw(t)
	buildProgram(t)
	for _, load := range compareWorkloads {
		t.Run(load, func(t *testing.T) {
			t.Parallel()
			rows := "bytes,readat"
			switch load {
			case "random":
				rows = "view,acquire,mmap-random-p2,mmap-warm-p2,pread-direct,nowait-p2"
			case "overwrite":
				rows = "writeat,acquirewrite,pwrite-direct"
			case "scan":
				rows = "bytes,readat,pread-direct-1m"
			default:
				if compareWorkload(load).ahead() {
					rows = "bytes-*,acquire-*"
				}
			}
			cmd, dir, stdout, stderr := program(t, "compare", "--size", "16MiB", "--budget", "2MiB", "--rounds", "1", "--duration", "20ms",
				"--warmup", "30ms", "--workload", load, "--rows", rows, "--json", "--html", "page.html")
			if status := statusOf(t, cmd.Run(), stderr); status != exitDone {
				t.Fatalf("status %d\n%s%s", status, stderr, stdout)
			}
			if stderr.Len() != 0 {
				t.Errorf("not quiet: %s", stderr)
			}
			c := oneObject[comparison](t, stdout.String())
			if string(c.Workload) != load || c.SizeBytes != 16<<20 || c.BudgetBytes != 2<<20 || c.MemoryBytes != 2<<20+compareHeadroom {
				t.Errorf("%+v", c)
			}
			for _, r := range c.Rows {
				if r.Turns == 0 || len(r.Errors) != 0 {
					t.Errorf("%s: %d turns, %v", r.Name, r.Turns, r.Errors)
					continue
				}
				if r.Figures[mOps].Median <= 0 || r.Figures[mP50].Median <= 0 || r.Figures[mThreads].Median < 1 || r.Figures[mRSS].Median <= 0 {
					t.Errorf("%s: %+v", r.Name, r.Figures)
				}
				// A miss counts when it begins and an op when it ends, so that one that
				// took all of the turn, as others had the processors, is an op without a miss. What is
				// overwritten reaches the device only when it is too much to stay.
				few := 64.
				if c.Workload == loadOverwrite {
					few = 2 * 2 << 20 / blockSize
				}
				enough := r.Figures[mOps].Median*0.02 >= few
				if r.Group == groupPager && enough && (r.Prefetch == aheadNone || !c.Workload.ahead()) && r.Figures[mMisses].Median <= 0 {
					t.Errorf("%s: a budget of an eighth of the file, and no misses", r.Name)
				}
				if n := r.Figures[mCharged].Max; c.Limited && n > float64(c.MemoryBytes) {
					t.Errorf("%s was charged %v bytes, the limit is %d", r.Name, n, c.MemoryBytes)
				}
			}
			page, err := os.ReadFile(filepath.Join(dir, "page.html"))
			if err != nil || !bytes.Contains(page, []byte("<svg")) || bytes.Contains(page, []byte("NaN")) {
				t.Errorf("the page: %d bytes, %v", len(page), err)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "uffdpager-*")); len(left) != 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// A row that dies is a line of the result, not the end of the comparison.
// The tree is in the bytes of a file that was filled for it. In another one its policy
// would read what nobody comes to, and all of that would be measured.
func TestCompareTreeNeedsItsFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "random")
	if err := os.WriteFile(name, bytes.Repeat([]byte("no stamp"), 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, _, _, stderr := program(t, "compare", name, "--workload", "tree", "--rounds", "1", "--duration", "20ms")
	if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), errNoTree.Error()) {
		t.Errorf("%v: %s", err, stderr)
	}
}

// A file that is kept in memory has no device behind it, and the report says so.
func TestCompareInMemory(t *testing.T) {
	const dir = "/dev/shm"
	if !inMemory(dir) {
		t.Skip(dir, " is no directory in memory")
	}
	cmd, _, stdout, stderr := program(t, "compare", "--dir", dir, "--size", "1MiB", "--budget", "1MiB", "--rounds", "1", "--duration", "20ms", "--warmup", "0s", "--rows", "readat")
	if err := cmd.Run(); err != nil || !strings.Contains(stdout.String(), "the file is kept in memory") {
		t.Errorf("%v %s\n%s", err, stderr, stdout)
	}
}

func TestCompareRowThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	spec := rowSpec{
		Row: compareRow{Name: "x", Way: "nothing", Procs: 1, Goroutines: 1}, Workload: loadRandom,
		Size: 64 << 10, Budget: 1 << 20, Duration: 10 * time.Millisecond,
	}
	// The test binary is not the program: have the row run by the one that is.
	in, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	cmd, _, _, stderr := program(t, rowCommandName)
	cmd.Stdin = bytes.NewReader(in)
	cmd.ExtraFiles = []*os.File{f}
	if status := statusOf(t, cmd.Run(), stderr); status != exitFailed || !strings.Contains(stderr.String(), "nothing") {
		t.Errorf("status %d, %s", status, stderr)
	}
	// A file of zeros that is said to be stamped.
	spec.Row.Way, spec.Stamped = wayPread, true
	if in, err = json.Marshal(spec); err != nil {
		t.Fatal(err)
	}
	cmd, _, _, stderr = program(t, rowCommandName)
	cmd.Stdin = bytes.NewReader(in)
	cmd.ExtraFiles = []*os.File{f}
	if status := statusOf(t, cmd.Run(), stderr); status != exitFailed || !strings.Contains(stderr.String(), "not those of the file") {
		t.Errorf("status %d, %s", status, stderr)
	}
}

// What compare has started ends with it, even if it is killed: here a fio that takes
// a minute.
func TestFioEndsWithCompare(t *testing.T) {
	cmd, dir, _, stderr := program(t, "compare", "--size", "1MiB", "--budget", "1MiB", "--rounds", "1", "--duration", "20ms", "--warmup", "0s", "--rows", "fio-qd64")
	const fio = "#!/bin/sh\necho $$ > fio.new; mv fio.new fio.pid; exec sleep 60\n"
	if err := os.WriteFile(filepath.Join(dir, "fio"), []byte(fio), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid []byte
	for deadline := time.Now().Add(30 * time.Second); pid == nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		pid, _ = os.ReadFile(filepath.Join(dir, "fio.pid"))
	}
	cmd.Process.Kill()
	cmd.Wait()
	if pid == nil {
		t.Fatal("fio was not started: ", stderr)
	}
	// It may be a zombie, where nobody takes it: that has no command line.
	line := "sleep"
	for deadline := time.Now().Add(10 * time.Second); line != "" && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "cmdline"))
		line = string(b)
	}
	if strings.Contains(line, "sleep") {
		t.Errorf("fio (%s) goes on after compare was killed", pid)
	}
}

func TestRowFailureIsOneLine(t *testing.T) {
	err := rowFailure(os.ErrInvalid, "uffdpager: at offset 4096: input/output error\n\ngoroutine 1 [running]:\n")
	if got := err.Error(); got != "at offset 4096: input/output error" {
		t.Errorf("%q", got)
	}
}
