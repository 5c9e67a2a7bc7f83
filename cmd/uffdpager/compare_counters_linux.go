package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// flushWithIPI is the reason of tlb:tlb_flush events that interrupted another
// processor (TLB_REMOTE_SEND_IPI in the kernel).
const flushWithIPI = "reason==4"

// openCounters opens counters of system calls and of TLB flushes that interrupt
// other processors, see perf_event_open(2). They count the calling thread and
// what it starts from now on, so that a process started by it can read what
// itself has done. Needs root or CAP_PERFMON, and tracefs.
func openCounters() ([]*os.File, error) {
	var files []*os.File
	for _, event := range []struct{ name, filter string }{
		{"raw_syscalls/sys_enter", ""},
		{"tlb/tlb_flush", flushWithIPI},
	} {
		f, err := openCounter(event.name, event.filter)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// whyNotCounted is why openCounters fails here, nil if it does not.
func whyNotCounted() error {
	files, err := openCounters()
	for _, f := range files {
		f.Close()
	}
	return err
}

func openCounter(event, filter string) (*os.File, error) {
	var id uint64
	for _, root := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		b, err := os.ReadFile(root + "/events/" + event + "/id")
		if err == nil {
			id, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		}
		if err == nil {
			break
		}
	}
	if id == 0 {
		return nil, fmt.Errorf("the tracepoint %s cannot be found; it can where tracefs is mounted: mount -t tracefs nodev /sys/kernel/tracing", event)
	}
	fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{
		Type: unix.PERF_TYPE_TRACEPOINT, Size: perfAttrSize, Config: id, Bits: unix.PerfBitInherit,
	}, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if filter != "" {
		if err := setEventFilter(fd, filter); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), event), nil
}

// readCounter reads a counter by its descriptor.
func readCounter(fd int) (float64, bool) {
	var b [8]byte
	if n, err := unix.Read(fd, b[:]); n != len(b) || err != nil {
		return 0, false
	}
	return float64(binary.NativeEndian.Uint64(b[:])), true
}

// machineFlushes is the TLB line of /proc/interrupts, over all processors.
func machineFlushes() (float64, bool) {
	b, err := os.ReadFile("/proc/interrupts")
	if err != nil {
		return 0, false
	}
	_, rest, ok := strings.Cut(string(b), "TLB:")
	if !ok {
		return 0, false
	}
	line, _, _ := strings.Cut(rest, "\n")
	sum := 0.0
	for _, w := range strings.Fields(line) {
		n, err := strconv.ParseFloat(w, 64)
		if err != nil {
			break
		}
		sum += n
	}
	return sum, true
}

// machineBusy is the processor time, in seconds, that all processes of the
// machine have used (proc(5), the first line of /proc/stat).
func machineBusy() (float64, bool) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, false
	}
	line, _, _ := strings.Cut(string(b), "\n")
	w := strings.Fields(line)
	if len(w) < 9 || w[0] != "cpu" {
		return 0, false
	}
	ticks := 0.0
	for i, s := range w[1:9] {
		if i == 3 || i == 4 { // idle, iowait
			continue
		}
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, false
		}
		ticks += n
	}
	return ticks / 100, true // USER_HZ is 100 on every system Go runs on
}

// deviceBytes is what the process has had read from storage and written to it, in
// bytes (proc(5), /proc/pid/io).
func deviceBytes() (sum float64, ok bool) {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, false
	}
	for _, name := range []string{"\nread_bytes: ", "\nwrite_bytes: "} {
		_, rest, found := strings.Cut(string(b), name)
		if !found {
			return 0, false
		}
		line, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.ParseFloat(line, 64)
		if err != nil {
			return 0, false
		}
		sum += n
	}
	return sum, true
}
