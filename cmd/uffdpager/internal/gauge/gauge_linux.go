package gauge

import (
	"bufio"
	"bytes"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ReadProcess reads /proc/self/status.
func ReadProcess() (Process, error) {
	f, err := fields("/proc/self/status")
	if err != nil {
		return Process{}, err
	}
	return Process{
		RSS: f["VmRSS"], RSSPeak: f["VmHWM"], PageTables: f["VmPTE"], Locked: f["VmLck"],
		Threads: f["Threads"], Seccomp: f["Seccomp"],
	}, nil
}

// ReadMachine reads /proc/meminfo.
func ReadMachine() (Machine, error) {
	f, err := fields("/proc/meminfo")
	return Machine{Memory: f["MemTotal"], Available: f["MemAvailable"], SwapTotal: f["SwapTotal"], SwapFree: f["SwapFree"]}, err
}

// fields reads lines of the form "Name: 123 kB"; what is in kB is converted to
// bytes, what is no number is left out.
func fields(name string) (map[string]int64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	m := make(map[string]int64)
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		key, rest, _ := strings.Cut(s.Text(), ":")
		w := strings.Fields(rest)
		if len(w) == 0 {
			continue
		}
		n, err := strconv.ParseInt(w[0], 10, 64)
		if err != nil {
			continue
		}
		if len(w) == 2 && w[1] == "kB" {
			n *= 1024
		}
		m[key] = n
	}
	return m, nil
}

// ResetPeak makes Process.RSSPeak count from now on (proc(5), clear_refs). It
// reports whether that worked.
func ResetPeak() bool {
	return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) == nil
}

// CPU is the processor time, user and system, that all threads of the process
// have used.
func CPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// CgroupLimit is the lowest memory limit of the control groups the process is
// in, version 1 or 2, and the file that sets it; 0 when there is none.
func CgroupLimit() (limit int64, where string) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, ""
	}
	for _, line := range strings.Split(string(b), "\n") {
		part := strings.SplitN(line, ":", 3)
		if len(part) != 3 {
			continue
		}
		root, file := "/sys/fs/cgroup", "memory.max"
		switch {
		case part[1] == "memory":
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		case part[0] != "0":
			continue
		}
		// A limit further up binds as well. In a container the path may name a
		// place outside the mount: the root of the mount is then our own group.
		for dir := path.Clean("/" + part[2]); ; dir = path.Dir(dir) {
			name := path.Join(root, dir, file)
			if b, err := os.ReadFile(name); err == nil {
				// "max", or a number near 2^63, means none.
				n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
				if err == nil && n < 1<<60 && (limit == 0 || n < limit) {
					limit, where = n, name
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit, where
}

// Setting reads a number from a file below /proc/sys.
func Setting(name string) (int64, error) {
	b, err := os.ReadFile(path.Join("/proc/sys", name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// BlockedIn counts the threads of the process that block the signal, and all
// threads. A fault on a thread that blocks SIGBUS kills the process.
func BlockedIn(sig unix.Signal) (blocked, threads int, err error) {
	dirs, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, 0, err
	}
	for _, d := range dirs {
		b, err := os.ReadFile(path.Join("/proc/self/task", d.Name(), "status"))
		if err != nil {
			continue // the thread has ended
		}
		if strings.HasPrefix(string(b), "Name:\tiou-") {
			continue // a worker of io_uring runs in the kernel only
		}
		threads++
		_, rest, ok := strings.Cut(string(b), "SigBlk:")
		if !ok {
			continue
		}
		mask, _ := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
		if mask>>(sig-1)&1 == 1 {
			blocked++
		}
	}
	return blocked, threads, nil
}

// LocksNewMemory says whether the process has called mlockall(MCL_FUTURE): a
// fresh mapping is then locked from the start.
func LocksNewMemory() bool {
	before, err := ReadProcess()
	if err != nil {
		return false
	}
	m, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return false
	}
	defer unix.Munmap(m)
	after, err := ReadProcess()
	return err == nil && after.Locked >= before.Locked+int64(len(m))
}

// Kernel is the release of the running kernel, as uname(2) gives it.
func Kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
