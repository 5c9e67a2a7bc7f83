//go:build linux && uffdpager_invariants

package pager

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// Checks of the pager's own state
//
// With the build tag uffdpager_invariants every n-th transition made by
// ordinary code looks at all page words of its pager, and CheckQuiet compares
// everything that is counted with what is there. A word is looked at while
// others change it, so the first look only asks what is true of each word by
// itself at any instant; sums are compared when nothing is going on. What does
// not hold ends the process.
const invariants = true

// checkEvery is how many transitions there are from check to check.
var checkEvery = func() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("UFFDPAGER_INVARIANTS_EVERY"), 10, 32); err == nil && n > 0 {
		return n
	}
	return 61
}()

// unmappedAfter is unmappedSoon, or UFFDPAGER_UNMAPPED_AFTER: histories in which
// everybody comes to a region hardly ever get to pages that are not mapped.
var unmappedAfter = func() int32 {
	if n, err := strconv.ParseUint(os.Getenv("UFFDPAGER_UNMAPPED_AFTER"), 10, 16); err == nil {
		return int32(n)
	}
	return unmappedSoon
}()

var transitions atomic.Uint64

// transition counts one transition and looks at all words now and then.
func (p *Pager) transition() {
	if transitions.Add(1)%checkEvery != 0 {
		return
	}
	if err := p.checkWords(); err != nil {
		panic(err)
	}
}

// checkWords looks at every word of the pager.
func (p *Pager) checkWords() error {
	for l := range p.leaves() {
		d, m := l.d, metaOf(l.leaf)
		for i := range uint64(leafPages) {
			page := l.group<<leafShift + i
			pw := leafWord(l.leaf, i)
			w := atomic.LoadUint64(pw)
			why := wordWrong(w)
			if why == "" && w&stateMask == stDirty && unmarked(m, pw, w, i) {
				why = "Dirty, and its leaf does not say so"
			}
			if why != "" && d.owns(l.leaf, l.group) {
				return fmt.Errorf("pager: invariant: descriptor %d page %d: word %#x: %s", d.index, page, w, why)
			}
		}
	}
	return nil
}

// wordWrong says what is wrong with a word, whatever its moment.
func wordWrong(w word) string {
	s, pins := w&stateMask, w&pinMask
	switch {
	case s > stFailed:
		return "no such state"
	case s == stMissing && w&^genMask != 0:
		return "Missing, with pins or flags"
	case s != stMissing && w&genMask == 0:
		return "claimed, and never counted as claimed"
	case (s == stEvicting || s == stPosted || s == stMapping) && pins != 0:
		return "Evicting or Posted, and pinned"
	case w&flagHeld != 0 && s != stUnlocking && s != stLoading && s != stInstalling:
		return "flagHeld outside Unlocking, or flagMark outside Loading"
	case w&flagRedirtied != 0 && s != stWriting && s != stLoading && s != stInstalling && s != stFailed:
		return "flagRedirtied outside Writing, or flagForStore on no way in"
	case w&flagWaited != 0 && s != stLoading && s != stInstalling && s != stFailed:
		return "flagWaited, and not on its way in"
	case w&flagWritePin != 0 && pins == 0:
		return "a write pin without a pin"
	case w&flagKept != 0 && s != stResident && s != stEvicting:
		return "keeps a credit beside the one it has for being written to"
	case w&flagPrefetched != 0 && (s == stDirty || s == stCopying || s == stWriting):
		return "prefetched, untouched, and written to"
	}
	return ""
}

// unmarked: the page has been Dirty all the time that its bit was looked for.
func unmarked(m *leafMeta, pw *word, w word, i uint64) bool {
	for range 1000 {
		if atomic.LoadUint64(&m.dirty)>>i&1 != 0 || atomic.LoadUint64(pw) != w {
			return false
		}
		bare.Pause()
	}
	return true
}

// CheckQuiet compares everything that is counted with what is there: frames,
// credits, dirty pages, the page table and the kernel's, waiters, lines and
// queues, and what the policies know. The caller makes sure that nobody uses
// the pager; what its own goroutines have begun gets time to end. (A page that the
// fault server has loaded, and that nobody waits for, is the policy's when the housekeeper
// wakes for whatever reason, of which there may be none when all is quiet.)
func (p *Pager) CheckQuiet() error {
	var err error
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		p.dropHolds(0)
		p.rouse()
		if err = p.checkQuiet(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// census is what a look at all words found, in frames.
type census struct {
	frames, credits, dirty, kept int64
}

func (p *Pager) checkQuiet() error {
	if err := p.checkWords(); err != nil {
		return err
	}
	if err := p.checkQueues(); err != nil {
		return err
	}
	var sum census
	resident := map[*domain]int{}
	for _, r := range p.regionList() {
		c, pages, err := r.census()
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		sum.frames, sum.credits, sum.dirty, sum.kept = sum.frames+c.frames, sum.credits+c.credits, sum.dirty+c.dirty, sum.kept+c.kept
		resident[r.domain] += pages
	}
	budget, free := p.budget.Load(), load64(&p.w.free)
	left := p.credits.left()
	switch {
	case budget-free != sum.frames:
		return fmt.Errorf("pager: invariant: %d of %d frames are free, and pages have %d", free, budget, sum.frames)
	case p.pinnable.Load()-left != sum.credits:
		return fmt.Errorf("pager: invariant: %d of %d credits are left, and pages have %d", left, p.pinnable.Load(), sum.credits)
	case load64(&p.w.kept) != sum.kept:
		return fmt.Errorf("pager: invariant: %d credits are counted as kept, and %d are", load64(&p.w.kept), sum.kept)
	case load64(&p.w.dirty) != sum.dirty:
		return fmt.Errorf("pager: invariant: %d frames are counted as dirty, and %d are", load64(&p.w.dirty), sum.dirty)
	}
	p.lockEvict()
	defer p.evictMu.Unlock()
	for dm, n := range resident {
		if k := dm.policy.Len(); k < n {
			return fmt.Errorf("pager: invariant: %d pages are resident, and their policy knows %d", n, k)
		}
	}
	return nil
}

// checkQueues: nobody waits, nothing is under way.
func (p *Pager) checkQueues() error {
	for i := range p.buckets {
		b := &p.buckets[i]
		b.mu.Lock()
		w := b.head
		b.mu.Unlock()
		if w != nil {
			return fmt.Errorf("pager: invariant: somebody waits for page %d of %s", w.page, w.op.r.name)
		}
	}
	for _, q := range []struct {
		what string
		n    int64
	}{
		{"requests in line", int64(p.waiting.Load())},
		{"requests in the line for credits", int64(p.lineLen[lineCredits].Load())},
		{"requests in the line for frames", int64(p.lineLen[lineFrames].Load())},
		{"loads with the store", int64(p.inflight.Load())},
		{"bytes of loads with the store", p.flight.Load()},
		{"loads in the queue", int64(p.queue.n.Load())},
		{"frames read ahead", p.aheadPages.Load()},
		{"reads ahead", int64(p.aheadLoads.Load())},
		{"bytes of them with the store", p.aheadOut.Load()},
		{"frames planned", p.jobs.planned.Load()},
		{"frames being written", p.writingFrames.Load()},
		{"goroutines with held pages", int64(p.holds.n.Load())},
		{"notices", int64(bare.Load64(&p.w.noticeTail) - bare.Load64(&p.w.noticeHead))},
	} {
		if q.n != 0 {
			return fmt.Errorf("pager: invariant: %d %s, and nothing is going on", q.n, q.what)
		}
	}
	return nil
}

// census counts a region's pages by their words and compares the region's own
// counters, its page table, and the kernel's page table with them.
func (r *Region) census() (c census, pages int, err error) {
	d := r.d
	spans := map[*uint32]uint32{}
	kernel, err := openPagemap()
	if err != nil {
		return c, 0, err
	}
	defer kernel.Close()
	groups := (d.pages + leafPages - 1) >> leafShift
	for g := range groups {
		e := atomic.LoadUint64(d.dirEntry(g << leafShift))
		if e == 0 {
			continue
		}
		claimed := uint64(0)
		for page := g << leafShift; page < min((g+1)<<leafShift, d.pages); page++ {
			w := atomic.LoadUint64(leafWord(uint32(e)&dirLeafMask, page))
			s := w & stateMask
			if s == stLoading && !isMarker(w) || s == stFailed || s == stWriting || s == stPosted || bounded(w) {
				return c, 0, fmt.Errorf("pager: invariant: page %d is in state %d, and nothing is going on", page, s)
			}
			if err := kernel.check(d, page, w); err != nil {
				return c, 0, err
			}
			if s == stMissing {
				continue
			}
			claimed++
			pages++
			spans[d.spanWord(page)]++
			c.frames += r.fpp
			if hasCredit(w) {
				c.credits += r.fpp
			}
			if w&flagKept != 0 {
				c.kept += r.fpp
			}
			if unclean(w) {
				c.dirty += r.fpp
			}
		}
		if n := e & dirCountMask >> 24; n != claimed {
			return c, 0, fmt.Errorf("pager: invariant: group %d counts %d pages, and has %d", g, n, claimed)
		}
	}
	for page := uint64(0); page < d.pages; page += max(1, uint64(granule)>>d.shift) {
		s := d.spanWord(page)
		if n := atomic.LoadUint32(s); n != spans[s] {
			return c, 0, fmt.Errorf("pager: invariant: the span of page %d counts %#x pages, and has %d", page, n, spans[s])
		}
	}
	switch {
	case load64(&d.resident) != c.frames:
		err = fmt.Errorf("pager: invariant: %d frames are counted as resident, and %d are", load64(&d.resident), c.frames)
	case load64(&d.dirty) != c.dirty:
		err = fmt.Errorf("pager: invariant: %d frames are counted as dirty, and %d are", load64(&d.dirty), c.dirty)
	}
	return c, pages, err
}

// pagemap is the kernel's page table of this process, as /proc shows it.
type pagemap struct{ *os.File }

func openPagemap() (pagemap, error) {
	f, err := os.Open("/proc/self/pagemap")
	return pagemap{f}, err
}

const (
	mapPresent   = 1 << 63
	mapSwapped   = 1 << 62
	mapProtected = 1 << 57
)

// check compares the kernel's entries for a page with its word.
func (m pagemap) check(d *desc, page uint64, w word) error {
	if sp.fd < 0 {
		return nil // ordinary memory: nothing is unmapped or protected
	}
	n := int(d.pageSize() / FrameSize)
	buf := make([]byte, 8*n)
	if _, err := m.ReadAt(buf, int64(d.addr(page)/FrameSize*8)); err != nil {
		return fmt.Errorf("reading the page map: %w", err)
	}
	for i := range n {
		e := bytesUint64(buf[8*i:])
		there := e&(mapPresent|mapSwapped) != 0
		protected := e&mapProtected != 0
		var why string
		switch s := w & stateMask; {
		case s == stMissing && there:
			why = "absent, and mapped"
		case s != stMissing && !there && !isMarker(w):
			why = "present, and not mapped"
		case s == stResident && sp.wp && !protected:
			why = "clean, and writable"
		case s == stDirty && protected:
			why = "dirty, and protected against writes"
		}
		if why != "" {
			return fmt.Errorf("pager: invariant: page %d (word %#x, entry %d of %d: %#x) is %s", page, w, i, n, e, why)
		}
	}
	return nil
}

func bytesUint64(b []byte) (v uint64) {
	for i := range 8 {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

// Pins. Every one has a number, and the numbers of those that have not been
// released are kept.
var pins struct {
	next atomic.Uint64
	live sync.Map // number → where
}

// pinCheck is a Pin's number; 0 is that of an empty Pin.
type pinCheck struct{ id uint64 }

type pinnedWhere struct {
	region string
	off, n int64
}

var errPinReleased = errors.New("pager: invariant: a Pin is used after its Release")

func watchPin(r *Region, off, n int64) pinCheck {
	c := pinCheck{pins.next.Add(1)}
	pins.live.Store(c.id, pinnedWhere{r.name, off, n})
	return c
}

// use panics if the pin has been released.
func (c pinCheck) use() {
	if _, ok := pins.live.Load(c.id); !ok {
		panic(errPinReleased)
	}
}

// end is use, for the last time.
func (c pinCheck) end() {
	if _, ok := pins.live.LoadAndDelete(c.id); !ok {
		panic(errPinReleased)
	}
}
