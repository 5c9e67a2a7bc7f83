//go:build linux

package pager

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The budget
//
// Memory is counted in frames of 4 KiB. A frame is taken before a read is
// submitted and goes with the page word from then on: whoever makes the word
// Missing has the frame. free is the only counter, so resident and in-flight
// pages cannot exceed the budget.
//
// Some of the frames (unpinnable) can never be pinned or dirty. With that reserve
// the fault server always finds a victim (clean and unpinned, or a read it can
// cancel), and reads always progress. The last one to four free frames
// (pages of the largest size) are the fault server's alone.

// unpinnable is how many frames of a budget can never be pinned or dirty: 16
// pages (of the largest size mapped) or a twentieth, half of a small budget.
func (p *Pager) unpinnable(frames int64) int64 {
	page := p.largestPage.Load()
	if pages := frames / page; pages < 32 {
		return (pages + 1) / 2 * page
	}
	return max(16*page, frames/20)
}

// defaultBudget is the smaller of a quarter of the memory and half of the
// cgroup's limit, in bytes.
func defaultBudget() int64 {
	var si unix.Sysinfo_t
	b := int64(1 << 30)
	if unix.Sysinfo(&si) == nil {
		b = int64(uint64(si.Totalram) * uint64(si.Unit) / 4)
	}
	if l := CgroupLimit(); l > 0 {
		b = min(b, l/2)
	}
	return max(b, MinBudget)
}

// CgroupLimit is the memory limit, in bytes, that the cgroups (v1 or v2) of
// this process set; 0 if there is none or it cannot be read. A resident page
// over that limit kills the process: the kernel does not refuse it.
func CgroupLimit() int64 {
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return 0
	}
	defer f.Close()
	limit := int64(math.MaxInt64)
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		p := strings.SplitN(sc.Text(), ":", 3)
		if len(p) != 3 {
			continue
		}
		var root, file string
		switch {
		case p[1] == "":
			root, file = "/sys/fs/cgroup", "memory.max"
		case strings.Contains(","+p[1]+",", ",memory,"):
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		// A limit of any ancestor counts. In a container the path may be that
		// of the host, so the root of the mount is tried as well.
		for dir := p[2]; ; dir = dir[:strings.LastIndexByte(dir, '/')] {
			b, err := os.ReadFile(root + dir + "/" + file)
			if err == nil {
				if v, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
					limit = min(limit, v)
				}
			}
			if !strings.Contains(dir, "/") {
				break
			}
		}
	}
	if limit >= 1<<62 {
		return 0
	}
	return limit
}

// machineMemory is the machine's memory in bytes, 0 if unknown.
func machineMemory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return int64(uint64(si.Totalram) * uint64(si.Unit))
}

func checkBudget(bytes int64) error {
	if bytes < MinBudget {
		return fmt.Errorf("%w: a budget of %d bytes is below the minimum of %d", ErrBudget, bytes, MinBudget)
	}
	if m := machineMemory(); m > 0 && bytes > m {
		return fmt.Errorf("%w: a budget of %d bytes is more than this machine's memory of %d bytes", ErrBudget, bytes, m)
	}
	return nil
}

// SetBudget changes the budget, in bytes. When it returns nil, what is
// resident fits the new budget. It waits while pages leave (writing dirty ones
// first); if pins keep it from succeeding for Options.StallLimit, the old
// budget is restored and the error is ErrBudget. 0 and less are errors.
func (p *Pager) SetBudget(bytes int64) error {
	if p.closed.Load() {
		return ErrClosed
	}
	if err := checkBudget(bytes); err != nil {
		return err
	}
	p.budgetMu.Lock()
	defer p.budgetMu.Unlock()
	frames := bytes >> frameShift
	if need := p.largestPage.Load() * 4; frames < need {
		return fmt.Errorf("%w: a region with pages of %d bytes is mapped and needs four of them", ErrBudget, p.largestPage.Load()<<frameShift)
	}
	old := p.budget.Load()
	p.resize(frames)
	if frames >= old {
		if p.unmapped.opened.Load() {
			p.unmapped.grow(frames)
		}
		p.serveLine()
		return nil
	}
	p.shelf.drop(nil)
	// On the way down the old budget still holds for the fault server, which
	// must never be stuck.
	stall := time.Now()
	best := int64(math.MinInt64)
	over := old - frames
	for {
		free, left := load64(&p.w.free), p.credits.left()
		if free >= 0 && left >= -p.creditTight(frames) {
			p.setSlack(frames, 0)
			if load64(&p.w.free) >= 0 {
				break
			}
			p.setSlack(frames, over) // a server was faster
		} else if now := max(-free, -left, 0); now < over {
			over = now // what has been reached is not given away again
			p.setSlack(frames, over)
		}
		if left < 0 {
			p.credits.recall()
		}
		if free < 0 && p.evictSome(-free) > 0 {
			continue
		}
		p.flushForRoom()
		if min(free, left) > best {
			best, stall = min(free, left), time.Now()
		}
		if time.Since(stall) > p.opt.StallLimit {
			p.resize(old)
			p.serveLine()
			return fmt.Errorf("%w: %d bytes are pinned or cannot be written", ErrBudget, max(-free, -left)<<frameShift)
		}
		time.Sleep(50 * time.Microsecond)
	}
	p.serveLine()
	return nil
}

// creditSlack is how many credits beyond the limit the fault server has.
func (p *Pager) creditSlack(frames int64) int64 {
	return max(p.largestPage.Load(), p.unpinnable(frames)/2)
}

// creditLast is how many it has when writes are in flight that those who stand
// still for it would have to end. Not all there are: if everything were dirty,
// and nothing might be written (NoSteal, a full spill file), a fault that only
// reads would find no frame, nor would ReadAt, which leaves four pages to faults,
// and wait for ever.
func (p *Pager) creditLast(frames int64) int64 {
	n := p.unpinnable(frames)
	return n - min(5*p.largestPage.Load(), n/2)
}

// creditTight leaves the last two pages of the reserve to stores that block
// their threads; see claims.go.
func (p *Pager) creditTight(frames int64) int64 {
	return max(0, p.creditLast(frames)-2*p.largestPage.Load())
}

// setSlack sets what servers may use beyond what there is: more while a budget
// that is larger by so much has still to be given up.
func (p *Pager) setSlack(frames, more int64) {
	bareStore64(&p.w.frameSlack, more)
	bareStore64(&p.w.creditSlack, more+p.creditSlack(frames))
	bareStore64(&p.w.creditLast, more+p.creditLast(frames))
	bareStore64(&p.w.creditTight, more+p.creditTight(frames))
}

// resize sets the budget without waiting. What it takes away servers may go on
// using, until setSlack says otherwise, from before it is taken away: the world
// may stop in between. budgetMu is held (or p is new).
func (p *Pager) resize(frames int64) {
	old := p.budget.Swap(frames)
	if frames <= old {
		p.setSlack(frames, old-frames)
	} else {
		defer p.setSlack(frames, 0)
	}
	limit := frames - p.unpinnable(frames)
	p.credits.setLimit(limit, limit-p.pinnable.Swap(limit))
	batch := int64(p.opt.EvictBatch)
	if batch == 0 {
		batch = min(64, max(1, frames/16))
	}
	p.evictBatch.Store(min(batch, max(1, frames/4)))
	// The fault server's own frames: an instruction may need four pages. They
	// are half of what cannot be pinned, at most.
	largest := p.largestPage.Load()
	own := min(max(frames/largest/4, 1), 4) * largest
	bareStore64(&p.w.serverFrames, own)
	low := own
	if b := p.evictBatch.Load(); b > 1 {
		low += b
	}
	bareStore64(&p.w.lowWater, low)
	add64(&p.w.free, frames-old)
	p.limitLoose()
	p.lockEvict()
	for _, d := range p.domains {
		d.policy.SetCapacity(p.capacityOf(d))
	}
	p.evictMu.Unlock()
}

// reserve takes n frames for r, evicting if there are none. It does not wait
// for anybody else.
func (p *Pager) reserve(r *Region, n int64) room {
	if m := r.maxFrames; m > 0 {
		for tries := 0; load64(&r.d.resident)+n > m; tries++ {
			if p.evictFrom(r.domain, max(n, min(p.evictBatch.Load(), m/8))) == 0 && p.giveUpMarkers(r, n) == 0 && tries > 2 {
				return roomNotHere
			}
		}
	}
	for tries := 0; !p.w.takeFrames(n); tries++ {
		if p.evictUnless(n, max(n, p.evictBatch.Load())) == 0 && tries > 2 {
			return roomNone
		}
	}
	if r.maxFrames > 0 {
		r.full.granted.Add(1)
	}
	used := p.budget.Load() - load64(&p.w.free)
	for {
		m := p.peak.Load()
		if used <= m || p.peak.CompareAndSwap(m, used) {
			break
		}
	}
	return roomMade
}

// unreserve gives n frames back.
func (p *Pager) unreserve(n int64) {
	p.w.giveFrames(n)
	if p.waiting.Load() != 0 {
		p.serveLine()
	}
}

// roomAhead is keepRoom for the reaper when nothing has come: it evicts while the
// device works, and those who miss next find room, and need not evict while the device
// waits for them.
func (p *Pager) roomAhead() {
	n := p.evictBatch.Load()
	if n == 1 || p.inflight.Load() < gatherDepth || load64(&p.w.free) >= load64(&p.w.lowWater)+n {
		return
	}
	if toRun() != 0 {
		p.courtesy.dry.yield(drySlow, dryRest)
	}
	if load64(&p.w.free) < load64(&p.w.lowWater)+n && p.keeping.CompareAndSwap(false, true) {
		p.evictSome(n)
		p.keeping.Store(false)
	}
}

// keepRoom evicts a batch when few frames are left, after a read has been
// submitted and before anybody needs the room. One batch is enough for all who
// find so at the same time: a thousand writers that each evicted one would pass
// by all that is dirty a thousand times.
func (p *Pager) keepRoom() {
	for load64(&p.w.free) < load64(&p.w.lowWater) && p.keeping.CompareAndSwap(false, true) {
		n := p.evictUnless(0, p.evictBatch.Load())
		p.keeping.Store(false)
		if n == 0 {
			return
		}
	}
}
