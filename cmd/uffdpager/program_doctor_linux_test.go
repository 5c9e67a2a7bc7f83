package main

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Doctor lists every feature with a reason where there is none, and ends well
// whatever it finds.
func TestDoctor(t *testing.T) {
	for _, mask := range []string{"", "-move", "-process_madvise,-pidfd_self", "-wp", "-userfaultfd"} {
		t.Setenv("UFFDPAGER_FEATURES", mask)
		status, stdout, stderr := runProgram(t, "doctor", "--json")
		if status != exitDone || stderr != "" {
			t.Errorf("%q: status %d, %s", mask, status, stderr)
		}
		d := oneObject[diagnosis](t, stdout)
		found := map[string]bool{}
		for _, f := range append(d.Features, d.Engines...) {
			found[f.Name] = f.Supported
			if f.Supported != (f.Why == "") || f.For == "" {
				t.Errorf("%q: %+v", mask, f)
			}
		}
		for _, name := range strings.FieldsFunc(mask, func(r rune) bool { return r == ',' || r == '-' }) {
			if ok, listed := found[name]; ok || !listed {
				t.Errorf("%q: %s is supported %v, listed %v", mask, name, ok, listed)
			}
		}
		if !d.Uses.Works || d.Uses.Engine == "" || d.Uses.BudgetBytes <= 0 || d.Uses.Raw == (d.Uses.RawWhy != "") {
			t.Errorf("%q: %+v", mask, d.Uses)
		}
		named := len(d.Hurts) > 0 && strings.HasPrefix(d.Hurts[0].What, "UFFDPAGER_FEATURES")
		if named != (mask != "") {
			t.Errorf("%q: the mask is named %v: %+v", mask, named, d.Hurts)
		}
		if mask == "-userfaultfd" && d.Uses.Raw {
			t.Error("raw access without userfaultfd")
		}
		status, stdout, _ = runProgram(t, "doctor")
		for _, f := range d.Features {
			if !strings.Contains(stdout, f.Name) {
				t.Errorf("%q: the table leaves out %s", mask, f.Name)
			}
		}
		if status != exitDone {
			t.Errorf("%q: status %d", mask, status)
		}
	}
}

// A mask that names something unknown would test something else than was meant.
func TestMisspeltMask(t *testing.T) {
	t.Setenv("UFFDPAGER_FEATURES", "-mvoe")
	for _, command := range []string{"doctor", "run"} {
		if status, _, stderr := runProgram(t, command); status != exitUsage || !strings.Contains(stderr, "mvoe") {
			t.Errorf("%s: status %d, %q", command, status, stderr)
		}
	}
}

// On a terminal the run shows how it goes, in one line that is gone at the end.
func TestProgressOnTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminal here: ", err)
	}
	defer master.Close()
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Skip("no pseudo-terminal here: ", err)
	}
	tty, err := os.OpenFile("/dev/pts/"+itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminal here: ", err)
	}
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 200}); err != nil {
		t.Fatal(err)
	}
	shown := make(chan string)
	go func() {
		var b strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf) // EIO when the last writer is gone
			b.Write(buf[:n])
			if err != nil {
				shown <- b.String()
				return
			}
		}
	}()
	cmd, _, stdout, _ := program(t, "run", "--idle", "20ms", "--size", "16MiB", "--budget", "1MiB", "--duration", "2s")
	cmd.Stderr = tty
	err = cmd.Run()
	tty.Close()
	s := <-shown
	if err != nil {
		t.Fatalf("%v: %s", err, s)
	}
	for _, says := range []string{"making a data file", "misses/s", "hit ratio", "resident", "parked"} {
		if !strings.Contains(s, says) {
			t.Errorf("%q is not shown in %q", says, s)
		}
	}
	if strings.Contains(s, "\n") || !strings.HasSuffix(s, "\r") {
		t.Errorf("the line is not taken away: %q", s)
	}
	if !strings.Contains(stdout.String(), "verified") {
		t.Errorf("no report: %q", stdout)
	}
}
