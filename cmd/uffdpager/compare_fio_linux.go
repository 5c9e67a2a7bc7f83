package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func haveFio() bool {
	_, err := exec.LookPath("fio")
	return err == nil
}

// runFio has fio read the file, past the page cache, with Linux AIO: whatever
// the workload, the device sees random reads of blocks, or a scan by chunks.
func runFio(ctx context.Context, s rowSpec, file *os.File) rowResult {
	how := "randread"
	block := int64(blockSize)
	if s.Row.Chunk > 0 {
		how, block = "read", s.Row.Chunk
	}
	ctx, cancel := context.WithTimeout(ctx, s.Duration+turnGrace)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", "--name=device", fmt.Sprintf("--filename=/proc/self/fd/%d", rowFileFD),
		"--rw="+how, fmt.Sprintf("--bs=%d", block), "--ioengine=libaio", "--direct=1", fmt.Sprintf("--iodepth=%d", s.Row.Goroutines),
		fmt.Sprintf("--size=%d", s.Size), "--norandommap", fmt.Sprintf("--randseed=%d", s.Seed), "--readonly", "--allow_file_create=0",
		"--thread", "--time_based", fmt.Sprintf("--runtime=%dms", s.Duration.Milliseconds()), "--output-format=json")
	cmd.ExtraFiles = []*os.File{file}
	cmd.WaitDelay = time.Second
	// fio is not to go on reading when this process is killed: it is told by the
	// end of the thread that has started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			line, _, _ := strings.Cut(strings.TrimSpace(string(exit.Stderr)), "\n")
			err = errors.New(line)
		}
		return rowResult{Error: "fio: " + err.Error()}
	}
	return parseFio(out, block)
}

// parseFio takes the figures out of fio's report of reads of so many bytes each. An op,
// and a miss, is a block of it as in all rows; latency is that of a read.
func parseFio(out []byte, size int64) rowResult {
	var report struct {
		Jobs []struct {
			Error int `json:"error"`
			Read  struct {
				IOPS    float64 `json:"iops"`
				IOs     float64 `json:"total_ios"`
				Latency struct {
					Max        float64            `json:"max"`
					Percentile map[string]float64 `json:"percentile"`
				} `json:"clat_ns"`
			} `json:"read"`
			RuntimeMS float64 `json:"job_runtime"`
			User      float64 `json:"usr_cpu"` // percent of one processor
			System    float64 `json:"sys_cpu"`
			Switches  float64 `json:"ctx"`
			Major     float64 `json:"majf"`
		} `json:"jobs"`
	}
	// Warnings may come first.
	if i := strings.IndexByte(string(out), '{'); i > 0 {
		out = out[i:]
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return rowResult{Error: fmt.Sprintf("fio: %v", err)}
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 || report.Jobs[0].Read.IOs == 0 {
		return rowResult{Error: "fio: it read nothing"}
	}
	j := report.Jobs[0]
	each := float64(size / blockSize) // blocks of a read
	cpu := (j.User + j.System) / 100 * j.RuntimeMS * 1e3 / (j.Read.IOs * each)
	m := map[string]float64{
		mOps: j.Read.IOPS * each, mMisses: j.Read.IOPS * each, mMax: j.Read.Latency.Max / 1e3,
		mCPU: cpu, mCPUOp: cpu, mSwitches: j.Switches / (j.Read.IOs * each), mReadAmp: 1,
	}
	for name, p := range map[string]string{mP50: "50.000000", mP99: "99.000000"} {
		if v, ok := j.Read.Latency.Percentile[p]; ok && !math.IsNaN(v) {
			m[name] = v / 1e3
		}
	}
	return rowResult{Metrics: m}
}
