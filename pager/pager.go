//go:build linux

package pager

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/evict"
)

// Pager pages regions within one budget. Its methods may be called from any
// goroutine. A program usually has one.
type Pager struct {
	opt      Options
	log      *zap.Logger
	w        *pagerWords
	engine   aio.Engine
	gather   gatherer                               // the engine, for reads
	courtesy struct{ between, crowd, dry courtesy } // see gather.go
	onSpot   onSpot                                 // the engine, for who waits for his own I/O
	alone    alone                                  // who waits for the only read
	awake    awake                                  // … and does not sleep meanwhile
	solo     solo                                   // the engine of a Sync by its caller

	budgetMu    sync.Mutex
	budget      atomic.Int64 // frames
	pinnable    atomic.Int64 // frames
	evictBatch  atomic.Int64 // pages
	largestPage atomic.Int64 // frames
	peak        atomic.Int64 // frames

	credits credits
	line    line
	waiting atomic.Int32 // ops in line
	lineLen [2]atomic.Int32
	buckets [bucketCount]bucket

	inflight   atomic.Int32 // loads with the store
	flight     atomic.Int64 // their bytes
	queue      loadQueue
	jobs       jobQueue
	aheadPages atomic.Int64 // frames on their way in by prefetch
	aheadLoads atomic.Int32 // … in so many reads
	aheadOut   atomic.Int64 // bytes of these with the store
	markers    markers
	shelf      shelf
	unmapped   unmapped
	lent       lentPins
	drops      drops
	surprised  atomic.Int64 // when a miss came that no policy had an answer to, in ns of sinceStart

	keeping  atomic.Bool // somebody is in keepRoom
	evictMu  sync.Mutex  // locked by lockEvict
	arrivals arrivals
	moves    atomic.Bool // some region's pages are moved, see move.go
	ev       evictState
	shared   *domain
	domains  []*domain // guarded by evictMu

	stats counters

	mu      sync.Mutex
	regions map[*Region]struct{}
	closed  atomic.Bool
	closeE  error
	done    chan struct{}

	stop     atomic.Bool
	wakeFile *os.File
	wg       sync.WaitGroup
	throughs atomic.Uint32 // pages that were written through
	posting  posting
	flush    flusher

	writingFrames atomic.Int64 // in flight to the store
	writingIOs    atomic.Int32 // writes they make

	holds holdTable

	tracks    trackList
	wedges    wedges
	stopWatch chan struct{}
}

// counters are written on slow paths only.
type counters struct {
	misses, joined, reads, readBytes, readErrors           atomic.Int64
	writes, writtenBytes, writebacks, flushes, writeErrors atomic.Int64
	retries                                                atomic.Int64
	evictions, evictBatches                                atomic.Int64
	commits, journalBytes, checkpoints                     atomic.Int64
	aheadIssued, aheadUsed, aheadUnused, aheadLate         atomic.Int64
	missLatency, readLatency, syncLatency                  histogram
}

var parkerOnce sync.Once

// New makes a pager. The first one installs the SIGBUS trap and starts the
// fault servers of the process, where these can be had; where they cannot,
// Acquire and ReadAt still work (see Region.Raw).
//
// Errors: ErrBudget for a budget below MinBudget or beyond the machine's
// memory; whatever keeps every I/O engine from working; with coro.Require,
// that goroutines cannot be parked in place here.
func New(o Options) (*Pager, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := sp.setup(); err != nil {
		return nil, err
	}
	if o.Park == coro.Require {
		if active, why := coro.ParkStatus(); sp.rawErr != nil || !active {
			return nil, unsupported("goroutines cannot be parked in place: %s", firstReason(why, sp.rawErr))
		}
	}
	p := &Pager{opt: o, log: o.Logger, w: new(pagerWords), regions: map[*Region]struct{}{}, done: make(chan struct{})}
	if p.log == nil {
		p.log = zap.NewNop()
	}
	engine, err := aio.Open(aio.Options{Kind: o.Engine, Depth: o.QueueDepth, Between: p.letRun})
	if err != nil {
		return nil, err
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pager: eventfd: %w", err), engine.Close())
	}
	p.engine, p.gather.Engine = engine, engine
	p.awake.most.Store(int64(awakeMost))
	p.awake.slow.Store(int64(awakeSlow))
	p.w.wakeFD = int32(fd)
	p.wakeFile = os.NewFile(uintptr(fd), "pager wake")
	p.credits.w, p.credits.global = p.w, (*atomic.Int64)(unsafe.Pointer(&p.w.credits))
	p.shared = &domain{policy: evict.NewS3FIFO()}
	p.domains = []*domain{p.shared}
	p.ev.take = p.takeVictim
	p.posting.init(o.QueueDepth)
	p.largestPage.Store(1)
	p.resize(o.Budget >> frameShift)
	p.log.Info("pager", zap.Int64("budget", o.Budget), zap.Stringer("engine", engine.Kind()), zap.NamedError("no raw access", sp.rawErr))
	if sp.rawErr != nil {
		p.degraded("no raw access: " + sp.rawErr.Error())
	}
	if sp.rawErr == nil {
		startRescuer(p.log)
		p.w.ring, p.w.inflight = aio.RingOf(engine), (*uint32)(unsafe.Pointer(&p.inflight))
		p.w.led, p.w.turn = (*uint32)(unsafe.Pointer(&p.gather.led)), (*uint32)(unsafe.Pointer(&p.gather.turn))
		p.rescueFrom()
	}
	setPatience()
	p.stopWatch = make(chan struct{})
	if o.WedgeLimit > 0 {
		p.wg.Add(1)
		go p.watch()
	}
	p.wg.Add(2)
	go p.reap()
	go p.housekeep()
	if sp.trap {
		parkerOnce.Do(func() { go parker() })
	}
	return p, nil
}

// complete checks the options and fills in what the zero values stand for.
func (o *Options) complete() error {
	if s := os.Getenv("UFFDPAGER_PARK"); s != "" {
		m, err := coro.ParseMode(s)
		if err != nil {
			return fmt.Errorf("UFFDPAGER_PARK: %w", err)
		}
		o.Park = m
	}
	if o.Park > coro.Require {
		return fmt.Errorf("pager: unknown park mode %d", o.Park)
	}
	if o.Budget == 0 {
		o.Budget = defaultBudget()
	}
	if err := checkBudget(o.Budget); err != nil {
		return err
	}
	if o.QueueDepth < 0 || o.QueueDepth > aio.MaxDepth {
		return fmt.Errorf("pager: QueueDepth %d is not from 0 to %d", o.QueueDepth, aio.MaxDepth)
	}
	if o.EvictBatch < 0 || o.EvictBatch > maxEvictBatch {
		return fmt.Errorf("pager: EvictBatch %d is not from 0 to %d", o.EvictBatch, maxEvictBatch)
	}
	if o.StallLimit < 0 {
		return fmt.Errorf("pager: StallLimit %v is negative", o.StallLimit)
	}
	if o.QueueDepth == 0 {
		o.QueueDepth = 256
	}
	if o.StallLimit == 0 {
		o.StallLimit = time.Second
	}
	if o.WedgeLimit == 0 {
		o.WedgeLimit = 10 * time.Second
	}
	return nil
}

func firstReason(why string, err error) string {
	if err != nil {
		return err.Error()
	}
	return why
}

// Engine names the I/O engine in use.
func (p *Pager) Engine() string { return p.engine.Kind().String() }

// Close closes all regions (see Region.Close) and then the pager. A second
// call waits for the first and returns its error.
func (p *Pager) Close() error {
	if p.closed.Swap(true) {
		<-p.done
		return p.closeE
	}
	var errs []error
	for _, r := range p.regionList() {
		errs = append(errs, r.Close())
	}
	p.stop.Store(true)
	close(p.stopWatch)
	p.rouse()
	p.rescueNoMore()
	errs = append(errs, p.onSpot.close(), p.solo.close(), p.engine.Close())
	p.wg.Wait()
	p.alone.close()
	errs = append(errs, p.wakeFile.Close())
	p.closeE = errors.Join(errs...)
	close(p.done)
	return p.closeE
}

// event calls fn if somebody listens.
func (p *Pager) event(fn func(*EventListener)) {
	if p.opt.Events != nil {
		p.hook("EventListener", nil, 0, 0, func() { fn(p.opt.Events) })
	}
}

func (p *Pager) degraded(what string) {
	p.log.Warn("degraded", zap.String("what", what))
	p.event(func(l *EventListener) {
		if l.Degraded != nil {
			l.Degraded(what)
		}
	})
}

// Stats is a snapshot of the pager's counters.
func (p *Pager) Stats() Stats {
	c := &p.stats
	budget, pinnable := p.budget.Load(), p.pinnable.Load()
	used := budget - load64(&p.w.free)
	dirty := load64(&p.w.dirty)
	s := Stats{
		Budget:       budget << frameShift,
		Resident:     used << frameShift,
		PeakResident: max(used, p.peak.Load()) << frameShift,
		Pinned:       p.pinnedFrames() << frameShift,
		Dirty:        dirty << frameShift,
		Pinnable:     pinnable << frameShift,
		ReadBuffers:  bufs.bytes.Load() - bufs.kept.Load(),
		Misses:       c.misses.Load() + load64((*int64)(unsafe.Pointer(&p.w.served))),
		Joined:       c.joined.Load(),
		Reads:        c.reads.Load() + load64((*int64)(unsafe.Pointer(&p.w.served))),
		ReadBytes:    c.readBytes.Load() + load64((*int64)(unsafe.Pointer(&p.w.srvRead))),
		ReadErrors:   c.readErrors.Load(),
		Writes:       c.writes.Load(),
		WrittenBytes: c.writtenBytes.Load(),
		Writebacks:   c.writebacks.Load(),
		Flushes:      c.flushes.Load(),
		WriteErrors:  c.writeErrors.Load(),
		Retries:      c.retries.Load(),
		Commits:      c.commits.Load(),
		JournalBytes: c.journalBytes.Load(),
		Checkpoints:  c.checkpoints.Load(),
		Evictions:    c.evictions.Load() + load64((*int64)(unsafe.Pointer(&p.w.stolen))),
		EvictBatches: c.evictBatches.Load(),
		Rescued:      int64(atomic.LoadUint64(&p.w.rescued)),
		Stolen:       load64((*int64)(unsafe.Pointer(&p.w.stolen))),
		ParkMode:     p.opt.Park,
		Wedged:       p.wedges.snapshot(),
		MissLatency:  c.missLatency.snapshot(),
		ReadLatency:  c.readLatency.snapshot(),
		SyncLatency:  c.syncLatency.snapshot(),
	}
	s.Prefetch.Issued, s.Prefetch.Used = c.aheadIssued.Load(), c.aheadUsed.Load()+load64(&p.w.used)
	s.Prefetch.Unused, s.Prefetch.Late = c.aheadUnused.Load(), c.aheadLate.Load()
	s.Metadata, s.PageTables = p.overhead()
	if sp.trap {
		s.Faults = coro.ReadStats()
		s.Blocked = s.Faults.BlockedBy
	}
	active, why := coro.ParkStatus()
	switch {
	case sp.rawErr != nil:
		s.Park = "none: " + sp.rawErr.Error()
	case p.opt.Park == coro.Restart:
		s.Park = "restart"
	case active && p.opt.Park != coro.Block:
		s.Park, s.ParkMode = "in-place", coro.InPlace
	case p.opt.Park == coro.Block:
		s.Park = "block"
	default:
		s.Park, s.ParkMode = "block: "+why, coro.Block
	}
	for _, r := range p.regionList() {
		s.Regions++
		s.Restarts += r.restarts.Load()
	}
	return s
}

// pinnedFrames counts the frames that are pinned now.
func (p *Pager) pinnedFrames() (n int64) {
	for l := range p.leaves() {
		for i := range uint64(leafPages) {
			if atomic.LoadUint64(leafWord(l.leaf, i))&pinMask != 0 {
				n += l.d.framesPerPage()
			}
		}
	}
	return n
}

// overhead estimates, in bytes, the page words of the process and the kernel's
// page tables for what is resident.
func (p *Pager) overhead() (metadata, pageTables int64) {
	leaves := int64(atomic.LoadUint32(&sp.leafUsed))
	metadata = leaves * (leafBytes + int64(unsafe.Sizeof(leafMeta{})))
	for _, r := range p.regionList() {
		spans := unsafe.Slice((*uint32)(r.d.spans), r.at.n)
		for i := range spans {
			if atomic.LoadUint32(&spans[i]) != 0 {
				pageTables += FrameSize
			}
		}
		metadata += int64(r.at.n) * 8
	}
	return metadata, pageTables
}

// Stats is a snapshot of the region's own counters: Resident, Dirty, Prefetch,
// Restarts and Budget (MaxResident, if set); the rest is the pager's.
func (r *Region) Stats() Stats {
	var s Stats
	if r.released.Load() {
		return s
	}
	s.Budget = r.maxFrames << frameShift
	s.Resident = load64(&r.d.resident) << frameShift
	s.Dirty = load64(&r.d.dirty) << frameShift
	s.Prefetch.Issued, s.Prefetch.Used = r.ahead.issued.Load(), r.aheadUsed()
	s.Prefetch.Unused, s.Prefetch.Late = r.ahead.unused.Load(), r.ahead.late.Load()
	s.Restarts = r.restarts.Load()
	s.Regions = 1
	return s
}
