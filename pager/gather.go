//go:build linux

package pager

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Gathering reads
//
// A system call and a ring of the device's doorbell for each read are most of
// what submitting costs: one io_submit for eight reads is much cheaper than
// eight. Reads come together by themselves, for completions do:
// each batch of them makes as many goroutines ready, most of which soon miss
// again. So the first one that misses lets those others run before it makes the
// system call, and submits what they have added along with its own. Nobody is
// woken for that and nothing waits for a clock: the one who leads is ready all
// the time, and the device has gatherDepth other reads to do meanwhile.
const (
	gatherDepth = 16 // reads under way that keep the device busy, or …
	gatherReady = 8  // … goroutines to run, which means that it is not the device that is waited for
	gatherMax   = 16 // reads of one submission, at most; see enough
	gatherMin   = 4

	gatherSlow = 4 * time.Millisecond // the others ran for so long: they compute, or somebody does
	gatherRest = 128                  // … and then so many reads go out at once, twice as many each time
	gatherDull = 8                    // … up to so many times
)

// gatherer is the engine that reads are submitted to.
type gatherer struct {
	aio.Engine
	led   atomic.Bool   // somebody is going to submit what is added
	turn  atomic.Uint32 // how often somebody was: see rescue.go
	rest  atomic.Int32  // reads that do not gather
	slow  int           // turns in a row that were, the leader's
	mu    sync.Mutex
	ops   []*aio.Op
	spare []*aio.Op // its memory, for the next time
}

// readied counts goroutines that were made ready with their pages and have not
// been waited for since, of all pagers.
var readied struct {
	_ [64]byte
	n atomic.Int32

	// parked counts those among them that were parked in place, since somebody
	// last let them run: unlike the others they do not say that they have.
	parked atomic.Int32
	_      [56]byte

	// runnable counts those who have been told of their pages and have not run
	// since, but for parked ones; see crowded.
	runnable atomic.Int32
	_        [60]byte
}

// letOthers lets those run who are ready, and says how long that took.
func letOthers() time.Duration {
	readied.parked.Store(0)
	began := time.Now()
	runtime.Gosched()
	return time.Since(began)
}

// A courtesy is a reason to let others run now and then. When that takes long it
// is not for those who were told of their pages, but for others that compute; then
// it is not done for a while.
type courtesy struct{ rest atomic.Int32 }

func (c *courtesy) yield(slow time.Duration, rest int32) {
	if c.rest.Load() > 0 && c.rest.Add(-1) >= 0 {
		readied.parked.Store(0) // they run when they do, and this is not asked again for each
		return
	}
	if letOthers() > slow {
		c.rest.Store(rest)
	}
}

// What came without being waited for is installed by whoever reaps it, and makes
// room for more of it, which takes as long as a read of a page. Those who were told
// of their pages by the same reaper are next on its P, and would wait for that or
// for a thread to wake that takes them away. So they are let run first (letRun).
const (
	letSlow = time.Millisecond
	letRest = 64
)

// letRun is the engine's Between.
func (p *Pager) letRun() { p.courtesy.between.yield(letSlow, letRest) }

// crowdMost is how many goroutines are made ready before some of them have run. A
// P has 256 places for them; those beyond go to a queue of all Ps, from which
// one in 61 is taken as long as the P has others. When it is not the device but
// the processors that a thousand goroutines wait for, some of them would never
// be among the others.
const (
	crowdMost = 32
	crowdSlow = 50 * time.Millisecond
	crowdRest = 32 // chunks of a reaper

	// When the device is about to run dry it is so few, parked ones included: see dry.
	dryMost  = 4
	dryDepth = 32
	drySlow  = 2 * time.Millisecond
	dryRest  = 128
)

// crowded says that some of those who have been told of their pages should run before
// more are told.
func (p *Pager) crowded() bool {
	n := readied.runnable.Load()
	return n >= crowdMost || n >= dryMost && p.dry()
}

// dry says that the device is about to run dry. Who runs misses again, most of
// the time; so when nothing waits for a place in the queue depth, and the device
// has little left to do, the first few are worth more than the others. (Virtual
// devices answer all they have together. Then everything that is done between
// their interrupt and the next read, which was the installation of 32 pages, is
// time in which they do nothing.)
func (p *Pager) dry() bool {
	return p.queue.n.Load() == 0 && aio.Outstanding(p.engine) < dryDepth
}

// toRun is how many have been told of their pages and have not run yet, parked ones
// too.
func toRun() int32 { return readied.runnable.Load() + readied.parked.Load() }

// thin lets some of the crowd run, if it is one, before its reaper tells more.
func (p *Pager) thin() {
	switch {
	case readied.runnable.Load() >= crowdMost:
		p.courtesy.crowd.yield(crowdSlow, crowdRest)
	case toRun() >= dryMost && p.dry():
		p.courtesy.dry.yield(drySlow, dryRest)
	}
}

// Submit starts ops, or adds them to what the leader is going to submit.
func (g *gatherer) Submit(ops []*aio.Op) {
	if !g.led.Load() {
		g.Engine.Submit(ops)
		return
	}
	g.mu.Lock()
	g.ops = append(g.ops, ops...)
	enough := !g.led.Load() || len(g.ops) >= g.enough()
	g.mu.Unlock()
	if enough {
		g.start() // or the leader has done so meanwhile
	}
}

// enough is how many reads are not worth keeping back any longer: a device that
// has run dry gets its first few soon.
func (g *gatherer) enough() int {
	return min(max(aio.Outstanding(g.Engine)/2, gatherMin), gatherMax)
}

// lead makes the caller the one who submits, if that is worth while: then he
// calls yield, if he likes, and in any case flush.
func (p *Pager) lead() bool {
	g := &p.gather
	ready := readied.n.Load()
	if ready < 2 || ready < gatherReady && p.inflight.Load()+p.writingIOs.Load() < gatherDepth || g.led.Load() {
		return false
	}
	if g.rest.Load() > 0 && g.rest.Add(-1) >= 0 {
		return false
	}
	if !g.led.CompareAndSwap(false, true) {
		return false
	}
	g.turn.Add(1)
	return true
}

// single says that the caller's is the only read under way (but for one whose
// reaper has told of it and not counted it yet), and that nobody has been told of
// his pages and has not run: those who were made ready since the last yield
// were the caller himself, and to yield would only wake a thread that finds
// nothing to do.
func (p *Pager) single() bool {
	return p.inflight.Load() <= 2 && readied.runnable.Load() == 0
}

// yield lets those run who are ready.
func (g *gatherer) yield() {
	readied.n.Store(0)
	if letOthers() <= gatherSlow {
		g.slow = 0
		return
	}
	g.rest.Store(gatherRest << g.slow)
	g.slow = min(g.slow+1, gatherDull)
}

// flush submits what has been gathered; the caller does not lead any more.
func (g *gatherer) flush() {
	g.mu.Lock()
	g.led.Store(false)
	g.mu.Unlock()
	g.start()
}

// start submits what there is.
func (g *gatherer) start() {
	g.mu.Lock()
	ops := g.ops
	g.ops, g.spare = g.spare, nil
	g.mu.Unlock()
	if len(ops) > 0 {
		g.Engine.Submit(ops)
		clear(ops)
	}
	g.mu.Lock()
	g.spare = ops[:0]
	g.mu.Unlock()
}
