//go:build linux

package pager

import (
	"math/rand/v2"
	"slices"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/uffd"
)

// Eviction
//
// Clean pages leave in batches, because one system call, and one interruption
// of the other cores to flush their TLBs, then serves 64 pages. The policy
// offers candidates; take judges them by their words without changing them;
// zapBatch then makes the transition of the whole batch without a safe-point.
// A page that was pinned or written in between stays and goes back to the
// policy.

// domain is a set of pages under one policy: all regions without one of their
// own, or one region.
type domain struct {
	policy evict.Policy
	region *Region // nil: shared
	cold   int64   // pages that scans have left behind them, and that have not left yet: at most so many
}

// A key names a page of a use of a descriptor: a policy may know pages for a
// while after their region was closed.
func pageKey(d *desc, page uint64) evict.Page {
	return evict.Page(uint64(d.inc&0xff)<<56 | uint64(d.index)<<noticePageBits | page)
}

// splitKey returns nil if the region is gone.
func splitKey(k evict.Page) (d *desc, page uint64) {
	d = descAt(uint32(k>>noticePageBits) & (maxDescs - 1))
	page = uint64(k) & (1<<noticePageBits - 1)
	if uint8(d.inc) != uint8(k>>56) || page >= d.pages {
		return nil, 0
	}
	return d, page
}

const maxEvictBatch = 256

// zapEntry is one page of an eviction batch.
type zapEntry struct {
	d    *desc
	page uint64
	seen word // the word when it was judged
	ok   bool // out: it left
	span *uint32
}

// evictState is what evicting needs; evictMu guards it.
type evictState struct {
	batch    [maxEvictBatch]zapEntry
	n        int
	dirty    []dirtyPage // met on the way: to be written
	left     int         // pages of which EventListener.Evicted is to be told
	unmapped int         // that have left without having been mapped, in this turn
	credits  int64       // given back since evictMu was locked
	refusal  refusal
	ranges   [maxEvictBatch]uffd.Range
	spares   spares
	take     func(evict.Page) evict.Verdict // takeVictim as a value, made once
}

// takeVictim judges a candidate. evictMu is held.
func (p *Pager) takeVictim(k evict.Page) evict.Verdict {
	d, page := splitKey(k)
	if d == nil || bare.Load32(&d.state) == descFree || d.words != p.w {
		return evict.Unknown
	}
	pw, w := d.look(page)
	if pw == nil {
		p.unmapped.sweep(d, page)
		return evict.Unknown
	}
	switch w & stateMask {
	case stLoading:
		if isMarker(w) {
			return p.takeUnmappedVictim(d, page, pw, w)
		}
		return evict.Unknown // a load that is under way installs it anew
	case stMissing, stInstalling, stFailed, stEvicting:
		p.unmapped.sweep(d, page)
		return evict.Unknown // the same
	case stResident:
	case stDirty:
		if r := regionOf(d); len(p.ev.dirty) < maxEvictBatch && r != nil && !r.opt.Writeback.NoSteal {
			p.ev.dirty = append(p.ev.dirty, dirtyPage{d, page})
		}
		return p.busyOr(evict.Stop)
	default:
		return p.busyOr(evict.Stop)
	}
	if w&pinMask != 0 {
		return evict.Busy
	}
	if w&flagTouched != 0 && bare.Cas64(pw, w, w&^flagTouched) {
		return evict.Touched
	}
	if p.ev.n == maxEvictBatch {
		return evict.Busy
	}
	if p.leastResident(d) {
		return evict.Busy
	}
	p.ev.batch[p.ev.n] = zapEntry{d: d, page: page, seen: bare.Load64(pw)}
	if s := p.ev.batch[p.ev.n].seen; s&stateMask != stResident || s&(pinMask|flagTouched) != 0 {
		return evict.Busy
	}
	p.ev.n++
	return evict.Gone
}

// takeUnmappedVictim is takeVictim for a marker: one whose frame is a buffer leaves at
// once.
func (p *Pager) takeUnmappedVictim(d *desc, page uint64, pw *word, w word) evict.Verdict {
	if w&flagTouched != 0 && bare.Cas64(pw, w, w&^flagTouched) {
		return evict.Touched
	}
	if p.leastResident(d) {
		return evict.Busy
	}
	switch left, wanted := p.takeUnmapped(d, page, uint32(w>>32)); {
	case left:
		p.ev.unmapped++
		return evict.Gone
	case wanted:
		return evict.Busy
	}
	return evict.Unknown
}

// leastResident: d has no more than MinResident, what is in the batch aside.
func (p *Pager) leastResident(d *desc) bool {
	least := bare.Load64((*uint64)(unsafe.Pointer(&d.minResident)))
	return least != 0 && uint64(load64(&d.resident)) <= least+uint64(p.ev.taken(d))
}

// busyOr is the verdict on a page that must be written before it can leave:
// others are offered, unless the order is to be kept exactly.
func (p *Pager) busyOr(exact evict.Verdict) evict.Verdict {
	if p.opt.EvictBatch == 1 {
		return exact
	}
	return evict.Busy
}

// taken is how many frames of d are in the batch.
func (ev *evictState) taken(d *desc) (frames int64) {
	for i := range ev.batch[:ev.n] {
		if ev.batch[i].d == d {
			frames += d.framesPerPage()
		}
	}
	return frames
}

// evictSome makes about n frames free and returns how many it made. It picks
// the domain at random, weighed by what each has resident, which is what one
// queue over all of them would do. Victims that are dirty are written, so that
// they can leave next time.
func (p *Pager) evictSome(n int64) int64 {
	p.lockEvict()
	return p.evictOrGiveUp(n)
}

// evictUnless is evictSome for those who want frames beside the fault server's,
// or (0) that there are not few. Many may want that at once; who has waited for
// another's eviction may find that it was enough for both.
func (p *Pager) evictUnless(frames, n int64) int64 {
	enough := load64(&p.w.lowWater)
	if frames > 0 {
		enough = frames + load64(&p.w.serverFrames)
	}
	p.lockEvict()
	if free := load64(&p.w.free); free >= enough {
		p.evictMu.Unlock()
		return free
	}
	return p.evictOrGiveUp(n)
}

// evictOrGiveUp is evictLocked for those who go without when there is nothing.
func (p *Pager) evictOrGiveUp(n int64) int64 {
	freed := p.evictLocked(n)
	if freed == 0 {
		freed = p.giveUpMarkers(nil, n)
	}
	return freed
}

// evictLocked is evictSome with evictMu held, which it unlocks.
func (p *Pager) evictLocked(n int64) int64 {
	var total int
	for _, dm := range p.domains {
		total += dm.policy.Len()
	}
	start := 0
	if len(p.domains) > 1 && total > 0 {
		x := rand.IntN(total)
		for i, dm := range p.domains {
			if x -= dm.policy.Len(); x < 0 {
				start = i
				break
			}
		}
	}
	var freed int64
	for i := range p.domains {
		if freed += p.evictDomain(p.domains[(start+i)%len(p.domains)], n-freed); freed >= n {
			break
		}
	}
	p.noteRefusal(freed)
	p.evictUnlock()
	return freed
}

// evictUnlock unlocks evictMu, tells of what has left, writes the dirty
// victims, and lets those go on who wait for the credits that have come back.
func (p *Pager) evictUnlock() {
	left, credits := p.ev.left, p.ev.credits
	p.ev.left, p.ev.credits = 0, 0
	var list []dirtyPage
	if len(p.ev.dirty) > 0 {
		list = slices.Clone(p.ev.dirty)
		p.ev.dirty = p.ev.dirty[:0]
	}
	p.evictMu.Unlock()
	if left > 0 {
		p.event(func(l *EventListener) {
			if l.Evicted != nil {
				l.Evicted(left)
			}
		})
	}
	if len(list) > 0 {
		p.writeBack(list, writeEvict)
	}
	if credits > 0 && p.lineLen[lineCredits].Load() != 0 {
		p.serveLine()
	}
}

// evictFrom makes about n frames free within one domain.
func (p *Pager) evictFrom(dm *domain, n int64) int64 {
	p.lockEvict()
	freed := p.evictDomain(dm, n)
	p.evictUnlock()
	return freed
}

// evictDomain does it. evictMu is held.
func (p *Pager) evictDomain(dm *domain, n int64) (freed int64) {
	p.cool()
	size := p.framesOf(dm)
	for n > freed {
		p.ev.n, p.ev.unmapped = 0, 0
		pages := (n - freed + size - 1) / size
		if p.opt.EvictBatch == 0 {
			// One call flushes the TLBs for all that it unmaps, and what scans have left
			// behind is a few runs of neighbours: so it leaves by windows.
			pages = max(pages, min(dm.cold, maxEvictBatch/size, int64(p.capacityOf(dm))/16))
		}
		dm.policy.Evict(int(min(pages, maxEvictBatch)), p.ev.take)
		got := p.gone(p.ev.unmapped, int64(p.ev.unmapped))
		if p.ev.n > 0 {
			got += p.zap(dm)
		}
		dm.cold = max(0, dm.cold-got/size)
		freed += got
		if got == 0 {
			break
		}
	}
	return freed
}

// framesOf is the size of a page of the domain, in frames; for the shared one
// the smallest possible.
func (p *Pager) framesOf(dm *domain) int64 {
	if dm.region != nil {
		return dm.region.fpp
	}
	return 1
}

// zap unmaps the batch. evictMu is held.
func (p *Pager) zap(dm *domain) (freed int64) {
	ev := &p.ev
	if p.moves.Load() {
		ev.spares.take(&bufs)
	}
	frames, credits := zapBatch(&ev.batch[0], ev.n, &ev.ranges[0], &ev.spares)
	if ev.spares.n > 0 {
		ev.spares.give(&bufs)
	}
	ev.credits += credits
	left := 0
	for i := range ev.batch[:ev.n] {
		e := &ev.batch[i]
		if !e.ok {
			dm.policy.Install(pageKey(e.d, e.page), evict.Reprieve)
			continue
		}
		left++
		if e.seen&flagPrefetched != 0 {
			p.stats.aheadUnused.Add(1)
			if r := regionOf(e.d); r != nil {
				r.ahead.unused.Add(1)
			}
		}
	}
	p.transition()
	return p.gone(left, frames)
}

// gone counts pages that have left together, and gives their frames back.
func (p *Pager) gone(pages int, frames int64) int64 {
	if pages > 0 {
		p.stats.evictions.Add(int64(pages))
		p.stats.evictBatches.Add(1)
		p.w.giveFrames(frames)
		p.ev.left += pages
	}
	return frames
}

// evictor makes pages of a region leave that somebody wants out, and the policy is not
// asked of, a batch at a time.
type evictor struct {
	r     *Region
	batch []zapEntry
	left  func(page uint64) // told of each page that has left
}

func (r *Region) evictor(left func(page uint64)) *evictor {
	return &evictor{r, make([]zapEntry, 0, maxEvictBatch), left}
}

// add adds a page, if it is Resident and unpinned by its word.
func (e *evictor) add(page uint64, w word) {
	if w&stateMask != stResident || w&pinMask != 0 {
		return
	}
	if e.batch = append(e.batch, zapEntry{d: e.r.d, page: page, seen: w}); len(e.batch) == maxEvictBatch {
		e.flush()
	}
}

// flush evicts what has been added and not changed since.
func (e *evictor) flush() {
	if len(e.batch) == 0 {
		return
	}
	p := e.r.p
	p.lockEvict()
	frames, _ := zapBatch(&e.batch[0], len(e.batch), &p.ev.ranges[0], nil)
	for _, z := range e.batch {
		if z.ok {
			e.r.domain.policy.Remove(pageKey(z.d, z.page))
		}
	}
	p.evictMu.Unlock()
	p.unreserve(frames)
	for _, z := range e.batch {
		if z.ok {
			e.left(z.page)
		}
	}
	e.batch = e.batch[:0]
}

// zapBatch takes the batch from Resident to Missing: mark, unmap all with one
// system call (or move the memory to spares), release. Entries whose word has changed since they were judged
// stay. It returns the frames that became free, which are the caller's, and says
// how many credits it has given back. From the first mark to the last release
// nobody can stop it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func zapBatch(first *zapEntry, n int, ranges *uffd.Range, to *spares) (frames, credits int64) {
	held := coro.Unstopped()
	if k, left := markLeaving(first, n, ranges, to); left {
		if credits = keptCredits(first, n); credits > 0 {
			// Before the pages are let go: whoever calls credits in waits for that.
			first.d.words.returnKept(credits)
		}
		if k > 0 {
			uffd.RawZap(ranges, k)
		}
		if frames, k = releaseLeft(first, n, ranges); k > 0 {
			// Empty spans: their page tables go back to the kernel.
			uffd.RawZap(ranges, k)
			for i := 0; i < n; i++ {
				if e := entryAt(first, i); e.span != nil {
					bare.Store32(e.span, 0)
				}
			}
		}
	}
	coro.Stoppable(held)
	return frames, credits
}

//go:nosplit
//go:norace
//go:nocheckptr
func entryAt(first *zapEntry, i int) *zapEntry {
	return (*zapEntry)(unsafe.Add(unsafe.Pointer(first), uintptr(i)*unsafe.Sizeof(zapEntry{})))
}

//go:nosplit
//go:norace
//go:nocheckptr
func rangeAt(ranges *uffd.Range, k int) *uffd.Range {
	return (*uffd.Range)(unsafe.Add(unsafe.Pointer(ranges), uintptr(k)*unsafe.Sizeof(uffd.Range{})))
}

// markLeaving takes entries to Evicting, and makes k ranges of those whose memory is still
// there. left: there are such entries.
//
//go:nosplit
//go:norace
//go:nocheckptr
func markLeaving(first *zapEntry, n int, ranges *uffd.Range, to *spares) (k int, left bool) {
	for i := 0; i < n; i++ {
		e := entryAt(first, i)
		pw, w := e.d.look(e.page)
		if pw == nil || w != e.seen || !bare.Cas64(pw, w, w&^stateMask|stEvicting) {
			continue
		}
		e.ok, left = true, true
		addr, size := e.d.addr(e.page), e.d.pageSize()
		if bare.Load32(&e.d.flags)&descMoves != 0 && to != nil && to.used < to.n && moveOut(to.at(to.used), addr, size) {
			to.used++
			continue
		}
		if k > 0 {
			// What a scan leaves behind it is one range, in whichever direction.
			r := rangeAt(ranges, k-1)
			if r.Addr+r.Len == addr {
				r.Len += size
				continue
			}
			if addr+size == r.Addr {
				r.Addr, r.Len = addr, r.Len+size
				continue
			}
		}
		r := rangeAt(ranges, k)
		r.Addr, r.Len = addr, size
		k++
	}
	return k, left
}

// keptCredits is how many credits the entries that leave have kept.
//
//go:nosplit
//go:norace
//go:nocheckptr
func keptCredits(first *zapEntry, n int) (credits int64) {
	for i := 0; i < n; i++ {
		if e := entryAt(first, i); e.ok && e.seen&flagKept != 0 {
			credits += e.d.framesPerPage()
		}
	}
	return credits
}

// releaseLeft takes entries from Evicting to Missing, and makes k ranges of the spans that
// are empty now, which nobody enters until their words are set to 0.
//
//go:nosplit
//go:norace
//go:nocheckptr
func releaseLeft(first *zapEntry, n int, ranges *uffd.Range) (frames int64, k int) {
	for i := 0; i < n; i++ {
		e := entryAt(first, i)
		if !e.ok {
			continue
		}
		frames += e.d.framesPerPage()
		pw, _ := e.d.look(e.page)
		if e.d.vacate(pw, e.page) && spanTake(e.d, e.page) {
			r := rangeAt(ranges, k)
			r.Addr, r.Len = e.d.addr(e.page)&^(granule-1), granule
			k++
			e.span = e.d.spanWord(e.page)
		}
	}
	return frames, k
}

// spanTake keeps everybody out of an empty span, until its word is set to 0.
//
//go:nosplit
//go:norace
func spanTake(d *desc, page uint64) bool {
	return bare.Cas32(d.spanWord(page), 0, spanFreeing)
}

// capacityOf is what a domain's policy is told of the budget, in pages.
func (p *Pager) capacityOf(dm *domain) int {
	f := p.budget.Load()
	if r := dm.region; r != nil {
		if r.maxFrames > 0 {
			f = min(f, r.maxFrames)
		}
		f /= r.fpp
	}
	return int(max(1, f))
}

// regionOf is the region of a live descriptor, nil if it is gone.
func regionOf(d *desc) *Region {
	if r, ok := sp.regions.Load(d.index); ok {
		return r.(*Region)
	}
	return nil
}
