package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/gauge"
	"github.com/uffdpager/uffdpager/pager"
)

// compareOptions are the flags of compare, parsed and checked.
type compareOptions struct {
	file       string // "": make one
	dir        string
	size       size
	keep       bool
	budget     size
	memory     size // of every process that is compared; 0: budget + compareHeadroom
	workload   compareWorkload
	procs      int
	goroutines int
	rounds     int
	duration   time.Duration
	warmup     time.Duration
	rows       []string
	seed       uint64
	json       bool
	html       string
}

// compareHeadroom is the memory that a process has beside the budget, for the
// program, the runtime, I/O buffers and page tables. Those who keep pages in the
// page cache may use what of it they do not need for that.
const compareHeadroom = 48 << 20

// referenceEvery is after how many rows the device is measured again: a ratio to
// what the device did a minute ago says little on a machine that others use.
const referenceEvery = 4

func compareCommand(stdout, stderr io.Writer) *cobra.Command {
	o := compareOptions{size: 4 << 30, budget: 256 << 20}
	var workload, rows string
	var list bool
	cmd := &cobra.Command{
		Use:   "compare [FILE]",
		Short: "The same work through this pager, mmap, pread, userfaultfd-go and the bare device",
		Long: `Do the same seeded reads of FILE, or of a file made for the purpose, in every way
there is: this pager through Bytes, View, Acquire and ReadAt; the kernel's mmap;
pread, buffered and direct; preadv2(RWF_NOWAIT) with a pool; the handler of
userfaultfd-go; and the bare device, through our own I/O engine and through fio
where that is installed. FILE is only ever read.

Every row runs in a process of its own, under the same memory limit where control
groups can be had, with the page cache dropped before it. The rows take turns for
--rounds rounds; what is printed is medians, with the range, and ratios to what
the bare device did just before and after. With --workload overwrite whole blocks
are written instead of read, and a miss is a block that reached the device.

Workloads about eviction: random; zipf (0.99, popular blocks scattered); scan,
front to back; hotset+scan, four of five reads in a set of half the budget and one
from a scan; overwrite. About reading ahead, with rows of their own (see --list):
interleaved, a scan by each goroutine; backward; stride3, stride17, each 3rd or
17th page; replay, a working set in the order of its first touches; tree, look-ups
from the root of a tree; bulk, small reads beside large ones.

The defaults take some minutes; --rows makes it shorter. For numbers to be relied
on, say --duration 10s --warmup 10s --rounds 7, and leave the machine alone
meanwhile.`,
		Example: `  uffdpager compare --size 1GiB --budget 64MiB              every row, some minutes
  uffdpager compare FILE --workload zipf --rows 'bytes,mmap-*'
  uffdpager compare --workload scan --list                  which rows there are`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.workload, err = parseCompareWorkload(workload); err != nil {
				return usageError{err}
			}
			if len(args) == 1 {
				if o.file = args[0]; o.file == "" {
					return usagef("FILE is empty")
				}
			}
			if rows != "" {
				o.rows = strings.Split(rows, ",")
			}
			if err := o.complete(cmd.Flags().Changed); err != nil {
				return usageError{err}
			}
			chosen, err := chooseRows(o)
			if err != nil {
				return usageError{err}
			}
			if list {
				for _, r := range chosen {
					if _, err := fmt.Fprintf(stdout, "%-22s %s\n", r.Name, r.describe()); err != nil {
						return err
					}
				}
				return nil
			}
			return compare(cmd.Context(), o, chosen, stdout, stderr)
		},
	}
	f := cmd.Flags()
	f.Var(&o.size, "size", "size of the file to make")
	f.StringVar(&o.dir, "dir", "", "where to make it (default: the directory for temporary files, or this one if that is kept in memory)")
	f.BoolVar(&o.keep, "keep", false, "leave the file that was made")
	f.Var(&o.budget, "budget", "memory for the pager's resident pages")
	f.Var(&o.memory, "memory", "memory limit of every process that is compared (default: the budget and 48MiB)")
	f.StringVar(&workload, "workload", "random", "what they do: "+strings.Join(compareWorkloads[:], ", "))
	f.IntVar(&o.procs, "procs", 2, "GOMAXPROCS of rows that do not say otherwise")
	f.IntVar(&o.goroutines, "goroutines", 64, "goroutines of rows that do not say otherwise")
	f.IntVar(&o.rounds, "rounds", 5, "how often every row has its turn")
	f.DurationVar(&o.duration, "duration", 500*time.Millisecond, "how long each turn is measured")
	f.DurationVar(&o.warmup, "warmup", 3*time.Second, "how long a row may take, before that, to get going: its memory full of what the workload keeps there")
	f.StringVar(&rows, "rows", "", "only these rows: names or patterns such as 'mmap-*', separated by commas")
	f.BoolVar(&list, "list", false, "list the rows and do nothing")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the work: the same seed, the same reads")
	f.BoolVar(&o.json, "json", false, "print the comparison as one JSON object")
	f.StringVar(&o.html, "html", "", "also write it to this file, with plots")
	return cmd
}

// complete checks the options against each other and fills in what depends on
// others.
func (o *compareOptions) complete(changed func(flag string) bool) error {
	switch {
	case o.file != "" && (changed("size") || changed("keep") || changed("dir")):
		return errors.New("--size, --keep and --dir are about the file that is made when FILE is not given")
	case o.file != "" && sameFile(o.html, o.file):
		return errors.New("--html would overwrite FILE")
	case o.size <= 0:
		return errors.New("--size must be above 0")
	case o.budget < pager.MinBudget:
		return fmt.Errorf("--budget %s is below the smallest, %d bytes", &o.budget, pager.MinBudget)
	case changed("memory") && o.memory <= o.budget:
		return fmt.Errorf("--memory %s leaves no room beside --budget %s", &o.memory, &o.budget)
	case o.file != "" && o.workload == loadOverwrite:
		return errors.New("--workload overwrite writes, which compare does only to a file that it has made")
	case o.procs < 1 || o.goroutines < 1 || o.rounds < 1:
		return errors.New("--procs, --goroutines and --rounds must be above 0")
	case o.goroutines > mostGoroutines:
		return fmt.Errorf("--goroutines must be at most %d", mostGoroutines)
	case o.duration < 10*time.Millisecond:
		return errors.New("--duration is below 10ms")
	case o.warmup < 0:
		return errors.New("--warmup must not be negative")
	}
	for _, pattern := range o.rows {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("--rows %s: %w", pattern, err)
		}
	}
	if o.memory == 0 {
		o.memory = o.budget + compareHeadroom
	}
	return nil
}

// contest is one comparison under way.
type contest struct {
	o       compareOptions
	file    *os.File
	size    int64
	stamped bool
	groups  memoryGroups
	show    *progress
	out     comparison
	turns   int // done
	all     int // … of so many
}

func compare(ctx context.Context, o compareOptions, rows []compareRow, stdout, stderr io.Writer) error {
	if err := compareSupported(); err != nil {
		return err
	}
	var page *output
	if o.html != "" {
		// Now, not after the work.
		var err error
		if page, err = openOutput("--html", o.html); err != nil {
			return err
		}
		defer page.Close()
	}
	c := &contest{o: o, show: newProgress(stderr)}
	err := c.run(ctx, rows)
	c.show.clear()
	if err != nil {
		return err
	}
	if o.json {
		b, err := json.MarshalIndent(c.out, "", "  ")
		if err == nil {
			_, err = stdout.Write(append(b, '\n'))
		}
		if err != nil {
			return err
		}
	} else if err := c.out.writeText(stdout); err != nil {
		return err
	}
	if page != nil {
		if err := c.out.writeHTML(page); err != nil {
			return err
		}
		if err := page.Close(); err != nil {
			return err
		}
	}
	return c.out.failure()
}

// run does the rounds.
func (c *contest) run(ctx context.Context, rows []compareRow) error {
	if err := c.open(ctx); err != nil {
		return err
	}
	defer c.file.Close()
	c.groups = findMemoryGroups(int64(c.o.memory))
	c.describe()

	reference := -1
	for i, r := range rows {
		c.out.Rows = append(c.out.Rows, newRowReport(r))
		c.out.Rows[i].progress = c.o.workload.progress()
		if r.Name == c.o.workload.reference() {
			reference = i
		}
	}
	c.all = len(rows) * (c.o.rounds + 1)

	// One turn of each row with tracepoints open counts system calls and flushes.
	// It is left out of all other figures, for counting takes time.
	for i, r := range rows {
		res, err := c.turn(ctx, r, true)
		if err != nil {
			return err
		}
		c.out.Rows[i].count(res)
	}
	for range c.o.rounds {
		var waiting []int // rows since the reference was measured
		before := 0.0
		if reference >= 0 {
			var err error
			if before, err = c.refer(ctx, rows[reference], reference); err != nil {
				return err
			}
		}
		settle := func() error {
			if len(waiting) == 0 || reference < 0 {
				return nil
			}
			after, err := c.refer(ctx, rows[reference], reference)
			if err != nil {
				return err
			}
			for _, i := range waiting {
				c.out.Rows[i].relate((before + after) / 2)
			}
			waiting, before = waiting[:0], after
			return nil
		}
		for i, r := range rows {
			if i == reference {
				continue
			}
			res, err := c.turn(ctx, r, false)
			if err != nil {
				return err
			}
			c.out.Rows[i].add(res)
			if waiting = append(waiting, i); len(waiting) == referenceEvery {
				if err := settle(); err != nil {
					return err
				}
			}
		}
		if err := settle(); err != nil {
			return err
		}
	}
	c.out.finish()
	return nil
}

// refer measures the bare device and returns how fast it is.
func (c *contest) refer(ctx context.Context, r compareRow, at int) (float64, error) {
	res, err := c.turn(ctx, r, false)
	if err == nil && res.Error == "" {
		c.out.Rows[at].add(res)
		speed := res.Metrics[c.o.workload.progress()]
		c.out.Rows[at].relate(speed)
		return speed, nil
	}
	if err == nil {
		err = fmt.Errorf("%s, which all ratios refer to: %s", r.Name, res.Error)
	}
	return 0, err
}

// turn runs one row once. Its error ends the comparison; what went wrong within
// the row is in the result.
func (c *contest) turn(ctx context.Context, r compareRow, counted bool) (rowResult, error) {
	c.show.show("%3d %%  %s", min(100*c.turns/max(c.all, 1), 100), r.Name)
	c.turns++
	if err := ctx.Err(); err != nil {
		return rowResult{}, errors.New("interrupted")
	}
	if r.Warm {
		if cached := warmCache(c.file, c.size); cached < c.size-c.size/1000 {
			c.note("%s: the page cache kept no more than %s of the file", r.Name, humanBytes(cached))
		}
	} else if left := dropAllCache(c.file, c.size); left > c.size/100 {
		c.note("%s of the file could not be dropped from the page cache", humanBytes(left))
	}
	spec := rowSpec{
		Row: r, Workload: c.o.workload, Size: c.size, Budget: int64(c.o.budget), Memory: int64(c.o.memory),
		Seed: c.o.seed, Duration: c.o.duration, Warmup: c.o.warmup, Stamped: c.stamped,
	}
	var res rowResult
	if r.Way == wayFio {
		res = runFio(ctx, spec, c.file)
	} else {
		res = runRow(ctx, spec, c.file, c.groups, counted)
	}
	if ctx.Err() != nil {
		return res, errors.New("interrupted")
	}
	return res, nil
}

// open opens FILE or makes a file.
func (c *contest) open(ctx context.Context) (err error) {
	if c.o.file == "" {
		c.file, err = makeFile(ctx, c.o.dir, int64(c.o.size), c.o.keep, func(done int64) {
			c.show.show("making a data file: %s of %s", humanBytes(done), humanBytes(int64(c.o.size)))
		})
		if err != nil {
			return err
		}
		c.out.File = "a data file without a name"
		if c.o.keep {
			c.out.File = c.file.Name()
			c.note("the file is kept: %s", c.file.Name())
		}
	} else {
		if c.file, err = os.Open(c.o.file); err != nil {
			return err
		}
		c.out.File = c.o.file
	}
	st, err := c.file.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", c.out.File)
	case st.Size() < 2*blockSize:
		err = fmt.Errorf("%s is too small to compare anything", c.out.File)
	}
	if err != nil {
		c.file.Close()
		return err
	}
	// Whole blocks only: a direct read of a part of one is not to be had.
	c.size = st.Size() / blockSize * blockSize
	if c.stamped = isStamped(c.file, st.Size()); !c.stamped && c.o.workload == loadTree {
		c.file.Close()
		return errNoTree
	}
	return nil
}

// errNoTree: what the tree's walkers compute and its policy reads is what a stamped
// file has.
var errNoTree = errors.New("the tree is in the bytes of a file that uffdpager has filled: give no FILE, or one that --keep has left")

func (c *contest) note(format string, args ...any) {
	c.out.Notes = addNote(c.out.Notes, fmt.Sprintf(format, args...))
}

// describe fills in what is the same for all rows.
func (c *contest) describe() {
	out := &c.out
	out.Workload, out.SizeBytes = c.o.workload, c.size
	out.BudgetBytes, out.MemoryBytes = int64(c.o.budget), int64(c.o.memory)
	out.Rounds, out.DurationS, out.Seed = c.o.rounds, c.o.duration.Seconds(), c.o.seed
	out.Processors, out.Go, out.Kernel = runtime.NumCPU(), runtime.Version(), gauge.Kernel()
	out.Limited = c.groups.why == ""
	if !out.Limited {
		c.note("no memory limit: %s; rows that use the page cache have all of the machine's memory", c.groups.why)
	}
	if inMemory(fmt.Sprintf("/proc/self/fd/%d", c.file.Fd())) {
		c.note("the file is kept in memory: there is no device behind it, and what is said of one is of a copy")
	}
	if err := whyNotCounted(); err != nil {
		c.note("system calls and TLB IPIs are not counted: %v", err)
	}
	tick := gauge.StartTicker(tickPeriod)
	time.Sleep(300 * time.Millisecond)
	fired, during := tick.Stop()
	out.IdleTicks = perSecond(fired, during)
}

// addNote appends a note that is not there yet.
func addNote(notes []string, s string) []string {
	for _, have := range notes {
		if have == s {
			return notes
		}
	}
	return append(notes, s)
}
