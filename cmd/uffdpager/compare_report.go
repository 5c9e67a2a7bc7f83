package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// The metrics of a row.
const (
	mOps      = "ops_per_s"
	mMisses   = "misses_per_s"
	mRatio    = "misses_to_device" // misses/s to those of the bare device just before and after
	mP50      = "p50_us"
	mP99      = "p99_us"
	mMax      = "max_us"
	mCPU      = "cpu_us_per_miss"
	mCPUOp    = "cpu_us_per_op"
	mSyscalls = "syscalls_per_miss"
	mSwitches = "context_switches_per_miss"
	mIPIs     = "tlb_ipis_per_miss"         // flushes that interrupted another processor, of this process
	mMachine  = "tlb_ipis_machine_per_miss" // the TLB line of /proc/interrupts, of all processes
	mAllocs   = "allocs_per_miss"
	mThreads  = "threads"
	mTicks    = "ticks_per_s"
	mReadAmp  = "bytes_read_per_useful_byte"
	mRSS      = "rss_peak_bytes"
	mTables   = "page_table_bytes"
	mCharged  = "memory_peak_bytes" // of the control group: page cache and kernel memory included
	mFaults   = "major_faults_per_s"
	mOthers   = "processors_used_by_others"
)

// comparison is what compare has to say: the object that --json prints.
type comparison struct {
	Workload    compareWorkload `json:"workload"`
	File        string          `json:"file"`
	SizeBytes   int64           `json:"size_bytes"`
	BudgetBytes int64           `json:"budget_bytes"`
	MemoryBytes int64           `json:"memory_bytes"`
	Limited     bool            `json:"memory_limited"`
	Rounds      int             `json:"rounds"`
	DurationS   float64         `json:"duration_s"`
	Seed        uint64          `json:"seed"`
	Processors  int             `json:"processors"`
	Go          string          `json:"go"`
	Kernel      string          `json:"kernel"`
	IdleTicks   float64         `json:"idle_ticks_per_s"` // of the 200 µs ticker when nothing else happens
	Rows        []*rowReport    `json:"rows"`
	Notes       []string        `json:"notes,omitempty"`
}

// rowReport is a row over all rounds.
type rowReport struct {
	compareRow
	What    string            `json:"what"`
	Turns   int               `json:"turns"` // that ended well
	Figures map[string]figure `json:"figures"`
	Notes   []string          `json:"notes,omitempty"`
	Errors  []string          `json:"errors,omitempty"`

	samples  map[string][]float64
	progress string  // the metric that is set in proportion to the device's
	last     float64 // … of the latest turn, until that is done
	lastOK   bool
}

// figure is a median over the rounds, with the range.
type figure struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func newRowReport(r compareRow) *rowReport {
	return &rowReport{compareRow: r, What: r.describe(), progress: mMisses, samples: map[string][]float64{}}
}

// add takes over the result of one turn.
func (r *rowReport) add(res rowResult) {
	r.lastOK = r.take(res)
	if !r.lastOK {
		return
	}
	r.Turns++
	r.last = res.Metrics[r.progress]
	for name, v := range res.Metrics {
		r.samples[name] = append(r.samples[name], v)
	}
}

// count takes over of a turn only what could not be counted in the others.
func (r *rowReport) count(res rowResult) {
	if res.Error != "" {
		res.Error = "in the turn that counts: " + res.Error
	}
	if !r.take(res) {
		return
	}
	for _, name := range []string{mSyscalls, mIPIs} {
		if v, ok := res.Metrics[name]; ok {
			r.samples[name] = append(r.samples[name], v)
		}
	}
}

func (r *rowReport) take(res rowResult) (ok bool) {
	for _, n := range res.Notes {
		r.Notes = addNote(r.Notes, n)
	}
	if res.Error != "" {
		r.Errors = addNote(r.Errors, res.Error)
	}
	return res.Error == ""
}

// relate sets the latest turn in proportion to the device's.
func (r *rowReport) relate(device float64) {
	if r.lastOK && device > 0 {
		r.samples[mRatio] = append(r.samples[mRatio], r.last/device)
	}
}

// finish turns samples into figures.
func (c *comparison) finish() {
	for _, r := range c.Rows {
		r.Figures = map[string]figure{}
		for name, s := range r.samples {
			r.Figures[name] = figureOf(s)
		}
	}
}

func figureOf(s []float64) figure {
	s = slices.Clone(s)
	slices.Sort(s)
	mid := len(s) / 2
	f := figure{Median: s[mid], Min: s[0], Max: s[len(s)-1]}
	if len(s)%2 == 0 {
		f.Median = (s[mid-1] + s[mid]) / 2
	}
	return f
}

// failure is an error if one of our own rows never ended well. That a peer hangs
// or fails is a result.
func (c *comparison) failure() error {
	var failed []string
	for _, r := range c.Rows {
		if r.Turns == 0 && (r.Group == groupPager || r.Way == wayDevice) {
			failed = append(failed, fmt.Sprintf("%s: %s", r.Name, strings.Join(r.Errors, "; ")))
		}
	}
	if failed == nil {
		return nil
	}
	return errors.New(strings.Join(failed, "; "))
}

// column is one column of a table.
type column struct {
	head string
	name string
	show func(float64) string
}

var speedColumns = []column{
	{"ops/s", mOps, showCount},
	{"misses/s", mMisses, showCount},
	{"of device", mRatio, showRatio},
	{"p50", mP50, showMicros},
	{"p99", mP99, showMicros},
	{"max", mMax, showMicros},
	{"CPU/miss", mCPU, showMicros},
	{"ticks/s", mTicks, showCount},
	{"read/useful", mReadAmp, showRatio},
}

var costColumns = []column{
	{"CPU/op", mCPUOp, showMicros},
	{"syscalls", mSyscalls, showRatio},
	{"switches", mSwitches, showRatio},
	{"TLB IPIs", mIPIs, showFine},
	{"IPIs, all", mMachine, showFine},
	{"allocs", mAllocs, showFine},
	{"threads", mThreads, showCount},
	{"RSS", mRSS, showBytes},
	{"page tables", mTables, showBytes},
	{"charged", mCharged, showBytes},
	{"others' CPUs", mOthers, showRatio},
}

func showCount(v float64) string { return count(int64(math.Round(v))) }
func showRatio(v float64) string {
	if v >= 100 {
		return showCount(v)
	}
	return fmt.Sprintf("%.2f", v)
}
func showFine(v float64) string  { return fmt.Sprintf("%.3f", v) }
func showBytes(v float64) string { return humanBytes(int64(v)) }
func showMicros(v float64) string {
	d := time.Duration(v * 1e3)
	switch {
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d >= 100*time.Microsecond:
		return d.Round(time.Microsecond).String()
	}
	return fmt.Sprintf("%.1fµs", v)
}

// cell is the text of a figure, and of its range.
func (r *rowReport) cell(c column) (median, spread string) {
	f, ok := r.Figures[c.name]
	if !ok {
		return "n/a", ""
	}
	return c.show(f.Median), c.show(f.Min) + "–" + c.show(f.Max)
}

// mark is put behind the name of a row that is not like the others.
func (r *rowReport) mark() string {
	m := ""
	if !r.Direct {
		m += "*"
	}
	if r.Unlimited {
		m += "+"
	}
	return m
}

// title says what was compared, in one line each.
func (c *comparison) title() []string {
	limit := fmt.Sprintf("memory limit %s for every row", humanBytes(c.MemoryBytes))
	if !c.Limited {
		limit = "no memory limit"
	}
	return []string{
		fmt.Sprintf("%s of 4 KiB, %s of %s; budget %s, %s", c.Workload.describe(), c.File, humanBytes(c.SizeBytes), humanBytes(c.BudgetBytes), limit),
		fmt.Sprintf("%s of %v; %s, Linux %s, %s; the 200 µs ticker fires %s times/s when idle",
			plural(int64(c.Rounds), "round"), time.Duration(c.DurationS*float64(time.Second)), plural(int64(c.Processors), "processor"), c.Kernel, c.Go, showCount(c.IdleTicks)),
	}
}

// describe says in words what is done.
func (w compareWorkload) describe() string {
	switch w {
	case loadOverwrite:
		return "random overwrites"
	case loadStride3:
		return "every third block"
	case loadStride17:
		return "every 17th block"
	case loadReplay:
		return "a recorded random order"
	case loadTree:
		return "walks over a tree of pages"
	case loadBulk:
		return "random reads beside a bulk WillNeed"
	}
	return string(w) + " reads"
}

// legend explains the marks and columns.
var legend = []string{
	"medians over the rounds; range of \"of device\" in the last column",
	"* not direct I/O: the page cache is used, within the memory limit unless + says otherwise",
	"+ memory not limited",
	"of device: misses/s (where reading ahead is compared: ops/s) to those of the bare device, just before and after",
	"latency: of an op, from the end of the goroutine's op before it; CPU: of the whole process, all it does included",
	"per miss: system calls and TLB IPIs are counted by tracepoints in a turn of their own; \"IPIs, all\" are those of every process, by /proc/interrupts",
}

// writeText prints the comparison for a reader.
func (c *comparison) writeText(w io.Writer) error {
	var b strings.Builder
	for _, line := range c.title() {
		fmt.Fprintln(&b, line)
	}
	b.WriteByte('\n')
	c.writeTable(&b, speedColumns, true)
	b.WriteString("\nper miss, and what the process took\n\n")
	c.writeTable(&b, costColumns, false)
	b.WriteByte('\n')
	for _, line := range legend {
		fmt.Fprintln(&b, line)
	}
	for _, r := range c.Rows {
		for _, e := range r.Errors {
			fmt.Fprintf(&b, "%s: %s\n", r.Name, e)
		}
		for _, n := range r.Notes {
			fmt.Fprintf(&b, "%s: %s\n", r.Name, n)
		}
	}
	for _, n := range c.Notes {
		fmt.Fprintln(&b, n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (c *comparison) writeTable(b *strings.Builder, columns []column, spread bool) {
	table := [][]string{{""}}
	for _, col := range columns {
		table[0] = append(table[0], col.head)
	}
	if spread {
		table[0] = append(table[0], "range")
	}
	for _, r := range c.Rows {
		line := []string{r.Name + r.mark()}
		if r.Turns == 0 {
			line = append(line, "failed: see below")
		} else {
			for _, col := range columns {
				median, _ := r.cell(col)
				line = append(line, median)
			}
			if spread {
				_, s := r.cell(column{name: mRatio, show: showRatio})
				line = append(line, s)
			}
		}
		table = append(table, line)
	}
	width := make([]int, len(table[0]))
	for _, line := range table {
		for i, s := range line {
			if len(line) == len(table[0]) {
				width[i] = max(width[i], len([]rune(s)))
			} else if i == 0 {
				width[0] = max(width[0], len([]rune(s)))
			}
		}
	}
	for _, line := range table {
		text := ""
		for i, s := range line {
			pad := strings.Repeat(" ", max(width[i]-len([]rune(s)), 0))
			if i == 0 {
				text += s + pad
			} else {
				text += "  " + pad + s
			}
		}
		fmt.Fprintln(b, strings.TrimRight(text, " "))
	}
}
