package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func compareSupported() error { return nil }

// turnGrace is how long beyond its time a row may take before it counts as
// hung. Large enough for a process that has to share two processors with 256
// threads.
const turnGrace = 20 * time.Second

// The descriptors that the process of a row is given.
const (
	rowFileFD     = 3
	rowSyscallsFD = 4
	rowFlushesFD  = 5
)

// rowCommandName is the hidden command that runs one row.
const rowCommandName = "compare-row"

// runRow runs a row in a process of its own.
func runRow(ctx context.Context, spec rowSpec, file *os.File, groups memoryGroups, counted bool) (res rowResult) {
	fail := func(err error) rowResult { return rowResult{Error: err.Error()} }
	exe, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	peak := func() int64 { return 0 }
	if !spec.Row.Unlimited && groups.why == "" {
		var remove func()
		if spec.Group, peak, remove, err = groups.make(); err != nil {
			return fail(err)
		}
		defer remove()
	}
	cmd := exec.Command(exe, rowCommandName)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &limitedWriter{w: &stderr, left: 64 << 10}
	cmd.ExtraFiles = []*os.File{file}
	cmd.Env = append(os.Environ(), "GOTRACEBACK=none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	// Pdeathsig and the counters belong to the thread that starts the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if counted {
		if files, err := openCounters(); err == nil {
			spec.Counters = true
			for _, f := range files {
				defer f.Close()
			}
			cmd.ExtraFiles = append(cmd.ExtraFiles, files...)
		}
	}
	in, err := json.Marshal(spec)
	if err != nil {
		return fail(err)
	}
	cmd.Stdin = bytes.NewReader(in)
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	limit := spec.Warmup + spec.Duration + turnGrace
	hung := false
	over := time.AfterFunc(limit, func() {
		hung = true
		cmd.Process.Kill()
	})
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	err = cmd.Wait()
	stop()
	switch inTime := over.Stop(); {
	case !inTime && hung:
		return fail(fmt.Errorf("hung: not done after %v", limit))
	case err != nil:
		return fail(rowFailure(err, stderr.String()))
	}
	if err := json.Unmarshal(stdout.Bytes(), &res); err != nil {
		return fail(fmt.Errorf("no result: %w", err))
	}
	if n := peak(); n > 0 && res.Metrics != nil {
		res.Metrics[mCharged] = float64(n)
	}
	return res
}

// rowFailure says in one line how a process ended.
func rowFailure(err error, stderr string) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() && w.Signal() == syscall.SIGKILL {
			return errors.New("killed: most likely it exceeded the memory limit")
		}
	}
	first, _, _ := strings.Cut(strings.TrimSpace(stderr), "\n")
	if first == "" {
		return err
	}
	return errors.New(strings.TrimPrefix(first, "uffdpager: "))
}

// limitedWriter keeps the beginning of what is written.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// warmCache reads the whole file into the page cache, again if that did not keep
// all of it. It returns how many bytes of it are there.
func warmCache(f *os.File, size int64) (cached int64) {
	buf := make([]byte, 1<<20)
	for range 3 {
		for off := int64(0); off < size; off += int64(len(buf)) {
			if _, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off); err != nil {
				break // the row will say so
			}
		}
		if cached = cachedBytes(f, size); cached >= size-size/1000 {
			break
		}
	}
	return cached
}

// dropAllCache takes the file out of the page cache. It returns how many bytes
// of it stay there.
func dropAllCache(f *os.File, size int64) (left int64) {
	dropCache(f)
	if left = cachedBytes(f, size); left > size/100 {
		// Somebody maps or writes it. As root there is a larger hammer; it is
		// used only if needed, for it hits everybody.
		unix.Fdatasync(int(f.Fd()))
		os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0)
		left = cachedBytes(f, size)
	}
	return left
}

// cachedBytes is how much of the file is in the page cache, see mincore(2); 0
// where that is not told.
func cachedBytes(f *os.File, size int64) (n int64) {
	const chunk = 1 << 30
	vec := make([]byte, chunk/blockSize)
	for off := int64(0); off < size; off += chunk {
		mem, err := unix.Mmap(int(f.Fd()), off, int(min(chunk, size-off)), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return 0
		}
		if mincore(mem, vec) == nil {
			for _, v := range vec[:(len(mem)+blockSize-1)/blockSize] {
				n += int64(v & 1)
			}
		}
		unix.Munmap(mem)
	}
	return n * blockSize
}
