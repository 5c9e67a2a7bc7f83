package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// The names that others rely on, in their nesting.
func TestReportHasThePromisedFields(t *testing.T) {
	var b bytes.Buffer
	if err := new(report).writeJSON(&b); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(&b)
	var got map[string]any
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if dec.More() {
		t.Error("more than one JSON value")
	}
	for _, name := range strings.Fields(`workload goroutines ops hits misses errors duration_s ops_per_s misses_per_s
		latency_us.p50 latency_us.p90 latency_us.p99 latency_us.max cpu_us_per_miss budget_bytes peak_resident_bytes
		rss_peak_bytes page_table_bytes read_bytes written_bytes evictions writebacks
		park.mode park.in_place park.thread_blocked park.restarted io.engine io.direct threads_peak
		ticker.period_us ticker.expected ticker.fired verified mismatches`) {
		at := any(got)
		for _, part := range strings.Split(name, ".") {
			m, _ := at.(map[string]any)
			at = m[part]
		}
		if at == nil {
			t.Errorf("%s is missing", name)
		}
	}
}

// A run has failed when something is wrong with what it read, and says what.
func TestReportKnowsFailure(t *testing.T) {
	for _, c := range []struct {
		r    report
		says string
	}{
		{report{Ops: 10}, ""},
		{report{Ops: 1000, Errors: 3}, "3 of 1,000 ops failed"},
		{report{Ops: 10, Mismatches: 1, Errors: 3}, "differ"},
		{report{Ops: 10, Error: "store: open x: no such file"}, "no such file"},
		{report{Ops: 10, Interrupted: true}, ""},
	} {
		if got := c.r.failure(); (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%+v: %q, want %q", c.r, got, c.says)
		}
	}
}

func TestReportForReading(t *testing.T) {
	r := report{
		Workload: "random", Goroutines: 1000, Access: "bytes", File: "data", SizeBytes: 1 << 30, BudgetBytes: 64 << 20, PageSizeBytes: 4096,
		Ops: 1000000, Hits: 62000, Misses: 938000, HitRatio: .062, DurationS: 10, OpsPerS: 100000, MissesPerS: 93800,
		LatencyUS: quantiles{11.04, 950.6, 12345, 2.5e6}, CPUPerMissUS: 12.34,
		PeakResidentBytes: 64 << 20, RSSPeakBytes: 100 << 20, PageTableBytes: 2 << 20,
		Reads: 938000, ReadBytes: 938000 * 4096, Evictions: 921616,
		Park: parkReport{Mode: "in-place", InPlace: 937999, ThreadBlocked: 1}, IO: ioReport{"aio", true},
		ThreadsPeak: 9, Ticker: tickerReport{200, 40000, 38000}, Verified: 4096000000,
		blocked: []blockedReport{{"memhash", "code cannot be stopped", 1}}, Notes: []string{"a note"},
	}
	var b strings.Builder
	if err := r.writeText(&b); err != nil {
		t.Fatal(err)
	}
	const want = `random by 1,000 goroutines through bytes
  file         data of 1.00 GiB, budget 64.0 MiB, pages of 4.00 KiB
  ops          1,000,000 in 10.0 s: 100,000/s
  misses       938,000: 93,800/s (hit ratio 6.2 %)
  op latency   p50 11.04µs, p90 950.6µs, p99 12.35ms, max 2.5s
  CPU          12.3 µs a miss, everything the program does included
  memory       64.0 MiB of pages at most; process 100 MiB, page tables 2.00 MiB
  I/O          3.58 GiB read in 938,000 reads with aio, past the page cache; 921,616 pages evicted
  faults       937,999 parked in place, 1 blocked a thread, 0 restarted (in-place)
               1 blocked in memhash: code cannot be stopped
  threads      9 at most; a 200 µs ticker fired 95 % as often as when idle
  verified     3.81 GiB, every byte as it must be
  note         a note
`
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// The line on a terminal never wraps and leaves nothing of a longer one behind.
func TestProgressLine(t *testing.T) {
	var b strings.Builder
	p := &progress{w: &b, width: func() int { return 10 }}
	p.show("%s", "αβγδεζηθικλ")
	p.show("short")
	p.clear()
	p.clear()
	if got, want := b.String(), "\rαβγδεζηθι\rshort    \r     \r"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	b.Reset()
	p.sometimes("one")
	p.sometimes("two") // too soon to be read
	if got := b.String(); got != "\rone" {
		t.Errorf("%q, want one line", got)
	}
	b.Reset()
	if p := newProgress(&b); p.live() {
		t.Error("a buffer is no terminal")
	} else if p.show("x"); b.Len() > 0 {
		t.Errorf("%q is shown to nobody", b.String())
	}
}
