package main

import (
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/uffdpager/uffdpager/pager"
)

// missesOf is the accesses that waited for a page, whoever had it read.
func missesOf(s pager.Stats) int64 { return s.Misses + s.Joined }

// fillWork takes over what the goroutines have counted.
func (r *report) fillWork(c *crew, took time.Duration) {
	t := c.total()
	r.Ops, r.Writes, r.Errors, r.Mismatches = t.ops, t.writes, t.errors, t.mismatches
	r.AccessedBytes, r.Verified = t.accessed, t.verified
	r.DurationS, r.OpsPerS = took.Seconds(), perSecond(t.ops, took)
	r.LatencyUS = opQuantiles(c.latencies())
}

// fillStats takes over what the pager has counted between two snapshots.
func (r *report) fillStats(before, after pager.Stats, took, cpu time.Duration) {
	r.Misses = missesOf(after) - missesOf(before)
	r.Joined = after.Joined - before.Joined
	r.Hits = max(r.Ops-r.Errors-r.Misses, 0)
	r.HitRatio = share(r.Hits, r.Ops-r.Errors)
	r.MissesPerS = perSecond(r.Misses, took)
	if r.Misses > 0 {
		r.CPUPerMissUS = micros(cpu) / float64(r.Misses)
	}
	h := after.MissLatency // nothing has missed before the work
	r.MissLatencyUS = quantiles{micros(h.Quantile(.5)), micros(h.Quantile(.9)), micros(h.Quantile(.99)), micros(h.Max)}
	r.BudgetBytes, r.PeakResidentBytes = after.Budget, after.PeakResident
	r.Reads, r.ReadBytes = after.Reads-before.Reads, after.ReadBytes-before.ReadBytes
	r.WrittenBytes, r.Writebacks = after.WrittenBytes-before.WrittenBytes, after.Writebacks-before.Writebacks
	r.Evictions = after.Evictions - before.Evictions
	p, q := after.Prefetch, before.Prefetch
	r.Prefetch.Issued, r.Prefetch.Used = p.Issued-q.Issued, p.Used-q.Used
	r.Prefetch.Unused, r.Prefetch.Late = p.Unused-q.Unused, p.Late-q.Late

	mode, why := parkMode(after)
	r.Park = parkReport{
		Mode: mode, Why: why,
		InPlace:       int64(after.Faults.Parked - before.Faults.Parked),
		ThreadBlocked: int64(after.Faults.Blocked - before.Faults.Blocked),
		Restarted:     after.Restarts - before.Restarts,
	}
	for _, by := range after.Faults.BlockedBy {
		r.Park.BlockedBy = append(r.Park.BlockedBy, blockedReport{by.Func, by.Reason.String(), int64(by.Count)})
	}
	r.blocked = r.Park.BlockedBy[:min(len(r.Park.BlockedBy), 3)]
}

// parkMode is how faults wait, and why not in place if they do not.
func parkMode(s pager.Stats) (mode, why string) {
	mode, why, _ = strings.Cut(s.Park, ": ")
	return mode, why
}

func opQuantiles(h *hdrhistogram.Histogram) quantiles {
	at := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1e3 }
	return quantiles{at(50), at(90), at(99), float64(h.Max()) / 1e3}
}

// first is the first thing that went wrong in the work, in words.
func (c *crew) first() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.firstBad != "":
		return c.firstBad
	case c.firstErr != nil:
		return c.firstErr.Error()
	}
	return ""
}
