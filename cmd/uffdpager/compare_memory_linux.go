package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// memoryGroups makes control groups with a memory limit, version 1 or 2.
type memoryGroups struct {
	dir   string // where groups can be made
	files groupFiles
	limit int64
	why   string // why there are none, "" if there are
}

// groupFiles names the files of a memory control group.
type groupFiles struct{ limit, swap, peak, usage string }

var (
	groupV1 = groupFiles{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes", "memory.usage_in_bytes"}
	groupV2 = groupFiles{"memory.max", "memory.swap.max", "memory.peak", "memory.current"}
)

// findMemoryGroups looks for a place where this process may make groups: below
// its own group, or further up.
func findMemoryGroups(limit int64) memoryGroups {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return memoryGroups{why: err.Error()}
	}
	last := errors.New("there is no memory control group")
	for line := range strings.Lines(string(b)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		root, files := "/sys/fs/cgroup", groupV2
		switch {
		case part[1] == "memory":
			root, files = "/sys/fs/cgroup/memory", groupV1
		case part[0] != "0":
			continue
		}
		for at := filepath.Clean("/" + part[2]); ; at = filepath.Dir(at) {
			g := memoryGroups{dir: filepath.Join(root, at), files: files, limit: limit}
			_, _, remove, err := g.make()
			if err == nil {
				remove()
				g.sweep(time.Now().Add(-groupAge))
				return g
			}
			last = err
			if at == "/" {
				break
			}
		}
	}
	return memoryGroups{why: last.Error()}
}

const (
	groupPrefix = "uffdpager-compare-"
	// groupAge is the age at which a group that nobody is in has been left behind:
	// a row joins its group as soon as it starts.
	groupAge = time.Minute
)

// sweep removes groups that a compare which was killed has left behind: those made
// before a moment, with no process in them.
func (g memoryGroups) sweep(before time.Time) {
	left, _ := filepath.Glob(filepath.Join(g.dir, groupPrefix+"*"))
	for _, dir := range left {
		if st, err := os.Stat(dir); err == nil && st.ModTime().Before(before) {
			_ = os.Remove(dir) // the kernel refuses it while a process is there
		}
	}
}

// make makes a group. peak says what was charged to it at most, 0 if that is not
// told; remove removes it once its processes have ended.
func (g memoryGroups) make() (dir string, peak func() int64, remove func(), err error) {
	dir, err = os.MkdirTemp(g.dir, groupPrefix)
	if err != nil {
		return "", nil, nil, err
	}
	remove = func() {
		// The last process may still be on its way out.
		for range 100 {
			if os.Remove(dir) == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err := writeNumber(filepath.Join(dir, g.files.limit), g.limit); err != nil {
		remove()
		return "", nil, nil, err
	}
	// No swapping around the limit, where there is swap at all.
	swap := int64(0)
	if g.files == groupV1 {
		swap = g.limit
	}
	_ = writeNumber(filepath.Join(dir, g.files.swap), swap)
	peak = func() int64 {
		for _, name := range []string{g.files.peak, g.files.usage} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
					return n
				}
			}
		}
		return 0
	}
	return dir, peak, remove, nil
}

// joinGroup moves the calling process into a group.
func joinGroup(dir string) error {
	if err := writeNumber(filepath.Join(dir, "cgroup.procs"), int64(os.Getpid())); err != nil {
		return fmt.Errorf("joining the memory group: %w", err)
	}
	return nil
}

// writeNumber writes to a file that must exist.
func writeNumber(name string, n int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.FormatInt(n, 10))
	return errors.Join(err, f.Close())
}
