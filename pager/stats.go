package pager

import (
	"fmt"
	"strings"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/prefetch"
)

// Stats is a snapshot of counters. Bytes where the name says so, else pages or
// events; counters only grow. Hits are not counted: a hit writes nothing.
type Stats struct {
	// Memory, in bytes.
	Budget       int64 // what SetBudget or Options.Budget said
	Resident     int64 // resident and on their way in; never above Budget once SetBudget has returned
	PeakResident int64 // the highest Resident so far
	Pinned       int64 // of these, pinned
	Dirty        int64 // of these, written and not yet in the store
	Pinnable     int64 // most that can be pinned or dirty together
	ReadBuffers  int64 // I/O buffers, beside the budget
	Metadata     int64 // page states and queues, beside the budget
	PageTables   int64 // estimate of the kernel's page tables for resident pages, beside the budget
	Regions      int64 // open

	// Reading.
	Misses     int64 // accesses that found a page absent and had it read
	Joined     int64 // accesses that found its read under way
	Reads      int64 // read I/Os
	ReadBytes  int64
	ReadErrors int64
	Rescued    int64 // pages that were loaded without a P because no goroutine got one for it; reads that this repeated are in none of the above

	// Writing.
	Writes       int64 // write I/Os
	WrittenBytes int64
	Writebacks   int64 // pages written
	Flushes      int64
	WriteErrors  int64

	Retries int64 // reads and writes repeated, see RegionOptions.Retry

	// Atomic regions.
	Commits      int64 // records written and flushed: callers that share one count once
	JournalBytes int64 // page images written to journals; part of WrittenBytes
	Checkpoints  int64

	// Leaving.
	Evictions    int64 // pages that left to make room
	EvictBatches int64 // system calls that took
	Stolen       int64 // of the evictions, those by the fault server

	Prefetch prefetch.Feedback

	// Raw access.
	Faults   coro.Stats     // what the trap saw, in this process (all pagers)
	Blocked  []coro.Blocked // where faults could not be parked, and why, most frequent first: Faults.BlockedBy
	Restarts int64          // closures that View ran again
	Park     string         // how raw access waits here, and why
	ParkMode coro.Mode      // the mode in force

	Wedged []Wedge // what has not ended for Options.WedgeLimit, as of the last look; the first 64

	MissLatency Histogram // from the miss until the page was there
	ReadLatency Histogram // of read I/Os
	SyncLatency Histogram
}

// String is a table of the counters that are not zero.
func (s Stats) String() string {
	var b strings.Builder
	row := func(name string, v int64, unit string) {
		if v != 0 {
			fmt.Fprintf(&b, "%-16s %14d %s\n", name, v, unit)
		}
	}
	row("budget", s.Budget, "bytes")
	row("resident", s.Resident, "bytes")
	row("peak resident", s.PeakResident, "bytes")
	row("pinned", s.Pinned, "bytes")
	row("dirty", s.Dirty, "bytes")
	row("read buffers", s.ReadBuffers, "bytes")
	row("metadata", s.Metadata, "bytes")
	row("page tables", s.PageTables, "bytes")
	row("regions", s.Regions, "")
	row("misses", s.Misses, "")
	row("joined", s.Joined, "")
	row("reads", s.Reads, "I/Os")
	row("read", s.ReadBytes, "bytes")
	row("read errors", s.ReadErrors, "")
	row("rescued", s.Rescued, "pages")
	row("writes", s.Writes, "I/Os")
	row("written", s.WrittenBytes, "bytes")
	row("writebacks", s.Writebacks, "pages")
	row("flushes", s.Flushes, "")
	row("write errors", s.WriteErrors, "")
	row("retries", s.Retries, "I/Os")
	row("commits", s.Commits, "")
	row("journal", s.JournalBytes, "bytes")
	row("checkpoints", s.Checkpoints, "")
	row("evictions", s.Evictions, "pages")
	row("evict batches", s.EvictBatches, "")
	row("stolen", s.Stolen, "pages")
	row("prefetched", s.Prefetch.Issued, "pages")
	row("  used", s.Prefetch.Used, "")
	row("  unused", s.Prefetch.Unused, "")
	row("  late", s.Prefetch.Late, "")
	row("restarts", s.Restarts, "")
	lat := func(name string, h *Histogram) {
		if h.Count != 0 {
			fmt.Fprintf(&b, "%-16s p50 %v p90 %v p99 %v max %v (%d)\n", name, h.Quantile(.5), h.Quantile(.9), h.Quantile(.99), h.Max, h.Count)
		}
	}
	lat("miss latency", &s.MissLatency)
	lat("read latency", &s.ReadLatency)
	lat("sync latency", &s.SyncLatency)
	for _, w := range s.Wedged {
		fmt.Fprintf(&b, "wedged           %v\n", w)
	}
	return b.String()
}
