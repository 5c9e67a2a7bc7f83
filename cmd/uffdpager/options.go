package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/workload"
	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/evict"
)

// runOptions are the flags of run, parsed and checked.
type runOptions struct {
	file        string // "": make one
	dir         string
	size        size
	keep        bool
	budget      size
	pageSize    size
	hugePages   bool
	goroutines  int
	kind        workload.Kind
	writeRatio  float64
	allowWrites bool
	ops         int64 // 0: run for duration
	duration    time.Duration
	idle        time.Duration
	verify      bool
	engine      aio.Kind
	park        coro.Mode
	access      access
	prefetch    prefetchChoice
	evict       func() evict.Policy
	evictName   string
	seed        uint64
	json        bool
	verbose     bool
}

// access is the way in that the work takes.
type access uint8

const (
	accessAuto access = iota // bytes where the region allows it, else acquire
	accessBytes
	accessView
	accessAcquire
	accessReadAt
)

var accessNames = [...]string{"auto", "bytes", "view", "acquire", "readat"}

func (a access) String() string { return accessNames[a] }

func parseAccess(s string) (access, error) {
	for i, n := range accessNames {
		if n == s {
			return access(i), nil
		}
	}
	return 0, fmt.Errorf("unknown access %q (%s)", s, strings.Join(accessNames[:], ", "))
}

var evictPolicies = map[string]func() evict.Policy{
	"s3fifo": nil, // the pager's own
	"fifo":   evict.NewFIFO,
}

// prefetchChoice is --prefetch: a policy and, for traces, its file.
type prefetchChoice struct{ name, file string }

func parsePrefetch(s string) (prefetchChoice, error) {
	name, file, hasFile := strings.Cut(s, "=")
	switch name {
	case "none", "readahead", "stride":
		if hasFile {
			return prefetchChoice{}, fmt.Errorf("--prefetch %s takes no file", name)
		}
	case "record", "replay":
		if file == "" {
			return prefetchChoice{}, fmt.Errorf("--prefetch %s needs a trace file: --prefetch %s=FILE", name, name)
		}
	default:
		return prefetchChoice{}, fmt.Errorf("unknown prefetch policy %q (none, readahead, stride, record=FILE, replay=FILE)", s)
	}
	return prefetchChoice{name, file}, nil
}

func (p prefetchChoice) String() string {
	if p.file != "" {
		return p.name + "=" + p.file
	}
	return p.name
}

func runCommand(stdout, stderr io.Writer) *cobra.Command {
	o := runOptions{size: 1 << 30, budget: 64 << 20, pageSize: pager.FrameSize}
	var kind, engine, park, way, prefetch, eviction string
	cmd := &cobra.Command{
		Use:   "run [FILE]",
		Short: "Page a file under a budget and report",
		Long: `Page FILE, or a file made for the purpose, under a budget that is smaller than
it, from many goroutines, and report what that cost.

Without FILE a file of --size is made in --dir, every word of it stamped, so
that --verify (then the default) proves every byte that is read; it is gone
when the program ends unless --keep says otherwise. FILE itself is only ever
read, unless --write-ratio is given together with --allow-writes: then blocks of
it are overwritten with stamps. With FILE, --verify compares with an ordinary
read of the same bytes, unless FILE was made by run --keep and carries stamps.

An op touches one block of 4 KiB. Ctrl-C ends the run with its report.

Workloads:
` + workload.Describe(),
		Example: `  uffdpager run                                   a file of its own, removed afterwards
  uffdpager run FILE --workload zipf              your file, only ever read
  uffdpager run FILE --budget 1GiB                does more memory help?
  uffdpager run --access acquire --goroutines 64  another way in
  uffdpager run --write-ratio 0.1 --json          writes, proved after Sync; one JSON object`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs [5]error
			o.kind, errs[0] = workload.Parse(kind)
			o.engine, errs[1] = aio.ParseKind(engine)
			o.park, errs[2] = coro.ParseMode(park)
			o.access, errs[3] = parseAccess(way)
			o.prefetch, errs[4] = parsePrefetch(prefetch)
			if err := errors.Join(errs[:]...); err != nil {
				return usageError{err}
			}
			policy, ok := evictPolicies[eviction]
			if !ok {
				return usagef("unknown eviction policy %q (s3fifo, fifo)", eviction)
			}
			o.evict, o.evictName = policy, eviction
			if len(args) == 1 {
				if o.file = args[0]; o.file == "" {
					return usagef("FILE is empty")
				}
			}
			if err := o.complete(cmd.Flags().Changed); err != nil {
				return usageError{err}
			}
			return run(cmd.Context(), o, stdout, stderr)
		},
	}
	f := cmd.Flags()
	f.Var(&o.size, "size", "size of the file to make")
	f.StringVar(&o.dir, "dir", "", "where to make it (default: the directory for temporary files, or this one if that is kept in memory)")
	f.BoolVar(&o.keep, "keep", false, "leave the file that was made")
	f.Var(&o.budget, "budget", "memory for resident pages")
	f.Var(&o.pageSize, "page-size", "unit of paging, a power of two from 4KiB to 2MiB")
	f.BoolVar(&o.hugePages, "huge-pages", false, "have pages of 2 MiB be huge pages, which are moved instead of copied; reading only")
	f.IntVar(&o.goroutines, "goroutines", 0, "goroutines that do the work (default 1000; scan and stride 1, interleaved 64)")
	f.StringVar(&kind, "workload", "random", "what they touch: "+workload.Names())
	f.Float64Var(&o.writeRatio, "write-ratio", 0, "share of the ops that write, 0 to 1 (default 0; for mixed on a file that is made 0.1)")
	f.BoolVar(&o.allowWrites, "allow-writes", false, "let --write-ratio change FILE")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "how long to work")
	f.Int64Var(&o.ops, "ops", 0, "how many ops to do, instead of --duration")
	f.DurationVar(&o.idle, "idle", time.Second, "how long to watch the ticker while nothing happens, before the work")
	f.BoolVar(&o.verify, "verify", false, "compare every byte that is read (default: for files that are made)")
	f.StringVar(&engine, "engine", "auto", "I/O engine: auto, aio, io_uring, threads")
	f.StringVar(&park, "park", "auto", "how a fault waits: auto, in-place, block, restart, require (as in-place, or the run fails)")
	f.StringVar(&way, "access", "auto", "way in: bytes, view, acquire, readat; auto is bytes where the region allows it, else acquire")
	f.StringVar(&prefetch, "prefetch", "readahead", "none, readahead, stride, record=FILE, replay=FILE")
	f.StringVar(&eviction, "evict", "s3fifo", "s3fifo, fifo")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the work: the same seed, the same ops")
	f.BoolVar(&o.json, "json", false, "print the report as one JSON object")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log what the pager has to say")
	return cmd
}

// complete checks the options against each other and fills in what depends on
// others. changed says whether a flag was given.
func (o *runOptions) complete(changed func(flag string) bool) error {
	if o.hugePages && !changed("page-size") {
		o.pageSize = pager.MaxPageSize
	}
	switch {
	case o.file != "" && (changed("size") || changed("keep") || changed("dir")):
		return errors.New("--size, --keep and --dir are about the file that is made when FILE is not given")
	case o.file == "" && o.allowWrites:
		return errors.New("--allow-writes is about FILE; a file that is made may always be written")
	case o.file != "" && o.prefetch.name == "record" && sameFile(o.prefetch.file, o.file):
		return errors.New("--prefetch record would overwrite FILE")
	case o.size <= 0:
		return errors.New("--size must be above 0")
	case o.budget < pager.MinBudget:
		return fmt.Errorf("--budget %s is below the smallest, %d bytes", &o.budget, pager.MinBudget)
	case o.pageSize < pager.FrameSize || o.pageSize > pager.MaxPageSize || o.pageSize&(o.pageSize-1) != 0:
		return fmt.Errorf("--page-size %s is not a power of two from 4KiB to 2MiB", &o.pageSize)
	case o.hugePages && o.pageSize != pager.MaxPageSize:
		return fmt.Errorf("--huge-pages are of 2MiB, not of --page-size %s", &o.pageSize)
	case changed("goroutines") && (o.goroutines < 1 || o.goroutines > mostGoroutines):
		return fmt.Errorf("--goroutines must be above 0 and at most %d", mostGoroutines)
	case !(o.writeRatio >= 0 && o.writeRatio <= 1): // also NaN
		return errors.New("--write-ratio must be from 0 to 1")
	case o.file != "" && o.writeRatio > 0 && !o.allowWrites:
		return fmt.Errorf("--write-ratio would change %s: add --allow-writes if it may", o.file)
	case o.allowWrites && o.writeRatio == 0:
		return errors.New("--allow-writes without --write-ratio does nothing")
	case changed("ops") && changed("duration"):
		return errors.New("--ops and --duration exclude each other")
	case changed("ops") && o.ops < 1:
		return errors.New("--ops must be above 0")
	case o.duration <= 0:
		return errors.New("--duration must be above 0")
	case o.idle < tickPeriod:
		return fmt.Errorf("--idle is shorter than a tick of %v", tickPeriod)
	case o.park == coro.Restart && o.access == accessBytes:
		return errors.New("--park restart needs --access view: only a closure can run again")
	case o.park == coro.Restart && o.writeRatio > 0 && o.access == accessView:
		return errors.New("--park restart cannot write through a view: a closure that writes must not run twice")
	}
	if o.goroutines == 0 {
		o.goroutines = o.kind.Goroutines()
	}
	if o.ops > 0 {
		o.duration = 0
	}
	if o.kind == workload.Mixed && o.file == "" && !changed("write-ratio") {
		o.writeRatio = mixedWrites
	}
	if o.hugePages && o.writeRatio > 0 {
		return errors.New("--huge-pages is for reading only: add --write-ratio 0")
	}
	if !changed("verify") {
		o.verify = o.file == ""
	}
	return nil
}

// mostGoroutines still fit in the memory of an ordinary machine: each has a stack of a
// few KiB, and there is no other way to be told that they do not than to be killed.
const mostGoroutines = 1_000_000

// mixedWrites is the share of writes in the mixed workload.
const mixedWrites = 0.1

// blocks is the number of blocks of a file, the last of which may be short.
func blocks(size int64) int64 { return (size + stamp.Block - 1) / stamp.Block }
