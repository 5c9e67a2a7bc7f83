package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// report is what a run has to say: the object that --json prints. Times in µs
// or s and sizes in bytes, as the names say.
type report struct {
	Workload   string  `json:"workload"`
	Goroutines int     `json:"goroutines"`
	Ops        int64   `json:"ops"`    // finished, failed ones included; each accesses one page
	Hits       int64   `json:"hits"`   // page accesses less misses
	Misses     int64   `json:"misses"` // page accesses that waited for a page
	Errors     int64   `json:"errors"` // ops that failed
	DurationS  float64 `json:"duration_s"`
	OpsPerS    float64 `json:"ops_per_s"`
	MissesPerS float64 `json:"misses_per_s"`

	LatencyUS    quantiles `json:"latency_us"` // of an op, hits included
	CPUPerMissUS float64   `json:"cpu_us_per_miss"`

	BudgetBytes       int64 `json:"budget_bytes"`
	PeakResidentBytes int64 `json:"peak_resident_bytes"` // within the budget
	RSSPeakBytes      int64 `json:"rss_peak_bytes"`      // of the whole process
	PageTableBytes    int64 `json:"page_table_bytes"`    // of the whole process, at most

	ReadBytes    int64 `json:"read_bytes"` // from the store
	WrittenBytes int64 `json:"written_bytes"`
	Evictions    int64 `json:"evictions"`
	Writebacks   int64 `json:"writebacks"`

	Park        parkReport   `json:"park"`
	IO          ioReport     `json:"io"`
	ThreadsPeak int64        `json:"threads_peak"`
	Ticker      tickerReport `json:"ticker"`

	Verified   int64 `json:"verified"`   // bytes compared; equals AccessedBytes with --verify
	Mismatches int64 `json:"mismatches"` // blocks that differed

	// What follows is more than the main figures.
	File          string          `json:"file"`
	SizeBytes     int64           `json:"size_bytes"`
	PageSizeBytes int             `json:"page_size_bytes"`
	Access        string          `json:"access"`
	Evict         string          `json:"evict"`
	Seed          uint64          `json:"seed"`
	HitRatio      float64         `json:"hit_ratio"`
	Joined        int64           `json:"joined"` // of the misses, those that waited for a read that was under way already
	Reads         int64           `json:"reads"`
	MissLatencyUS quantiles       `json:"miss_latency_us"`
	AccessedBytes int64           `json:"accessed_bytes"` // read by the ops
	Writes        int64           `json:"writes"`         // ops that wrote
	SyncS         float64         `json:"sync_s"`
	SurvivedBytes int64           `json:"survived_bytes"` // written, synced, and read back from the file past the pager
	Prefetch      prefetchReport  `json:"prefetch"`
	MakeS         float64         `json:"make_s"` // making the file
	Interrupted   bool            `json:"interrupted"`
	Wedged        int64           `json:"wedged"`              // faults, I/Os, pins that took longer than pager.Options.WedgeLimit
	WedgedBy      []string        `json:"wedged_by,omitempty"` // the first of them
	Notes         []string        `json:"notes,omitempty"`
	Error         string          `json:"error,omitempty"`
	blocked       []blockedReport // the part of Park.BlockedBy that is printed
}

type quantiles struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

type parkReport struct {
	Mode          string          `json:"mode"`
	InPlace       int64           `json:"in_place"`       // faults that parked their goroutine at the instruction
	ThreadBlocked int64           `json:"thread_blocked"` // faults that made their thread wait
	Restarted     int64           `json:"restarted"`      // closures of View that ran again
	Why           string          `json:"why"`
	BlockedBy     []blockedReport `json:"blocked_by,omitempty"`
}

type blockedReport struct {
	Func   string `json:"func"`
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
}

type ioReport struct {
	Engine string `json:"engine"`
	Direct bool   `json:"direct"`
}

type tickerReport struct {
	PeriodUS float64 `json:"period_us"`
	Expected int64   `json:"expected"` // what it did in an idle second, scaled to the run
	Fired    int64   `json:"fired"`
}

type prefetchReport struct {
	Policy string `json:"policy"`
	Issued int64  `json:"issued"`
	Used   int64  `json:"used"`
	Unused int64  `json:"unused"`
	Late   int64  `json:"late"`
	// Recorded is the pages of the trace that was made.
	Recorded int64 `json:"recorded"`
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func perSecond(n int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

func share(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// failure is why the run counts as failed, in one line; "" when it does not.
func (r *report) failure() string {
	switch {
	case r.Error != "":
		return r.Error
	case r.Mismatches > 0:
		return fmt.Sprintf("%s of the blocks differ from what they must hold", count(r.Mismatches))
	case r.Errors > 0:
		return fmt.Sprintf("%s of %s ops failed", count(r.Errors), count(r.Ops))
	}
	return ""
}

func (r *report) writeJSON(w io.Writer) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	return err
}

// writeText prints the report for a reader.
func (r *report) writeText(w io.Writer) error {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	how := fmt.Sprintf("%s by %s through %s", r.Workload, plural(int64(r.Goroutines), "goroutine"), r.Access)
	if r.Interrupted {
		how += ", interrupted"
	}
	fmt.Fprintf(&b, "%s\n", how)
	row("file", "%s of %s, budget %s, pages of %s", r.File, humanBytes(r.SizeBytes), humanBytes(r.BudgetBytes), humanBytes(int64(r.PageSizeBytes)))
	row("ops", "%s in %.1f s: %s/s", count(r.Ops), r.DurationS, count(int64(r.OpsPerS)))
	row("misses", "%s: %s/s (hit ratio %.1f %%)", count(r.Misses), count(int64(r.MissesPerS)), 100*r.HitRatio)
	row("op latency", "%v", r.LatencyUS)
	if r.MissLatencyUS.Max > 0 {
		row("miss latency", "%v", r.MissLatencyUS)
	}
	if r.Misses > 0 {
		row("CPU", "%.1f µs a miss, everything the program does included", r.CPUPerMissUS)
	}
	row("memory", "%s of pages at most; process %s, page tables %s", humanBytes(r.PeakResidentBytes), humanBytes(r.RSSPeakBytes), humanBytes(r.PageTableBytes))
	row("I/O", "%s read in %s with %s%s; %s evicted", humanBytes(r.ReadBytes), plural(r.Reads, "read"), r.IO.Engine, directly(r.IO.Direct), plural(r.Evictions, "page"))
	if r.WrittenBytes > 0 || r.Writes > 0 {
		row("writing", "%s, %s written back (%s), sync %.2f s", plural(r.Writes, "op"), plural(r.Writebacks, "page"), humanBytes(r.WrittenBytes), r.SyncS)
	}
	switch p := r.Prefetch; {
	case p.Policy == "record":
		row("prefetch", "record: %s in the trace", plural(p.Recorded, "page"))
	case p.Issued > 0 || p.Policy == "replay":
		row("prefetch", "%s: %s ahead, %s used, %s unused, %s late", p.Policy, plural(p.Issued, "page"), count(p.Used), count(p.Unused), count(p.Late))
	}
	row("faults", "%s parked in place, %s blocked a thread, %s restarted (%s)", count(r.Park.InPlace), count(r.Park.ThreadBlocked), count(r.Park.Restarted), r.Park.Mode)
	for _, by := range r.blocked {
		row("", "%s blocked in %s: %s", count(by.Count), by.Func, by.Reason)
	}
	row("threads", "%d at most; a %.0f µs ticker fired %.0f %% as often as when idle", r.ThreadsPeak, r.Ticker.PeriodUS, 100*share(r.Ticker.Fired, r.Ticker.Expected))
	if r.Wedged > 0 {
		row("wedged", "%s longer than %v:", plural(r.Wedged, "wait")+was(r.Wedged), wedgeLimit)
		for _, by := range r.WedgedBy {
			row("", "%s", by)
		}
	}
	switch {
	case r.Mismatches > 0:
		row("verified", "%s, %s DIFFER", humanBytes(r.Verified), plural(r.Mismatches, "block"))
	case r.Verified > 0:
		row("verified", "%s, every byte as it must be", humanBytes(r.Verified))
	}
	if r.SurvivedBytes > 0 {
		row("", "%s of what was written read back from the file", humanBytes(r.SurvivedBytes))
	}
	for _, note := range r.Notes {
		row("note", "%s", note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// String is for reading.
func (q quantiles) String() string {
	f := func(us float64) time.Duration {
		d := time.Duration(us * float64(time.Microsecond))
		for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
			if d >= unit {
				return d.Round(unit / 100)
			}
		}
		return d
	}
	return fmt.Sprintf("p50 %v, p90 %v, p99 %v, max %v", f(q.P50), f(q.P90), f(q.P99), f(q.Max))
}

func directly(direct bool) string {
	if direct {
		return ", past the page cache"
	}
	return " through the page cache"
}

// was is the verb for n of something.
func was(n int64) string {
	if n == 1 {
		return " was"
	}
	return " were"
}

func plural(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return count(n) + " " + noun + "s"
}
