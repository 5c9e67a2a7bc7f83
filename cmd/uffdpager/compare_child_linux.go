package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/gauge"
	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/pager"
)

// compareRowCommand is the process of one row: a rowSpec on standard input, a
// rowResult on standard output.
func compareRowCommand(stdin io.Reader, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: rowCommandName, Hidden: true, Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			var s rowSpec
			if err := json.NewDecoder(stdin).Decode(&s); err != nil {
				return usagef("%s is for compare's own use: %v", rowCommandName, err)
			}
			res, err := measureRow(s)
			if err != nil {
				return err
			}
			return json.NewEncoder(stdout).Encode(res)
		},
	}
}

// bench is the work of a row: goroutines that read block after block.
type bench struct {
	spec    rowSpec
	way     *way
	began   time.Time
	from    atomic.Int64 // ns after began: latencies count from here on; 0: not yet
	stop    atomic.Bool
	readers []reader
	wait    sync.WaitGroup
	failed  atomic.Pointer[error]
}

// reader is what one goroutine counts. Only it writes.
type reader struct {
	ops     atomic.Int64
	latency ladder
	_       [64]byte
}

// measureRow does the work of a row in this process.
func measureRow(s rowSpec) (rowResult, error) {
	if s.Group != "" {
		// First of all, so that everything this process uses is charged.
		if err := joinGroup(s.Group); err != nil {
			return rowResult{}, err
		}
	}
	runtime.GOMAXPROCS(s.Row.Procs)
	file := os.NewFile(rowFileFD, "data")
	if file == nil {
		return rowResult{}, errors.New("there is no file to read")
	}
	w, err := openWay(s, file)
	if err != nil {
		return rowResult{}, err
	}
	if w.prefill != nil && !s.Row.Unlimited {
		// With anything, and fast: a row that still has room does not show what
		// making room costs.
		for _, part := range s.prefill(w.keeps) {
			if err := readThrough(w.prefill, part); err != nil {
				return rowResult{}, err
			}
		}
	}
	b := &bench{spec: s, way: w, readers: make([]reader, s.Row.Goroutines)}
	r := newReaders(s)
	b.began = time.Now()
	tick := startCountingTicker(tickPeriod)
	if w.drive != nil { // one goroutine does it all
		b.wait.Go(func() { b.fail(w.drive(b, r.stream(0))) })
	} else {
		for i := range b.readers {
			b.wait.Go(func() { b.work(&b.readers[i], r.stream(i), w.read(i)) })
		}
	}
	if w.beside != nil {
		go w.beside(b.stop.Load)
	}
	b.warm()
	b.from.Store(int64(time.Since(b.began)))
	gauge.ResetPeak()
	before := b.look(tick)
	b.measure(before)
	after := b.look(tick)
	process, err := gauge.ReadProcess()
	b.stop.Store(true)
	if err := b.failed.Load(); err != nil {
		return rowResult{}, *err
	}
	// How the row ends is no part of it: what hangs now has been measured.
	res := rowResult{Metrics: b.metrics(before, after), Notes: w.notes()}
	if err == nil {
		res.Metrics[mThreads] = float64(process.Threads)
		res.Metrics[mRSS] = float64(max(process.RSSPeak, process.RSS))
		res.Metrics[mTables] = float64(process.PageTables)
	}
	if after.ops == before.ops {
		return rowResult{}, fmt.Errorf("stands still: nothing done in %v", s.Duration+standstill)
	}
	return res, nil
}

// readThrough reads a part of the file.
func readThrough(readAt func(p []byte, off int64) (int, error), part pager.Range) error {
	buf := make([]byte, 1<<20)
	for done := int64(0); done < part.Len; done += int64(len(buf)) {
		if _, err := readAt(buf[:min(int64(len(buf)), part.Len-done)], part.Off+done); err != nil {
			return err
		}
	}
	return nil
}

// standstill is how much longer than its time a row may take for its first op.
const standstill = 3 * time.Second

// measure waits for the time of the row, and then, if need be, for one op.
func (b *bench) measure(before snapshot) {
	end := before.at.Add(b.spec.Duration)
	for b.failed.Load() == nil {
		left := time.Until(end)
		if left <= 0 && (b.ops() > before.ops || left < -standstill) {
			return
		}
		time.Sleep(min(max(left, time.Millisecond), 100*time.Millisecond))
	}
}

// ops is how many are done.
func (b *bench) ops() (n int64) {
	for i := range b.readers {
		n += b.readers[i].ops.Load()
	}
	return n
}

// warm waits until the row goes as it will go on: its memory is full, of what
// the workload keeps there, or Warmup is over.
func (b *bench) warm() {
	s := b.spec
	fill := float64(s.Memory) / 10
	switch s.Workload {
	case loadZipf, loadHotScan, loadRandom: // at random: what memory was filled with before has left
		fill = float64(s.Memory) * 1.1
	}
	limit := s.Warmup
	if b.way.drive != nil || s.Row.Warm { // there is nothing to fill
		limit = min(limit, 50*time.Millisecond)
	}
	before, _ := deviceBytes()
	for over := time.Now().Add(limit); time.Now().Before(over) && b.failed.Load() == nil; {
		if n, ok := deviceBytes(); ok && n-before >= fill {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (b *bench) fail(err error) {
	if err != nil {
		b.failed.CompareAndSwap(nil, &err)
	}
}

// work reads until it is told to stop. An op begins when the one before it has
// ended, so that time in which the goroutine gets no processor counts.
//
// It never yields by itself, as an ordinary program does not.
func (b *bench) work(r *reader, next func() int64, read readFunc) {
	last := time.Since(b.began)
	for !b.stop.Load() {
		off := next() * blockSize
		if err := read(off); err != nil {
			b.fail(fmt.Errorf("at offset %d: %w", off, err))
			return
		}
		now := time.Since(b.began)
		b.record(r, last, now)
		last = now
	}
}

// record counts an op.
func (b *bench) record(r *reader, began, ended time.Duration) { b.recordBlocks(r, 1, began, ended) }

// recordBlocks counts one read of several blocks.
func (b *bench) recordBlocks(r *reader, blocks int64, began, ended time.Duration) {
	if from := b.from.Load(); from != 0 && int64(ended) > from {
		r.latency.add(ended - began)
	}
	r.ops.Store(r.ops.Load() + blocks)
}

// takeBlock reads every byte of a block, and proves where it belongs if the file is
// stamped.
func takeBlock(mem []byte, off int64, stamped bool) error {
	s := sum(mem)
	if stamped {
		if version, ok := stamp.Version(mem, off); !ok || version != 0 {
			return fmt.Errorf("the bytes are not those of the file (sum %x)", s)
		}
	}
	taken.Store(s)
	return nil
}

// taken keeps the compiler from leaving the sums out. A plain store to it is
// rare: see sink.
var taken sink

// snapshot is all counters at one moment.
type snapshot struct {
	at       time.Time
	ops      int64
	misses   float64 // negative: the way cannot tell
	cpu      float64 // s
	switches float64
	major    float64
	begun    float64 // allocations before this snapshot
	allocs   float64 // and after it: it makes some itself, more than some rows
	ticks    float64
	moved    float64 // bytes from or to the device; negative: not told
	others   float64 // s of processor time of the machine; negative: not told
	flushes  float64 // of the machine; negative: not told
	syscalls float64 // negative: not counted
	ipis     float64 // negative: not counted
}

func (b *bench) look(t *countingTicker) (s snapshot) {
	told := func(v float64, ok bool) float64 {
		if !ok {
			return -1
		}
		return v
	}
	s.at, s.begun = time.Now(), allocations()
	s.ops = b.ops()
	s.misses = -1
	if b.way.misses != nil {
		s.misses = float64(b.way.misses())
	}
	s.ticks = float64(t.fired.Load())
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	s.cpu = float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	s.switches, s.major = float64(u.Nvcsw+u.Nivcsw), float64(u.Majflt)
	s.moved = told(deviceBytes())
	s.others = told(machineBusy())
	s.flushes = told(machineFlushes())
	s.syscalls, s.ipis = -1, -1
	if b.spec.Counters {
		s.syscalls = told(readCounter(rowSyscallsFD))
		s.ipis = told(readCounter(rowFlushesFD))
	}
	s.allocs = allocations()
	return s
}

// allocations is how many objects the process has allocated.
func allocations() float64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:objects"}}
	metrics.Read(s)
	return float64(s[0].Value.Uint64())
}

// metrics makes figures of what lies between two snapshots.
func (b *bench) metrics(before, after snapshot) map[string]float64 {
	took := after.at.Sub(before.at).Seconds()
	ops := float64(after.ops - before.ops)
	misses := after.misses - before.misses
	if after.misses < 0 {
		// What the device delivered, in blocks: with read-ahead that is more
		// than was missed.
		misses = ops
		if after.moved >= 0 {
			misses = min((after.moved-before.moved)/blockSize, ops)
		}
	}
	m := map[string]float64{
		mOps: ops / took, mMisses: misses / took, mTicks: (after.ticks - before.ticks) / took,
		mFaults: (after.major - before.major) / took,
	}
	perMiss := func(name string, from, to float64) {
		if misses > 0 && from >= 0 {
			m[name] = (to - from) / misses
		}
	}
	perMiss(mCPU, before.cpu*1e6, after.cpu*1e6)
	if ops > 0 {
		m[mCPUOp] = (after.cpu - before.cpu) * 1e6 / ops
	}
	perMiss(mSwitches, before.switches, after.switches)
	perMiss(mAllocs, before.allocs, after.begun)
	perMiss(mMachine, before.flushes, after.flushes)
	perMiss(mSyscalls, before.syscalls, after.syscalls)
	perMiss(mIPIs, before.ipis, after.ipis)
	if after.moved >= 0 && ops > 0 {
		m[mReadAmp] = (after.moved - before.moved) / (ops * blockSize)
	}
	if after.others >= 0 {
		m[mOthers] = max((after.others-before.others-(after.cpu-before.cpu))/took, 0)
	}
	all := new(ladder)
	for i := range b.readers {
		all.merge(&b.readers[i].latency)
	}
	if all.count > 0 {
		m[mP50], m[mP99], m[mMax] = micros(all.quantile(.5)), micros(all.quantile(.99)), micros(time.Duration(all.max))
	}
	return m
}

// ladder is a histogram of durations: 16 steps for each doubling.
type ladder struct {
	steps [ladderSteps]uint32
	count uint64
	max   int64
}

const (
	ladderBits  = 4
	ladderSteps = 40 << ladderBits // up to 2^43 ns, over two hours
)

func ladderStep(ns int64) int {
	v := uint64(max(ns, 1<<ladderBits))
	shift := bits.Len64(v) - 1 - ladderBits
	return min(shift<<ladderBits+int(v>>shift)-1<<ladderBits, ladderSteps-1)
}

func (l *ladder) add(d time.Duration) {
	l.steps[ladderStep(int64(d))]++
	l.count++
	l.max = max(l.max, int64(d))
}

func (l *ladder) merge(m *ladder) {
	for i, n := range &m.steps {
		l.steps[i] += n
	}
	l.count += m.count
	l.max = max(l.max, m.max)
}

// quantile is the upper end of the step that a share q of the durations does not
// exceed: at most a sixteenth too long.
func (l *ladder) quantile(q float64) time.Duration {
	want := uint64(q*float64(l.count)) + 1
	var seen uint64
	for i, n := range &l.steps {
		if seen += uint64(n); seen >= want {
			shift, part := i>>ladderBits, i&(1<<ladderBits-1)
			return min(time.Duration((part+1<<ladderBits+1)<<shift), time.Duration(l.max))
		}
	}
	return time.Duration(l.max)
}

// countingTicker is a goroutine that wants to run every period.
type countingTicker struct{ fired atomic.Int64 }

func startCountingTicker(period time.Duration) *countingTicker {
	t := new(countingTicker)
	go func() {
		for range time.NewTicker(period).C {
			t.fired.Add(1)
		}
	}()
	return t
}
