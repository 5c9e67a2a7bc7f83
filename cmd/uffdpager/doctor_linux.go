package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/gauge"
)

const (
	enoughAIO   = 256     // ops in flight of one pager
	enoughMaps  = 65530   // the kernel's default
	enoughFiles = 256     // descriptors
	enoughSpace = 1 << 40 // bytes of address space
)

// conditions is what troubles looks at, so that a test can make it up.
type conditions struct {
	machine       gauge.Machine
	process       gauge.Process
	cgroup        int64
	cgroupFile    string
	locksAll      bool
	busBlocked    int
	threads       int
	aioUsed       int64
	aioMax        int64
	overcommit    int64
	maxMaps       int64
	files, space  uint64 // limits
	tempInMemory  bool
	raw           bool // userfaultfd works
	budget        int64
	directoryTemp string
}

// troubles looks for what will hurt here.
func troubles(d *diagnosis, blocked, threads int) []trouble {
	c := conditions{overcommit: -1, raw: d.Uses.Raw, budget: d.Uses.BudgetBytes, directoryTemp: os.TempDir()}
	c.machine, _ = gauge.ReadMachine()
	c.process, _ = gauge.ReadProcess()
	c.cgroup, c.cgroupFile = gauge.CgroupLimit()
	c.locksAll = gauge.LocksNewMemory()
	c.busBlocked, c.threads = blocked, threads
	c.aioUsed, _ = gauge.Setting("fs/aio-nr")
	c.aioMax, _ = gauge.Setting("fs/aio-max-nr")
	if n, err := gauge.Setting("vm/overcommit_memory"); err == nil {
		c.overcommit = n
	}
	c.maxMaps, _ = gauge.Setting("vm/max_map_count")
	c.files, c.space = limit(unix.RLIMIT_NOFILE), limit(unix.RLIMIT_AS)
	c.tempInMemory = inMemory(c.directoryTemp)
	return c.troubles()
}

// busBlocked counts the threads that block SIGBUS. The signal mask survives
// exec, so a parent may have left it to us. A thread that is only just being
// made blocks everything for a moment: the lowest of a few looks counts.
func busBlocked() (blocked, threads int) {
	for i := range 5 {
		b, n, err := gauge.BlockedIn(unix.SIGBUS)
		if err != nil {
			return 0, 0
		}
		if i == 0 || b < blocked {
			blocked, threads = b, n
		}
		if blocked == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return blocked, threads
}

func limit(which int) uint64 {
	var r unix.Rlimit
	if unix.Getrlimit(which, &r) != nil {
		return unix.RLIM_INFINITY
	}
	return r.Cur
}

func (c *conditions) troubles() (ts []trouble) {
	add := func(when bool, what, why, remedy string) {
		if when {
			ts = append(ts, trouble{what, why, remedy})
		}
	}
	add(c.process.Seccomp == 2 && !c.raw, "seccomp", "a filter refuses userfaultfd, as those of many containers do: only Acquire and ReadAt work",
		"allow the system call userfaultfd in the container's seccomp profile")
	add(c.machine.SwapTotal > 0, "swap", fmt.Sprintf("%s of swap: a resident page may be swapped out, and a hit then waits for the kernel with its thread and P", humanBytes(c.machine.SwapTotal)),
		"swapoff -a, or memory.swap.max=0 in the control group")
	// Page tables, metadata and the program itself come on top of the budget.
	add(c.cgroup > 0 && c.cgroup < c.budget+c.budget/8+64<<20, "control group", fmt.Sprintf("the limit of %s (%s) leaves too little beside a budget of %s: the kernel kills the process rather than refuse a page", humanBytes(c.cgroup), c.cgroupFile, humanBytes(c.budget)),
		"a smaller budget or a higher limit")
	add(c.machine.Available > 0 && c.machine.Available < c.budget, "memory", fmt.Sprintf("only %s are available for a budget of %s", humanBytes(c.machine.Available), humanBytes(c.budget)),
		"a smaller budget")
	add(c.locksAll, "mlockall", "new mappings of this process are locked: what is mapped is populated at once", "mlockall without MCL_FUTURE, or with MCL_ONFAULT")
	add(c.busBlocked > 0, "SIGBUS", fmt.Sprintf("%d of %d threads block it: a missing page touched there kills the process", c.busBlocked, c.threads),
		"let the C code that made the threads leave SIGBUS unblocked, or give it pinned memory only")
	add(c.aioMax > 0 && c.aioMax-c.aioUsed < enoughAIO, "fs.aio-max-nr", fmt.Sprintf("%d of %d are in use by this machine: another pager gets no AIO ring", c.aioUsed, c.aioMax),
		"sysctl -w fs.aio-max-nr=1048576")
	add(c.overcommit == 2, "vm.overcommit_memory", "2: address space counts as memory, so that large regions may be refused", "sysctl -w vm.overcommit_memory=0")
	add(c.maxMaps > 0 && c.maxMaps < enoughMaps, "vm.max_map_count", fmt.Sprintf("%d: few mappings for a process with many regions", c.maxMaps), fmt.Sprintf("sysctl -w vm.max_map_count=%d", enoughMaps))
	add(c.files < enoughFiles, "open files", fmt.Sprintf("the limit is %d, and every region has its descriptors", c.files), "ulimit -n 4096")
	add(c.space < enoughSpace, "address space", fmt.Sprintf("the limit is %s, and regions take as much of it as their files are long", humanBytes(int64(c.space))), "ulimit -v unlimited")
	add(c.tempInMemory, "temporary files", fmt.Sprintf("%s is kept in memory: a file there proves nothing about paging", c.directoryTemp), "TMPDIR, or run --dir, on a disk")
	return ts
}
