package gauge

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is touched shows up in the resident set and its page tables, and the
// peak stays when it is given back.
func TestProcessSeesMemory(t *testing.T) {
	const size = 64 << 20
	before, err := ReadProcess()
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	unix.Madvise(m, unix.MADV_NOHUGEPAGE)
	for i := 0; i < size; i += 4096 {
		m[i] = 1
	}
	full, err := ReadProcess()
	if err != nil {
		t.Fatal(err)
	}
	unix.Munmap(m)
	if got := full.RSS - before.RSS; got < size*9/10 {
		t.Errorf("RSS grew by %d for %d bytes", got, size)
	}
	if got := full.PageTables - before.PageTables; got < size/4096*8*9/10 {
		t.Errorf("page tables grew by %d for %d bytes", got, size)
	}
	after, _ := ReadProcess()
	if after.RSSPeak < full.RSS-1<<20 {
		t.Errorf("peak %d, but %d were resident", after.RSSPeak, full.RSS)
	}
	if full.Threads < 1 {
		t.Errorf("%d threads", full.Threads)
	}
	if ResetPeak() {
		if p, _ := ReadProcess(); p.RSSPeak > full.RSS-size/2 {
			t.Errorf("the peak is %d after ResetPeak, the resident set %d", p.RSSPeak, p.RSS)
		}
	}
}

func TestMachineHasMemory(t *testing.T) {
	m, err := ReadMachine()
	if err != nil || m.Memory <= 0 || m.Available > m.Memory {
		t.Errorf("%+v, %v", m, err)
	}
}

// mlockall is one way: it is undone before the test ends, and other mappings
// made meanwhile are small.
func TestLocksNewMemory(t *testing.T) {
	if LocksNewMemory() {
		t.Skip("this process locks all its memory already")
	}
	if err := unix.Mlockall(unix.MCL_FUTURE); err != nil {
		t.Skipf("mlockall: %v", err)
	}
	got := LocksNewMemory()
	unix.Munlockall()
	if !got {
		t.Error("mlockall(MCL_FUTURE) goes unnoticed")
	}
}

func TestNoThreadOfGoBlocksSIGBUS(t *testing.T) {
	blocked, threads, err := BlockedIn(unix.SIGBUS)
	if err != nil || blocked != 0 || threads == 0 {
		t.Errorf("%d of %d threads, %v", blocked, threads, err)
	}
}

func TestCgroupLimitIsThatOfTheFile(t *testing.T) {
	limit, where := CgroupLimit()
	if limit == 0 {
		t.Skip("no control group limits the memory here")
	}
	b, err := os.ReadFile(where)
	if err != nil || strings.TrimSpace(string(b)) == "max" {
		t.Errorf("%d from %s, which says %q, %v", limit, where, b, err)
	}
}
