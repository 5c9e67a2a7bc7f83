//go:build linux

package pager

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/evict"
)

// Pages that need not be mapped
//
// Where ReadAt is all that comes to a region, nobody needs its pages at their
// addresses: whoever wants one wants a copy. So a page that ReadAt has missed stays
// what a marker is (Loading with flagMark: read, and mapped only when somebody
// touches it, see marker.go), and its frame is the buffer that it was read to. It
// is neither installed nor taken away, which is two changes of the page table, a copy
// and a share of a TLB flush for each page; and no hit touches a page that has just
// been mapped. (A hypervisor that keeps page tables of its own has to follow
// each change of one that has been in use, at 10 µs and more: BenchmarkCycle in uffd.)
//
// To everybody else such a page is a marker. A pin, a raw access, a Lock joins its
// waiters and has it mapped; a fault server takes it over and reads it again. Only
// three things are different. There may be as many as the budget holds, so they
// are found by a table, and the policy knows them as it knows mapped pages and
// offers them (takeVictim). ReadAt copies from the buffer, and marks the page as touched. And one
// that is touched again and again is mapped after all: a mapped hit needs no table.
//
// A hit takes no lock and writes nothing (copyUnmapped): it finds the buffer by page and
// generation, copies, and looks at the page's word again. The buffer is the page as
// long as that has not changed.
//
// The buffer is the page as long as the word is that of a marker, of the generation it
// was read under. Who is about to store to the page maps it first, and so takes the
// entry; who has seen the word before has what the page was during his call. (What is
// written whole may not even be mapped then: posted.go.)
//
// Only in regions that cannot be stored to, or whose pages may be posted; and only after
// unmappedAfter misses in a row were ReadAt's, or WriteAt's of whole pages: where others
// come as well, mapping ahead of them is cheaper than a fault.
const (
	unmappedSoon  = 512 // unmappedAfter, but where a test wants it at once
	unmappedOften = 512 // of so many further copies from one that was touched, one maps it: the table costs a hit tens of nanoseconds, and to be mapped a page some to tens of microseconds

	unmappedLocks = 64
	unmappedMost  = 1 << 20 // chains
	unmappedSteps = 8       // along a chain that is not locked
)

// unmapped is the table of a pager's pages whose frames are buffers.
//
// A buffer is in it with a share of its own. Its entry may be of a page that is not
// what it was any more (taken over by a fault server, or stolen by one): then the
// word has another generation, and the entry goes when
// the policy offers the page, when the housekeeper, whom P-less code has told that it has
// taken such a page (goneWithoutUs), looks for what is left, or when the region closes.
// Ordinary code takes the entry with the page.
//
// What changes the table holds the lock of its chain. Who only looks for a buffer needs
// none (find).
type unmapped struct {
	heads atomic.Pointer[[]link] // of the chains, a power of two of them; all locks guard it
	locks [unmappedLocks]struct {
		sync.Mutex
		_ [56]byte
	}
	opened atomic.Bool // there are chains
	n      atomic.Int64
	swept  time.Time // the housekeeper's
}

// link is one of a chain.
type link = atomic.Pointer[buffer]

// unmappedEntry is what a buffer has of this; the lock of its chain guards it.
type unmappedEntry struct {
	next link
	page atomic.Uint64 // its key
	gen  atomic.Uint32
}

func (e *unmappedEntry) key() evict.Page { return evict.Page(e.page.Load()) }

// is: the entry is of this page and claim. Not the generation alone: they are used again
// (newGen), and a page that is hit now and then stays for longer than that takes.
func (e *unmappedEntry) is(key evict.Page, gen uint32) bool {
	return e.gen.Load() == gen && e.key() == key
}

// ready makes chains if there are none.
func (u *unmapped) ready(frames int64) {
	if !u.opened.Load() {
		u.grow(frames)
		u.opened.Store(true)
	}
}

// grow makes chains for so many pages: one for each, for every step along one is a
// cache miss.
func (u *unmapped) grow(frames int64) {
	u.lockAll()
	defer u.unlockAll()
	old := u.chains()
	n := max(len(old), unmappedLocks)
	for int64(n) < frames && n < unmappedMost {
		n *= 2
	}
	if n == len(old) {
		return
	}
	heads := make([]link, n)
	for i := range old {
		for b := old[i].Load(); b != nil; {
			next := b.kept.next.Load()
			push(&heads[unmappedHash(b.kept.key())&uint64(n-1)], b)
			b = next
		}
	}
	u.heads.Store(&heads)
}

// chains is nil before there are any.
func (u *unmapped) chains() []link {
	if h := u.heads.Load(); h != nil {
		return *h
	}
	return nil
}

// push puts b first in a chain, which is locked.
func push(head *link, b *buffer) {
	b.kept.next.Store(head.Load())
	head.Store(b)
}

func (u *unmapped) lockAll() {
	for i := range u.locks {
		u.locks[i].Lock()
	}
}

func (u *unmapped) unlockAll() {
	for i := range u.locks {
		u.locks[i].Unlock()
	}
}

// unmappedHash has all its bits depend on all of key: the low ones name the chain.
func unmappedHash(key evict.Page) uint64 {
	h := uint64(key) * 0xFF51AFD7ED558CCD
	h = (h ^ h>>32) * 0xC4CEB9FE1A85EC53
	return h >> 32
}

// chain locks the chain of key. (The lock is the same for any number of chains.)
func (u *unmapped) chain(key evict.Page) (head *link, mu *sync.Mutex) {
	h := unmappedHash(key)
	mu = &u.locks[h%unmappedLocks].Mutex
	mu.Lock()
	heads := u.chains()
	return &heads[h&uint64(len(heads)-1)], mu
}

// put adds the buffer of a page, with a share of it. An older one of the same page, of
// another generation, may still be there: to look for it would be a cache miss for each
// step along the chain.
func (u *unmapped) put(key evict.Page, gen uint32, buf *buffer) {
	buf.lent.Add(1)
	// First: while it is 0 nobody looks.
	u.n.Add(1)
	bufs.kept.Add(FrameSize)
	head, mu := u.chain(key)
	buf.kept.page.Store(uint64(key))
	buf.kept.gen.Store(gen)
	push(head, buf)
	mu.Unlock()
}

// unlinkKept takes the first buffer out of a chain, which is locked, whose entry is
// asked for.
func unlinkKept(head *link, is func(*unmappedEntry) bool) *buffer {
	for at := head; ; {
		b := at.Load()
		if b == nil {
			return nil
		}
		if is(&b.kept) {
			at.Store(b.kept.next.Load())
			b.kept.next.Store(nil)
			b.kept.gen.Store(0) // no claim has it
			return b
		}
		at = &b.kept.next
	}
}

// take takes the buffer of generation gen out; its share is the caller's.
func (u *unmapped) take(key evict.Page, gen uint32) *buffer {
	if u.n.Load() == 0 {
		return nil
	}
	head, mu := u.chain(key)
	b := unlinkKept(head, func(e *unmappedEntry) bool { return e.is(key, gen) })
	mu.Unlock()
	u.gone(b)
	return b
}

// stale: the page is not what it was. The lock of the chain is held, and the word is
// looked at after the entry: a claim that has ended does not come back, while a word
// that was looked at before might be followed by a claim whose entry is good.
func (e *unmappedEntry) stale() bool {
	d, page := splitKey(e.key())
	pw, w := d.look(page)
	s := w & stateMask
	return pw == nil || uint32(w>>32) != e.gen.Load() || s != stLoading && s != stPosted && s != stMapping
}

// sweep drops the entries of what a page was and is not any more. (There are several if
// it was taken and kept anew several times since somebody looked, see put.)
func (u *unmapped) sweep(d *desc, page uint64) {
	key := pageKey(d, page)
	for u.n.Load() != 0 {
		head, mu := u.chain(key)
		b := unlinkKept(head, func(e *unmappedEntry) bool { return e.key() == key && e.stale() })
		mu.Unlock()
		if b == nil {
			return
		}
		u.gone(b)
		bufs.put(b)
	}
}

// gone counts a buffer that was taken out.
func (u *unmapped) gone(b *buffer) {
	if b != nil {
		u.n.Add(-1)
		bufs.kept.Add(-FrameSize)
	}
}

// lend is take for somebody who only copies from the buffer, and puts it back: it
// stays.
func (u *unmapped) lend(key evict.Page, gen uint32) *buffer {
	if u.n.Load() == 0 {
		return nil
	}
	head, mu := u.chain(key)
	b := head.Load()
	for b != nil && !b.kept.is(key, gen) {
		b = b.kept.next.Load()
	}
	if b != nil {
		b.lent.Add(1)
	}
	mu.Unlock()
	return b
}

// find is lend without a lock, and without a share: for somebody who looks at the page's
// word again when he has copied from the buffer. It may miss what is there, where the
// chain changes under it or is long; and the entry may be another's by now, in the chain
// of another pager even, but that is after the word has changed.
func (u *unmapped) find(key evict.Page, gen uint32) *buffer {
	heads := u.chains()
	if len(heads) == 0 {
		return nil
	}
	b := heads[unmappedHash(key)&uint64(len(heads)-1)].Load()
	for n := 0; b != nil && n < unmappedSteps; n++ {
		if b.kept.is(key, gen) {
			return b
		}
		b = b.kept.next.Load()
	}
	return nil
}

// purge drops what is left of a region that has no pages any more.
func (u *unmapped) purge(d *desc) {
	u.dropAll(func(e *unmappedEntry) bool { o, _ := splitKey(e.key()); return o == d })
}

// dropAll drops all entries that are asked for.
func (u *unmapped) dropAll(is func(*unmappedEntry) bool) {
	if u.n.Load() == 0 {
		return
	}
	for k := range u.locks {
		var out *buffer
		mu := &u.locks[k].Mutex
		mu.Lock()
		for i, heads := k, u.chains(); i < len(heads); i += unmappedLocks {
			for b := unlinkKept(&heads[i], is); b != nil; b = unlinkKept(&heads[i], is) {
				b.next, out = out, b
			}
		}
		mu.Unlock()
		for out != nil {
			b := out
			out, b.next = b.next, nil
			u.gone(b)
			bufs.put(b)
		}
	}
}

// sweepEvery is how often the housekeeper looks at all entries at most.
const sweepEvery = 250 * time.Millisecond

// sweepUnmapped drops the entries of pages that P-less code has taken.
func (p *Pager) sweepUnmapped() {
	u := &p.unmapped
	if bare.Load32(&p.w.goneWithoutUs) == 0 || time.Since(u.swept) < sweepEvery {
		return
	}
	bare.Store32(&p.w.goneWithoutUs, 0)
	u.dropAll((*unmappedEntry).stale)
	u.swept = time.Now()
}

// mayStayUnmapped: what l has read may do without being mapped, if ReadAt is all
// that waits for it.
func (l *load) mayStayUnmapped() bool {
	o := &l.r.opt
	return l.kind == demand && len(l.gens) == 1 && l.r.fpp == 1 && l.from == fromStore && !l.stays &&
		(o.ReadOnly && o.Verify == nil && sp.trap || l.r.posts)
}

// willKeep prepares for a page of r whose frame is a buffer.
func (r *Region) willKeep() {
	r.p.unmapped.ready(r.p.budget.Load())
	if !r.keeps.Load() {
		r.keeps.Store(true)
	}
}

// keepUnmapped leaves the page of l, which has been read, a marker, and tells those
// who wait for it. false: it has to be mapped, or is not ours any more.
func (p *Pager) keepUnmapped(l *load) bool {
	r, page, gen := l.r, l.first, l.gens[0]
	pw, w := r.d.look(page)
	if !l.mayStayUnmapped() || pw == nil || w&stateMask != stLoading || uint32(w>>32) != gen || w&pinMask != 0 {
		return false // (The rescuer may have been faster.)
	}
	b := p.bucketOf(r, page)
	b.mu.Lock()
	copies := b.onlyCopies(r, page)
	b.mu.Unlock()
	if !copies {
		return false
	}
	if r.copies.Load() < unmappedAfter {
		r.copies.Add(1)
		return false
	}
	if r.closing.Load() {
		return false
	}
	u, key := &p.unmapped, pageKey(r.d, page)
	r.willKeep()
	// It is there before anybody can find the word that says so.
	u.put(key, gen, l.buf)
	b.mu.Lock()
	if !b.onlyCopies(r, page) || !settleMark(r.d, page, gen) {
		b.mu.Unlock()
		bufs.put(u.take(key, gen))
		return false
	}
	ready := b.take(r, page)
	b.mu.Unlock()
	p.tellEvict(r, page, evict.Demand)
	for w := ready; w != nil; {
		next := w.next
		w.loan.take(l.buf, 0)
		w.op.pageDone()
		w = next
	}
	return true
}

// onlyCopies: some wait for the page, and all of them for a copy. b.mu is held.
func (b *bucket) onlyCopies(r *Region, page uint64) (some bool) {
	for w := b.head; w != nil; w = w.next {
		if w.page == page && w.op.r == r {
			if !w.op.borrows || w.op.pin {
				return false
			}
			some = true
		}
	}
	return some
}

// settleMark makes a Loading page a marker nobody waits for. The lock of its bucket is
// held, so that nobody begins to wait.
func settleMark(d *desc, page uint64, gen uint32) bool {
	for {
		pw, w := d.look(page)
		if pw == nil || w&stateMask != stLoading || uint32(w>>32) != gen || w&pinMask != 0 {
			return false
		}
		if bare.Cas64(pw, w, w&^flagWaited|flagMark) {
			return true
		}
	}
}

// copyUnmapped copies to b from skip on in a page that is not mapped, if its frame is
// a buffer: w is the word, and what it says is true at a moment during the call.
//
// Others may take the buffer meanwhile, read something else into it, or take its memory away.
// All of that begins with a change of the page's word, from Loading of this generation to
// whatever else, so if the word is still what it was afterwards the copy is the page.
func (r *Region) copyUnmapped(b []byte, skip int, pw *word, w word, page uint64) bool {
	key, gen := pageKey(r.d, page), uint32(w>>32)
	buf := r.p.unmapped.find(key, gen)
	if buf == nil {
		if buf = r.p.unmapped.lend(key, gen); buf == nil {
			return false
		}
		defer bufs.put(buf)
	}
	// (b may be memory of a region, of which a page is missing.)
	left, _ := coro.CopyOut(unsafe.Pointer(unsafe.SliceData(b)), unsafe.Pointer(&buf.mem[skip]), uintptr(len(b)))
	if left != 0 || (atomic.LoadUint64(pw)^w)&(genMask|stateMask|flagMark) != 0 {
		return false
	}
	switch {
	case w&flagTouched == 0:
		bare.Cas64(pw, w, w|flagTouched)
	case rand.Uint32()%unmappedOften == 0 && r.enter():
		r.p.mapUnmapped(r, page, gen)
		r.leave()
	}
	return true
}

// mapUnmapped maps a page whose frame is a buffer, and says whether it was one. The
// caller holds the region.
func (p *Pager) mapUnmapped(r *Region, page uint64, gen uint32) bool {
	buf := p.unmapped.take(pageKey(r.d, page), gen)
	if buf == nil {
		return false
	}
	r.active.Add(1)
	p.install(marker{r: r, page: page, gen: gen, buf: buf}, demand)
	return true
}

// takeUnmapped takes a page whose frame is a buffer from Loading to Missing: left, and
// the frame is the caller's, who tells the policy. wanted: it stays, for somebody is about
// to map it.
func (p *Pager) takeUnmapped(d *desc, page uint64, gen uint32) (left, wanted bool) {
	u, key := &p.unmapped, pageKey(d, page)
	if u.n.Load() == 0 {
		return false, false
	}
	head, mu := u.chain(key)
	// The entry goes after the page: who wants it mapped meanwhile must find it, and
	// looks for it when the chain is free.
	b := unlinkKept(head, func(e *unmappedEntry) bool {
		if !e.is(key, gen) {
			return false
		}
		switch cancelMarker(d, page, gen) {
		case installNone:
			wanted = true
		case installDone:
			left = true
		}
		return !wanted
	})
	mu.Unlock()
	u.gone(b)
	bufs.put(b)
	return left, wanted
}

// dropUnmapped lets go of the pages of pr whose frames are buffers, and says how many
// frames that were; they are the caller's.
func (r *Region) dropUnmapped(pr pageRange) (frames int64) {
	p := r.p
	if p.unmapped.n.Load() == 0 {
		return 0
	}
	type kept struct {
		page uint64
		gen  uint32
	}
	var list []kept
	r.eachIn(pr, func(page uint64, w word) {
		if isMarker(w) {
			list = append(list, kept{page, uint32(w >> 32)})
		}
	})
	for part := range slices.Chunk(list, maxEvictBatch) {
		p.lockEvict()
		for _, e := range part {
			if left, _ := p.takeUnmapped(r.d, e.page, e.gen); left {
				r.domain.policy.Remove(pageKey(r.d, e.page))
				frames += r.fpp
			}
		}
		p.evictMu.Unlock()
	}
	return frames
}

// unmapped: the page's frame is a buffer; w is its word.
func (r *Region) unmapped(page uint64, w word) bool {
	if !isMarker(w) {
		return false
	}
	buf := r.p.unmapped.lend(pageKey(r.d, page), uint32(w>>32))
	bufs.put(buf)
	return buf != nil
}
