package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/gauge"
	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/workload"
	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
)

const (
	tickPeriod = 200 * time.Microsecond
	lookPeriod = 100 * time.Millisecond // between looks at the process and the progress line
	endLimit   = 30 * time.Second       // how long goroutines may take to finish their last op
)

// run is the command. It prints the report, also that of work that failed.
func run(ctx context.Context, o runOptions, stdout, stderr io.Writer) error {
	r := report{
		Workload: o.kind.String(), Goroutines: o.goroutines, BudgetBytes: int64(o.budget),
		PageSizeBytes: int(o.pageSize), Seed: o.seed, Evict: o.evictName, Access: o.access.String(),
		Prefetch: prefetchReport{Policy: o.prefetch.name}, File: o.file,
		Park: parkReport{Mode: o.park.String()}, Ticker: tickerReport{PeriodUS: micros(tickPeriod)},
	}
	j := job{o: o, r: &r, show: newProgress(stderr), stderr: stderr}
	err := j.run(ctx)
	j.show.clear()
	if err != nil {
		r.Error = err.Error()
	}
	switch {
	case o.json:
		if err := r.writeJSON(stdout); err != nil {
			return err
		}
	case r.Ops > 0:
		if err := r.writeText(stdout); err != nil {
			return err
		}
	}
	if why := r.failure(); why != "" {
		if j.detail != "" {
			why += ": " + j.detail
		}
		return errors.New(why)
	}
	return nil
}

// job is one run.
type job struct {
	o      runOptions
	r      *report
	show   *progress
	stderr io.Writer
	detail string // the first thing that went wrong within the work

	notesMu sync.Mutex
	wedged  wedged
}

func (j *job) note(format string, args ...any) {
	j.notesMu.Lock()
	defer j.notesMu.Unlock()
	s := fmt.Sprintf(format, args...)
	for _, have := range j.r.Notes {
		if have == s {
			return
		}
	}
	j.r.Notes = append(j.r.Notes, s)
}

// run does the work and fills in the report. Its error is one that ended the
// work; ops that failed are in the report.
func (j *job) run(ctx context.Context) (err error) {
	policy, finish, err := j.o.prefetch.open(j)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, finish(j.r.Ops > 0)) }()

	file, st, kind, err := j.open(ctx)
	if err != nil {
		return err
	}
	defer file.Close()
	if j.o.file == "" && j.o.keep {
		j.note("the file is kept: %s", file.Name())
	}

	options := pager.Options{
		Budget: int64(j.o.budget), Engine: j.o.engine, Park: j.o.park, WedgeLimit: wedgeLimit,
		Events: &pager.EventListener{
			Degraded: func(what string) { j.note("%s", what) },
			Wedged:   j.wedged.note,
		},
	}
	if j.o.verbose {
		options.Logger = logger(j.stderr)
	}
	p, err := pager.New(options)
	if err != nil {
		st.Close()
		return err
	}
	regionOptions := pager.RegionOptions{ReadOnly: j.o.writeRatio == 0, PageSize: int(j.o.pageSize), HugePages: j.o.hugePages, Prefetch: policy}
	if j.o.evict != nil {
		regionOptions.Evict = j.o.evict()
	}
	region, err := p.Map(st, regionOptions)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	stuck, err := j.work(ctx, p, region, file, kind)
	if stuck {
		return err // Close would wait for what does not end
	}
	return errors.Join(err, region.Close(), p.Close())
}

// open opens FILE or makes a file, and makes a store of it. file is a
// descriptor of our own, for looking at the file past the pager.
func (j *job) open(ctx context.Context) (file *os.File, st store.Store, kind proofKind, err error) {
	o, readOnly := j.o, j.o.writeRatio == 0
	if o.file == "" {
		began := time.Now()
		file, err = makeFile(ctx, o.dir, int64(o.size), o.keep, func(done int64) {
			j.show.sometimes("making a data file: %s of %s", humanBytes(done), humanBytes(int64(o.size)))
		})
		if err != nil {
			return nil, nil, 0, err
		}
		j.r.MakeS, j.r.File, kind = time.Since(began).Seconds(), file.Name(), proofMade
		if !o.keep {
			j.r.File = "a data file without a name"
		}
		st, err = store.NewFile(file, store.FileOptions{ReadOnly: readOnly})
	} else {
		if st, err = store.OpenFile(o.file, store.FileOptions{ReadOnly: readOnly}); err != nil {
			return nil, nil, 0, err
		}
		if file, err = os.Open(o.file); err != nil {
			st.Close()
			return nil, nil, 0, err
		}
		kind = proofRead
		if o.verify && isStamped(file, st.Size()) {
			kind = proofStamped
		}
	}
	if err == nil && st.Size() == 0 {
		err = fmt.Errorf("%s is empty", j.r.File)
	}
	if err != nil {
		if st != nil {
			st.Close()
		}
		file.Close()
		return nil, nil, 0, err
	}
	j.r.SizeBytes = st.Size()
	if !o.verify {
		kind = proofNone
	}
	return file, st, kind, nil
}

// way decides how the work gets at the bytes.
func (j *job) way(p *pager.Pager, region *pager.Region) (access, error) {
	raw := region.Raw()
	view := region.View(context.Background(), func([]byte) error { return nil })
	switch way := j.o.access; way {
	case accessAuto:
		mode, _ := parkMode(p.Stats())
		switch {
		case raw == nil:
			return accessBytes, nil
		case view == nil && mode == coro.Restart.String():
			return accessView, nil
		}
		j.note("access is acquire: %v", raw)
		return accessAcquire, nil
	case accessBytes:
		if raw != nil {
			return way, fmt.Errorf("--access bytes: %w", raw)
		}
	case accessView:
		if view != nil {
			return way, fmt.Errorf("--access view: %w", view)
		}
	}
	return j.o.access, nil
}

// work measures. stuck means that goroutines of it are still waiting.
func (j *job) work(ctx context.Context, p *pager.Pager, region *pager.Region, file *os.File, kind proofKind) (stuck bool, err error) {
	o, r := j.o, j.r
	way, err := j.way(p, region)
	if err != nil {
		return false, err
	}
	r.Access = way.String()
	size := region.Len()
	w := workload.New(workload.Config{
		Kind: o.kind, Blocks: blocks(size), PerPage: int64(o.pageSize) / stamp.Block,
		Goroutines: o.goroutines, WriteRatio: o.writeRatio, Seed: o.seed,
	})
	proof := newProof(kind, file, size, o.writeRatio > 0)
	c := newCrew(ctx, region, way, proof, o.verify, w, o.goroutines, o.ops)
	c.lasts = o.duration

	idle, idleFor, err := j.idle(ctx)
	if err != nil {
		return false, err
	}

	gauge.ResetPeak()
	before, cpu := p.Stats(), gauge.CPU()
	watch := j.watch(c, p, before)
	tick := gauge.StartTicker(tickPeriod)
	began := time.Now()
	c.start()
	finished := make(chan struct{})
	go func() { c.wait.Wait(); close(finished) }()
	stuck = j.untilDone(ctx, c, finished)
	took := time.Since(began)
	cpu = gauge.CPU() - cpu
	fired, tickFor := tick.Stop()
	process := watch()
	after := p.Stats()

	r.Interrupted = ctx.Err() != nil
	r.Ticker.Fired = fired
	r.Ticker.Expected = int64(float64(idle) * float64(tickFor) / float64(idleFor))
	r.IO = ioReport{Engine: p.Engine(), Direct: region.Direct()}
	r.ThreadsPeak, r.RSSPeakBytes, r.PageTableBytes = process.Threads, max(process.RSSPeak, process.RSS), process.PageTables
	j.wedged.print(j.show, j.stderr)
	j.wedged.fill(r)
	r.fillWork(c, took)
	r.fillStats(before, after, took, cpu)
	j.detail = c.first()
	if stuck {
		return true, fmt.Errorf("goroutines are still waiting %v after the end of the work", endLimit)
	}
	if o.writeRatio > 0 {
		return false, j.settle(p, region, proof, after)
	}
	return false, nil
}

// idle watches the ticker while nothing happens.
func (j *job) idle(ctx context.Context) (fired int64, during time.Duration, err error) {
	j.show.show("doing nothing for %v, to see how often a %v ticker fires", j.o.idle, tickPeriod)
	tick := gauge.StartTicker(tickPeriod)
	select {
	case <-time.After(j.o.idle):
	case <-ctx.Done():
	}
	fired, during = tick.Stop()
	if ctx.Err() != nil {
		return 0, 0, errors.New("interrupted before the work began")
	}
	return fired, during, nil
}

// untilDone waits for the end of the work: its time, its number of ops, or
// Ctrl-C.
func (j *job) untilDone(ctx context.Context, c *crew, finished <-chan struct{}) (stuck bool) {
	var over <-chan time.Time
	if j.o.duration > 0 {
		over = time.After(j.o.duration)
	}
	select {
	case <-finished:
		return false
	case <-over:
	case <-ctx.Done():
	}
	c.stop.Store(true)
	select {
	case <-finished:
		return false
	case <-time.After(endLimit):
		return true
	}
}

// watch looks at the process and keeps the progress line going until the
// function it returns is called, which says the highest values seen.
func (j *job) watch(c *crew, p *pager.Pager, before pager.Stats) (stop func() gauge.Process) {
	quit, done := make(chan struct{}), make(chan gauge.Process)
	began := time.Now()
	go func() {
		var most gauge.Process
		tick := time.NewTicker(lookPeriod)
		defer tick.Stop()
		last, lastAt := before, began
		for i := 0; ; i++ {
			if now, err := gauge.ReadProcess(); err == nil {
				most.RSS = max(most.RSS, now.RSS)
				most.RSSPeak = max(most.RSSPeak, now.RSSPeak)
				most.PageTables = max(most.PageTables, now.PageTables)
				most.Threads = max(most.Threads, now.Threads)
			}
			select {
			case <-quit:
				done <- most
				return
			case <-tick.C:
			}
			j.wedged.print(j.show, j.stderr)
			if j.show.live() && i%5 == 4 {
				s, at := p.Stats(), time.Now()
				j.line(c, last, s, at.Sub(lastAt), at.Sub(began))
				last, lastAt = s, at
			}
		}
	}()
	return func() gauge.Process {
		close(quit)
		return <-done
	}
}

// line shows how the work goes.
func (j *job) line(c *crew, last, now pager.Stats, during, since time.Duration) {
	t := c.total()
	// It fits 80 columns.
	s := fmt.Sprintf("%4.1f s  %s misses/s  hit ratio %.1f%%  resident %s  parked %s",
		since.Seconds(), count(int64(perSecond(missesOf(now)-missesOf(last), during))),
		100*share(max(t.ops-t.errors-missesOf(now), 0), t.ops), ofBytes(now.Resident, now.Budget), count(c.parked()))
	if t.errors > 0 {
		s += fmt.Sprintf("  errors %d", t.errors)
	}
	j.show.show("%s", s)
}

// settle makes what was written durable and reads it back past the pager.
func (j *job) settle(p *pager.Pager, region *pager.Region, proof *proof, before pager.Stats) error {
	j.show.show("sync")
	began := time.Now()
	if err := region.Sync(context.Background()); err != nil {
		return err
	}
	j.r.SyncS = time.Since(began).Seconds()
	after := p.Stats()
	j.r.WrittenBytes += after.WrittenBytes - before.WrittenBytes
	j.r.Writebacks += after.Writebacks - before.Writebacks
	if !j.o.verify {
		return nil
	}
	j.show.show("reading back what was written")
	dropCache(proof.file)
	compared, wrong, first, err := proof.survived(context.Background())
	j.r.SurvivedBytes = compared
	j.r.Mismatches += wrong
	if j.detail == "" {
		j.detail = first
	}
	return err
}

func logger(w io.Writer) *zap.Logger {
	c := zap.NewDevelopmentEncoderConfig()
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(c), zapcore.Lock(zapcore.AddSync(w)), zapcore.DebugLevel))
}
