package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/gauge"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/uffd"
)

// diagnosis is what doctor finds out: the object that --json prints.
type diagnosis struct {
	System   systemFacts `json:"system"`
	Features []feature   `json:"features"` // of the kernel, as this process may use them
	Engines  []feature   `json:"engines"`  // that can do the I/O
	Uses     uses        `json:"uses"`     // what a pager made here and now would use
	Hurts    []trouble   `json:"hurts"`    // what will make it slow or end it
}

type systemFacts struct {
	OS          string `json:"os"`
	Arch        string `json:"arch"`
	Kernel      string `json:"kernel"`
	Go          string `json:"go"`
	CPUs        int    `json:"cpus"`
	GOMAXPROCS  int    `json:"gomaxprocs"`
	UID         int    `json:"uid"`
	MemoryBytes int64  `json:"memory_bytes"`
	CgroupBytes int64  `json:"cgroup_limit_bytes"` // 0: none
}

type feature struct {
	Name      string `json:"name"`
	Since     string `json:"since,omitempty"` // first kernel
	For       string `json:"for"`
	Supported bool   `json:"supported"`
	Why       string `json:"why,omitempty"` // why not
}

type uses struct {
	Works       bool   `json:"works"`           // regions can be mapped at all
	Raw         bool   `json:"raw"`             // Bytes and View work
	RawWhy      string `json:"raw_why"`         // why not
	Park        string `json:"park"`            // how a fault waits: in-place, block, restart, none
	ParkWhy     string `json:"park_why"`        // why not in place
	Engine      string `json:"engine"`          // that auto chooses
	BudgetBytes int64  `json:"budget_bytes"`    // when none is given
	Error       string `json:"error,omitempty"` // why nothing works
}

// trouble is one thing that will hurt.
type trouble struct {
	What   string `json:"what"`
	Why    string `json:"why"`
	Remedy string `json:"remedy"`
}

func doctorCommand(stdout io.Writer) *cobra.Command {
	var asJSON bool
	var budget size
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine and process can do",
		Long: `Say, feature by feature, what this machine and process can do, what a pager
would use, and what would make it slow or end it. Everything is found out by
doing it once, on a few pages, not by looking at versions.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("budget") && budget < pager.MinBudget {
				return usagef("--budget %s is below the smallest, %d bytes", &budget, pager.MinBudget)
			}
			if m, err := gauge.ReadMachine(); err == nil && int64(budget) > m.Memory {
				return usagef("--budget %s is more than this machine's memory, %s", &budget, humanBytes(m.Memory))
			}
			d := examine(int64(budget))
			var err error
			if asJSON {
				var b []byte
				if b, err = json.MarshalIndent(d, "", "  "); err == nil {
					_, err = stdout.Write(append(b, '\n'))
				}
			} else {
				err = d.writeText(stdout)
			}
			if err == nil && !d.Uses.Works {
				return fmt.Errorf("nothing works here: %s", d.Uses.Error)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().Var(&budget, "budget", "the budget to judge by (default: the pager's own)")
	return cmd
}

// examine finds everything out. budget 0 is the pager's default.
func examine(budget int64) *diagnosis {
	machine, _ := gauge.ReadMachine()
	limit, _ := gauge.CgroupLimit()
	d := &diagnosis{System: systemFacts{
		OS: runtime.GOOS, Arch: runtime.GOARCH, Kernel: gauge.Kernel(), Go: runtime.Version(),
		CPUs: runtime.NumCPU(), GOMAXPROCS: runtime.GOMAXPROCS(0), UID: os.Getuid(),
		MemoryBytes: machine.Memory, CgroupBytes: limit,
	}}
	for _, r := range uffd.Probe() {
		d.Features = append(d.Features, newFeature(r.Feature.String(), r.Feature.Since(), r.Feature.Use(), r.Err))
	}
	for _, e := range []struct {
		kind aio.Kind
		use  string
	}{
		{aio.LinuxAIO, "batches of direct I/O without threads"},
		{aio.IOURing, "the same through io_uring"},
		{aio.Threads, "files that refuse the others"},
	} {
		d.Engines = append(d.Engines, newFeature(e.kind.String(), "", e.use, aio.Probe(e.kind)))
	}
	// Before there is a pager: its fault servers block every signal, and may.
	blocked, threads := busBlocked()
	d.Uses = tryPager(budget)
	d.Hurts = append(environment(), troubles(d, blocked, threads)...)
	return d
}

func newFeature(name, since, use string, err error) feature {
	f := feature{Name: name, Since: since, For: use, Supported: err == nil}
	if err != nil {
		f.Why = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return f
}

// tryPager makes a pager and a region in memory, and asks them.
func tryPager(budget int64) (u uses) {
	p, err := pager.New(pager.Options{Budget: budget})
	if err != nil {
		u.Error = err.Error()
		return u
	}
	defer p.Close()
	r, err := p.Map(store.NewMemory(1<<20), pager.RegionOptions{})
	if err != nil {
		u.Error = err.Error()
		return u
	}
	defer r.Close()
	s := p.Stats()
	u = uses{Works: true, Engine: p.Engine(), BudgetBytes: s.Budget}
	u.Park, u.ParkWhy = parkMode(s)
	if err := r.Raw(); err != nil {
		u.RawWhy = err.Error()
	} else {
		u.Raw = true
	}
	return u
}

// environment is the variables that change how the pager works.
func environment() (ts []trouble) {
	for _, v := range []struct{ name, part, why string }{
		{uffd.MaskEnv, "", "features are masked on purpose"},
		{"UFFDPAGER_PARK", "", "the way faults wait is set on purpose"},
		{"GODEBUG", "asyncpreemptoff=1", "goroutines cannot be parked in place"},
		{"GODEBUG", "gccheckmark=1", "goroutines cannot be parked in place"},
	} {
		if value := os.Getenv(v.name); value != "" && strings.Contains(value, v.part) {
			ts = append(ts, trouble{v.name + "=" + value, v.why, "unset " + v.name})
		}
	}
	return ts
}

func (d *diagnosis) writeText(w io.Writer) error {
	var b strings.Builder
	s, u := d.System, d.Uses
	fmt.Fprintf(&b, "%s/%s, kernel %s, %s, GOMAXPROCS %d of %d, uid %d", s.OS, s.Arch, s.Kernel, s.Go, s.GOMAXPROCS, s.CPUs, s.UID)
	if s.MemoryBytes > 0 {
		fmt.Fprintf(&b, ", memory %s", humanBytes(s.MemoryBytes))
	}
	if s.CgroupBytes > 0 {
		fmt.Fprintf(&b, ", limited to %s", humanBytes(s.CgroupBytes))
	}
	list := func(title string, fs []feature) {
		fmt.Fprintf(&b, "\n\n%s\n", title)
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, f := range fs {
			yes, note := "yes", ""
			if !f.Supported {
				yes, note = "no", "\t"+f.Why
			}
			since := f.Since
			if since != "" {
				since = "Linux " + since
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s%s\n", yes, f.Name, since, f.For, note)
		}
		t.Flush()
	}
	list("What the kernel lets this process do", d.Features)
	list("Engines for I/O", d.Engines)

	fmt.Fprintf(&b, "\n\nWhat a pager would use here\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	if !u.Works {
		fmt.Fprintf(t, "  nothing\t%s\n", u.Error)
	} else {
		raw := "yes: Bytes, View, Acquire and ReadAt work"
		if !u.Raw {
			raw = "no, Acquire and ReadAt only: " + u.RawWhy
		}
		fault := map[string]string{
			"in-place": "parks its goroutine at the instruction (in-place)",
			"block":    "makes its thread wait (block)",
			"restart":  "runs the closure of View again (restart)",
			"none":     "none: there is no raw access",
		}[u.Park]
		if u.ParkWhy != "" && u.Park == "block" {
			fault += ": " + u.ParkWhy
		}
		fmt.Fprintf(t, "  raw access\t%s\n  a fault\t%s\n  engine\t%s\n  budget\t%s, when none is given\n", raw, fault, u.Engine, humanBytes(u.BudgetBytes))
	}
	t.Flush()

	if len(d.Hurts) == 0 {
		fmt.Fprintf(&b, "\n\nNothing found that will hurt.\n")
	} else {
		fmt.Fprintf(&b, "\n\nWhat will hurt\n")
		for _, h := range d.Hurts {
			fmt.Fprintf(&b, "  %s: %s\n      %s\n", h.What, h.Why, h.Remedy)
		}
	}
	// One blank line between the parts, whatever wrote them.
	_, err := io.WriteString(w, strings.ReplaceAll(b.String(), "\n\n\n", "\n\n"))
	return err
}
