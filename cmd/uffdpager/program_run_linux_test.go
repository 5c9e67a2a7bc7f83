package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/workload"
)

const smallOps = 6000

// small is a run that pages: the file is 16 times the budget, and what is read
// is more than 20 times the budget.
func small(more ...string) []string {
	return append([]string{"--size", "16MiB", "--budget", "1MiB", "--ops", itoa(smallOps)}, more...)
}

// The main job, with nothing but defaults where they matter: every byte that
// was read is proved, and what was read was many times the budget.
func TestRunOnFileOfItsOwn(t *testing.T) {
	r := mustRun(t, small()...)
	if r.Ops != smallOps || r.Verified != smallOps*stamp.Block {
		t.Errorf("%d ops, %d bytes verified", r.Ops, r.Verified)
	}
	if r.Hits+r.Misses != r.Ops && r.Hits != 0 {
		t.Errorf("%d hits and %d misses in %d ops", r.Hits, r.Misses, r.Ops)
	}
	if r.ReadBytes < 10*r.BudgetBytes {
		t.Errorf("only %d bytes were read", r.ReadBytes)
	}
	if r.Evictions == 0 || r.Ticker.Expected == 0 || r.ThreadsPeak == 0 || r.RSSPeakBytes == 0 || r.PageTableBytes == 0 || r.DurationS <= 0 {
		t.Errorf("something was not measured: %+v", r)
	}
	if q := r.LatencyUS; q.P50 <= 0 || q.P50 > q.P90 || q.P90 > q.P99 || q.P99 > q.Max {
		t.Errorf("latencies %+v", q)
	}
	if r.WrittenBytes != 0 || r.Writes != 0 {
		t.Errorf("%d bytes written by a run that reads", r.WrittenBytes)
	}
}

func TestRunEveryWorkload(t *testing.T) {
	for _, name := range strings.Split(workload.Names(), ", ") {
		t.Run(name, func(t *testing.T) {
			r := mustRun(t, small("--workload", name)...)
			if r.Workload != name || r.Verified != smallOps*stamp.Block {
				t.Errorf("%s: %d bytes verified", r.Workload, r.Verified)
			}
			if writes := name == "mixed"; (r.SurvivedBytes > 0) != writes {
				t.Errorf("%s: %d bytes written", name, r.SurvivedBytes)
			}
		})
	}
}

func TestRunEveryWayIn(t *testing.T) {
	for _, way := range []string{"bytes", "view", "acquire", "readat"} {
		t.Run(way, func(t *testing.T) {
			if way == "bytes" || way == "view" {
				needRaw(t)
			}
			if r := mustRun(t, small("--access", way)...); r.Access != way || r.Verified != smallOps*stamp.Block {
				t.Errorf("%s: %d bytes verified", r.Access, r.Verified)
			}
		})
	}
}

func TestRunEveryEngineAndPolicy(t *testing.T) {
	for _, flags := range []string{
		"--engine aio", "--engine io_uring", "--engine threads", "--evict fifo", "--evict s3fifo",
		"--prefetch none", "--prefetch readahead --workload scan", "--prefetch stride --workload stride",
		"--park block --ops 500", "--park restart --ops 2000", "--page-size 64KiB", "--huge-pages --budget 16MiB --size 64MiB --goroutines 8 --ops 2000", "--huge-pages --workload scan --budget 32MiB --size 64MiB --ops 30000", "--page-size 2MiB --budget 8MiB --size 64MiB --goroutines 20 --ops 200", "--budget 16KiB --goroutines 24",
	} {
		t.Run(flags, func(t *testing.T) {
			if strings.Contains(flags, "io_uring") {
				_, stdout, _ := runProgram(t, "doctor", "--json")
				for _, e := range oneObject[diagnosis](t, stdout).Engines {
					if e.Name == "io_uring" && !e.Supported {
						t.Skip("io_uring: ", e.Why)
					}
				}
			}
			if strings.Contains(flags, "--park") {
				needRaw(t)
			}
			mustRun(t, small(strings.Fields(flags)...)...)
		})
	}
}

// Where userfaultfd is refused, a run falls back to Acquire and says so; asking
// for raw memory is an error.
func TestRunWithoutUserfaultfd(t *testing.T) {
	t.Setenv("UFFDPAGER_FEATURES", "-userfaultfd")
	r := mustRun(t, small()...)
	if r.Access != "acquire" || len(r.Notes) == 0 || r.Verified != smallOps*stamp.Block {
		t.Errorf("access %s, notes %q, %d bytes verified", r.Access, r.Notes, r.Verified)
	}
	for _, way := range []string{"bytes", "view"} {
		status, stdout, stderr := runProgram(t, append([]string{"run", "--json", "--access", way}, small()...)...)
		if r := oneObject[report](t, stdout); status != exitFailed || r.Error == "" || !strings.Contains(stderr, way) {
			t.Errorf("%s: status %d, error %q, stderr %q", way, status, r.Error, stderr)
		}
	}
}

// A FILE is read, compared with an ordinary read, and left as it was.
func TestRunOnAnyFile(t *testing.T) {
	for _, size := range []int{1, 4097, 1<<20 + 123} {
		content := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(size)}).Read(content)
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, content, 0o444); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Stat(name)
		r := mustRun(t, name, "--budget", "256KiB", "--ops", "3000", "--verify")
		if r.SizeBytes != int64(size) || r.Verified != r.AccessedBytes || r.Verified == 0 {
			t.Errorf("%d bytes: size %d, %d of %d verified", size, r.SizeBytes, r.Verified, r.AccessedBytes)
		}
		if r := mustRun(t, name, "--budget", "256KiB", "--ops", "3000"); r.Verified != 0 || r.AccessedBytes == 0 {
			t.Errorf("%d bytes, without --verify: %d of %d verified", size, r.Verified, r.AccessedBytes)
		}
		after, _ := os.Stat(name)
		got, err := os.ReadFile(name)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(content) || !after.ModTime().Equal(before.ModTime()) {
			t.Errorf("%d bytes: the file has changed (%v)", size, err)
		}
	}
}

// A file that was kept can be proved by a later run, and a single bit that has
// changed in it is found.
func TestRunFindsOneBit(t *testing.T) {
	cmd, dir, stdout, stderr := program(t, append([]string{"run", "--keep", "--json", "--idle", "20ms"}, small()...)...)
	if status := statusOf(t, cmd.Run(), stderr); status != exitDone {
		t.Fatalf("status %d: %s", status, stderr)
	}
	r := oneObject[report](t, stdout.String())
	files := names(t, dir)
	if len(files) != 1 || r.File != files[0] {
		t.Fatalf("kept %q, report says %q", files, r.File)
	}
	name := files[0]
	all := []string{name, "--workload", "scan", "--ops", "4096", "--budget", "1MiB", "--verify"}
	if r := mustRun(t, all...); r.Verified != 16<<20 {
		t.Errorf("%d bytes verified", r.Verified)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const at = 9<<20 + 4567
	var b [1]byte
	f.ReadAt(b[:], at)
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	status, out, errs := runProgram(t, append([]string{"run", "--json", "--idle", "20ms"}, all...)...)
	bad := oneObject[report](t, out)
	const says = "block at offset 9441280 differs at byte 464" // the word that holds the bit
	if status != exitFailed || bad.Mismatches != 1 || !strings.Contains(errs, says) {
		t.Errorf("status %d, %d mismatches, %q; want %q", status, bad.Mismatches, errs, says)
	}
}

// What cannot be paged is an error in one line, and with --json in one object.
func TestRunOnWhatCannotBePaged(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	os.WriteFile(empty, nil, 0o644)
	secret := filepath.Join(dir, "secret")
	os.WriteFile(secret, []byte("secret"), 0)
	for name, says := range map[string]string{
		filepath.Join(dir, "missing"): "no such file",
		dir:                           "directory",
		empty:                         "empty",
		secret:                        "permission denied",
		"/dev/null":                   "/dev/null",
	} {
		if name == secret && os.Geteuid() == 0 {
			continue // root may read it
		}
		status, stdout, stderr := runProgram(t, "run", name, "--json")
		r := oneObject[report](t, stdout)
		if status != exitFailed || !strings.Contains(stderr, says) || r.Error == "" {
			t.Errorf("%s: status %d, stderr %q, error %q; want %q", name, status, stderr, r.Error, says)
		}
		if strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: more than one line: %q", name, stderr)
		}
	}
}

// Nothing of it needs privileges.
func TestRunUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root, so that every other test shows it")
	}
	cmd, _, stdout, stderr := program(t, append([]string{"run", "--json", "--idle", "20ms"}, small()...)...)
	dir, err := os.MkdirTemp("", "uffdpager-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	const nobody = 65534
	if err := errors.Join(os.Chown(dir, nobody, nobody), os.Chmod(built.dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd.Dir, cmd.Env = dir, append(cmd.Env, "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if status := statusOf(t, cmd.Run(), stderr); status != exitDone {
		t.Fatalf("status %d: %s", status, stderr)
	}
	r := oneObject[report](t, stdout.String())
	checkReport(t, r)
	if r.Verified != smallOps*stamp.Block {
		t.Errorf("%d bytes verified", r.Verified)
	}
}

// Ctrl-C ends a run with its report, and nothing is left of its file.
func TestRunInterrupted(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, dir, stdout, stderr := program(t, "run", "--json", "--idle", "20ms", "--size", "16MiB", "--budget", "1MiB", "--duration", "1h")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitForReads(t, cmd.Process.Pid)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if status := statusOf(t, cmd.Wait(), stderr); status != exitDone {
			t.Errorf("%v: status %d: %s", sig, status, stderr)
		}
		r := oneObject[report](t, stdout.String())
		checkReport(t, r)
		if !r.Interrupted {
			t.Errorf("%v: the report does not say that it was interrupted", sig)
		}
		if left := names(t, dir); len(left) != 0 {
			t.Errorf("%v: %q is left", sig, left)
		}
	}
}

// FILE is only ever read, whatever a flag names, and what a file held is lost only to
// a result.
func TestResultsDoNotOverwrite(t *testing.T) {
	dir := t.TempDir()
	file, old, fresh := filepath.Join(dir, "file"), filepath.Join(dir, "old"), filepath.Join(dir, "fresh")
	content := bytes.Repeat([]byte("content\n"), 1<<14)
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, content, 0o600), os.WriteFile(old, content, 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	for _, c := range []struct {
		status int
		says   string
		args   []string
	}{
		{exitUsage, "would overwrite FILE", []string{"run", file, "--prefetch", "record=" + file}},
		{exitUsage, "would overwrite FILE", []string{"run", file, "--prefetch", "record=" + link}},
		{exitUsage, "would overwrite FILE", []string{"compare", link, "--html", file}},
		{exitFailed, missing, []string{"run", missing, "--prefetch", "record=" + old}},
		{exitFailed, missing, []string{"run", missing, "--prefetch", "record=" + fresh}},
		{exitFailed, missing, []string{"compare", missing, "--html", old}},
		{exitFailed, missing, []string{"compare", missing, "--html", fresh}},
	} {
		status, _, stderr := runProgram(t, c.args...)
		if status != c.status || !strings.Contains(stderr, c.says) {
			t.Errorf("%q: status %d, %q", c.args, status, stderr)
		}
		for _, name := range []string{file, old} {
			if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, content) {
				t.Fatalf("%q: %s has %d bytes, %v", c.args, name, len(b), err)
			}
		}
		if _, err := os.Stat(fresh); err == nil {
			t.Errorf("%q: %s is left", c.args, fresh)
		}
	}
	// A shorter trace in place of something longer is a trace all the same.
	status, _, stderr := runProgram(t, "run", file, "--idle", "20ms", "--ops", "100", "--budget", "64KiB", "--prefetch", "record="+old)
	if status != exitDone {
		t.Fatal(stderr)
	}
	if status, _, stderr = runProgram(t, "run", file, "--idle", "20ms", "--ops", "100", "--budget", "64KiB", "--prefetch", "replay="+old); status != exitDone {
		t.Error(stderr)
	}
}

// A signal that comes to the process and then to its group, as timeout(1) sends it, is
// one: what is under way is cleared away.
func TestCompareInterrupted(t *testing.T) {
	needRaw(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		cmd, dir, stdout, stderr := program(t, "compare", "--size", "16MiB", "--budget", "2MiB", "--rows", "acquire,bytes", "--duration", "1h", "--html", "page.html")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		children := filepath.Join("/proc", itoa(cmd.Process.Pid), "task")
		waitForChild(t, children)
		for range 2 {
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		if status := statusOf(t, cmd.Wait(), stderr); status != exitFailed || stderr.String() != "uffdpager: interrupted\n" || stdout.Len() != 0 {
			t.Errorf("%v: status %d, %q, %q", sig, status, stderr, stdout)
		}
		if left := names(t, dir); len(left) != 0 {
			t.Errorf("%v: %q is left", sig, left)
		}
	}
}

// waitForChild returns when a thread below tasks has a child.
func waitForChild(t *testing.T, tasks string) {
	t.Helper()
	for end := time.Now().Add(programDeadline / 2); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		lists, _ := filepath.Glob(filepath.Join(tasks, "*", "children"))
		for _, name := range lists {
			if b, err := os.ReadFile(name); err == nil && len(bytes.TrimSpace(b)) > 0 {
				return
			}
		}
		if len(lists) == 0 {
			t.Skip("/proc does not list children here")
		}
	}
	t.Fatal("no row begins")
}

// Not even SIGKILL leaves a file behind that was not to be kept.
func TestRunKilled(t *testing.T) {
	cmd, dir, _, _ := program(t, "run", "--idle", "20ms", "--size", "16MiB", "--budget", "1MiB", "--duration", "1h")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitForReads(t, cmd.Process.Pid)
	cmd.Process.Kill()
	cmd.Wait()
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("%q is left", left)
	}
}

// waitForReads returns when a process reads from the disk: its work has begun.
func waitForReads(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(programDeadline / 2); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "io"))
		if err != nil {
			t.Fatalf("the program has ended: %v", err)
		}
		// The binary itself may have to be read, too.
		if _, rest, ok := bytes.Cut(b, []byte("\nread_bytes: ")); ok && len(bytes.SplitN(rest, []byte("\n"), 2)[0]) >= len("64000000") {
			return
		}
	}
	t.Fatal("the work does not begin")
}

// The trace of one run makes the next one wait less.
func TestRunRecordAndReplay(t *testing.T) {
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	work := []string{"--size", "16MiB", "--budget", "32MiB", "--ops", "3000", "--goroutines", "1"}
	first := mustRun(t, append(work, "--prefetch", "record="+trace)...)
	again := mustRun(t, append(work, "--prefetch", "replay="+trace)...)
	if first.Prefetch.Issued != 0 || again.Prefetch.Issued == 0 || again.Misses >= first.Misses/2 {
		t.Errorf("%d misses while recording (%d pages ahead), %d in the replay (%d pages ahead)",
			first.Misses, first.Prefetch.Issued, again.Misses, again.Prefetch.Issued)
	}
	for name, says := range map[string]string{"replay=" + filepath.Join(dir, "missing"): "no such file", "replay=/dev/null": "trace", "record=" + dir: "directory"} {
		status, _, stderr := runProgram(t, append([]string{"run", "--prefetch", name}, work...)...)
		if status != exitFailed || !strings.Contains(stderr, says) {
			t.Errorf("%s: status %d, %q", name, status, stderr)
		}
	}
}

// Each kind of work with each policy: every byte is right, the report says what was read
// ahead and what became of it, and what a trace or a policy knows is not missed.
func TestRunEveryWorkloadWithEveryPolicy(t *testing.T) {
	const ops = 1500
	trace := filepath.Join(t.TempDir(), "trace")
	for _, work := range []string{"chase", "zipf", "interleaved", "scan", "stride"} {
		misses := map[string]int64{}
		for _, prefetch := range []string{"none", "readahead", "stride", "record=" + trace, "replay=" + trace} {
			policy, _, _ := strings.Cut(prefetch, "=")
			name := work + " with " + policy
			r := mustRun(t, "--size", "4MiB", "--budget", "1MiB", "--ops", itoa(ops), "--goroutines", "1", "--workload", work, "--prefetch", prefetch)
			misses[policy] = r.Misses
			p := r.Prefetch
			switch {
			case r.Ops != ops || r.Verified != ops*stamp.Block:
				t.Errorf("%s: %d ops, %d bytes verified", name, r.Ops, r.Verified)
			case r.Workload != work || p.Policy != policy:
				t.Errorf("%s: the report is of %s with %s", name, r.Workload, p.Policy)
			case r.Misses == 0 || r.ReadBytes < (r.Misses-r.Joined)*stamp.Block: // who faults once more while his read is under way has joined it
				t.Errorf("%s: %d bytes read for %d misses, %d joined", name, r.ReadBytes, r.Misses, r.Joined)
			case p.Used+p.Unused > p.Issued || p.Late > p.Used:
				t.Errorf("%s: %+v", name, p)
			case (policy == "none" || policy == "record") && p.Issued != 0:
				t.Errorf("%s: %d pages read ahead", name, p.Issued)
			case (p.Recorded > 0) != (policy == "record") || p.Recorded > r.Misses:
				t.Errorf("%s: a trace of %d pages of %d misses", name, p.Recorded, r.Misses)
			case policy == "replay" && (p.Issued == 0 || r.Misses > misses["record"]*3/4):
				t.Errorf("%s: %d pages read ahead, %d misses of %d", name, p.Issued, r.Misses, misses["record"])
			}
		}
		known := map[string][]string{"scan": {"readahead", "stride"}, "interleaved": {"readahead", "stride"}, "stride": {"stride"}}
		for _, policy := range known[work] {
			if misses[policy] >= misses["none"] {
				t.Errorf("%s with %s: %d misses, as many as without (%d)", work, policy, misses[policy], misses["none"])
			}
		}
	}
}

// A trace that is not whole, or of another file, is replayed and the report says so; one
// that is damaged is refused.
func TestRunReplaysWithANote(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, size := range map[string]int{"a": 2 << 20, "b": 2 << 20} {
		if err := os.WriteFile(in(name), make([]byte, size), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	work := func(file, policy string) []string {
		return []string{"run", in(file), "--prefetch", policy, "--idle", "20ms", "--budget", "4MiB", "--ops", "2000", "--goroutines", "1"}
	}
	status, stdout, stderr := runProgram(t, work("a", "record="+in("trace"))...)
	if status != exitDone || !strings.Contains(stdout, "pages in the trace") {
		t.Fatalf("status %d, %s%s", status, stdout, stderr)
	}
	trace, err := os.ReadFile(in("trace"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("cut"), trace[:len(trace)-1], 0o666); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(trace)
	damaged[len(damaged)/2] ^= 1
	if err := os.WriteFile(in("damaged"), damaged, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(in("a"), in("link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file, trace, says string
		status            int
	}{
		{"a", "trace", "", exitDone},
		{"link", "trace", "", exitDone},
		{"b", "trace", "something else: of " + in("a"), exitDone},
		{"a", "cut", "has no end", exitDone},
		{"a", "damaged", "is damaged", exitFailed},
	} {
		status, stdout, stderr := runProgram(t, work(c.file, "replay="+in(c.trace))...)
		said := strings.Contains(stdout+stderr, "--prefetch replay=")
		if status != c.status || said != (c.says != "") || !strings.Contains(stdout+stderr, c.says) {
			t.Errorf("%s with %s: status %d, %s%s", c.file, c.trace, status, stdout, stderr)
		}
		if status == exitDone && !strings.Contains(stdout, "replay: ") {
			t.Errorf("%s with %s: no row of what was read ahead: %s", c.file, c.trace, stdout)
		}
	}
	if err := os.Truncate(in("a"), 3<<20); err != nil {
		t.Fatal(err)
	}
	if _, stdout, _ := runProgram(t, work("a", "replay="+in("trace"))...); !strings.Contains(stdout, "of 512 pages, not of 768") {
		t.Errorf("a file that has grown: %s", stdout)
	}
}
