//go:build linux

package pager

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/evict"
)

// The wedge detector
//
// Four times within Options.WedgeLimit a goroutine of its own (the others may
// be what is stuck) looks at everything that is to end soon. What is slow
// anyway – writes, flushes, calls of hooks, requests – carries the time when it
// began. Reads, blocked threads and pins do not: they are recognised from one
// look to the next, a read by the generation of its page, a blocked thread by
// its number, a pin by flagWatched, which the look sets in the page's word and
// a new pin takes off in the compare-and-swap that it makes anyway. So a hit
// pays nothing, and an age is what has been seen, which may be a quarter of the
// limit short. A page that is pinned anew all the time is not named, though one
// of its pins be old.

// tracked is something under way that knows when it began.
type tracked struct {
	prev, next *tracked
	kind       WedgeKind
	r          *Region // nil: none
	off, n     int64
	begun      time.Time
	name       string
	told       bool
}

// trackList is all of them.
type trackList struct {
	mu   sync.Mutex
	head *tracked
}

func (l *trackList) add(t *tracked) {
	if t.begun.IsZero() {
		t.begun = time.Now()
	}
	l.mu.Lock()
	if t.prev, t.next = nil, l.head; t.next != nil {
		t.next.prev = t
	}
	l.head = t
	l.mu.Unlock()
}

func (l *trackList) remove(t *tracked) {
	l.mu.Lock()
	if t.prev == nil {
		l.head = t.next
	} else {
		t.prev.next = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	l.mu.Unlock()
}

var hookPool = sync.Pool{New: func() any { return new(tracked) }}

// hook calls fn, which is the user's code, and notes that it is being called.
//
// One and the same hook is called on the pager's goroutines and on those of who
// reads, writes or commits, in the midst of whatever they hold. A panic that the
// latter recovered would leave a page, a gate, or a turn to commit held for ever;
// one on the former ends the process. So it always does.
func (p *Pager) hook(name string, r *Region, page, n uint64, fn func()) {
	t := hookPool.Get().(*tracked)
	*t = tracked{kind: WedgedHook, r: r, name: name}
	if r != nil {
		t.off, t.n = int64(page<<r.shift), int64(n<<r.shift)
	}
	p.tracks.add(t)
	returned := false
	defer func() {
		if !returned {
			hookPanicked(name, recover())
		}
	}()
	fn()
	returned = true
	p.tracks.remove(t)
	hookPool.Put(t)
}

// hookPanicked ends the process with a panic that nobody can recover. x is nil if
// the hook has called runtime.Goexit.
func hookPanicked(name string, x any) {
	what := fmt.Sprint("panicked: ", x)
	if x == nil {
		what = "called runtime.Goexit"
	}
	msg := fmt.Sprintf("pager: %s %s\n\n%s", name, what, debug.Stack())
	go panic(msg)
	select {}
}

// servingNow is the faults that fault servers are at work on, in this process:
// an address and a number for each. See serve.
var (
	servingNow [64]struct{ addr, number uint64 }
	servingSeq uint64
)

// beginServing notes a fault; 64: there are too many, it is not noted.
//
//go:nosplit
//go:norace
//go:nocheckptr
func beginServing(addr uintptr) (slot uintptr) {
	for slot = 0; slot < 64; slot++ {
		s := (*struct{ addr, number uint64 })(unsafe.Add(unsafe.Pointer(&servingNow), slot*16))
		if bare.Load64(&s.addr) == 0 && bare.Cas64(&s.addr, 0, uint64(addr)) {
			bare.Store64(&s.number, bare.Add64(&servingSeq, 1))
			return slot
		}
	}
	return slot
}

//go:nosplit
//go:norace
//go:nocheckptr
func endServing(slot uintptr) {
	if slot < 64 {
		bare.Store64((*uint64)(unsafe.Add(unsafe.Pointer(&servingNow), slot*16)), 0)
	}
}

// sighting is what the detector recognises from one look to the next.
type sighting struct {
	kind   WedgeKind
	d      *desc
	page   uint64
	number uint64 // a read: generation; a blocked fault: its number; a pin: use of the descriptor
}

type seen struct {
	since time.Time
	told  bool
}

// wedges is the detector's memory.
type wedges struct {
	seen map[sighting]seen
	mu   sync.Mutex
	now  []Wedge // of the last look; guarded by mu
}

const (
	maxWedges   = 64   // named in one look
	maxSighting = 8192 // kept between two
)

func (p *Pager) watch() {
	defer p.wg.Done()
	t := time.NewTicker(max(p.opt.WedgeLimit/4, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.lookForWedges(time.Now())
		case <-p.stopWatch:
			return
		}
	}
}

// look is one look.
type look struct {
	p        *Pager
	now      time.Time
	limit    time.Duration
	old, new map[sighting]seen
	found    []Wedge
	fresh    []Wedge // of these, those not named before
}

// lookForWedges is one look.
func (p *Pager) lookForWedges(now time.Time) {
	w := &p.wedges
	l := &look{p: p, now: now, limit: p.opt.WedgeLimit, old: w.seen, new: map[sighting]seen{}}
	l.tracks()
	l.requests()
	l.blocked()
	l.pages()
	w.seen = l.new
	w.mu.Lock()
	w.now = l.found
	w.mu.Unlock()
	for _, x := range l.fresh {
		p.log.Warn("wedged: " + x.String())
		p.event(func(e *EventListener) {
			if e.Wedged != nil {
				e.Wedged(x)
			}
		})
	}
}

// name adds a wedge, once more if it was named before.
func (l *look) name(w Wedge, r *Region, told bool) {
	if len(l.found) >= maxWedges {
		return
	}
	if r != nil {
		w.Store = r.name
	}
	l.found = append(l.found, w)
	if !told {
		l.fresh = append(l.fresh, w)
	}
}

func (l *look) tracks() {
	t := &l.p.tracks
	t.mu.Lock()
	defer t.mu.Unlock()
	for x := t.head; x != nil; x = x.next {
		if age := l.now.Sub(x.begun); age >= l.limit {
			l.name(Wedge{Kind: x.kind, Name: x.name, Offset: x.off, Len: x.n, Age: age}, x.r, x.told)
			x.told = true
		}
	}
}

// requests looks at who waits for pages and for room.
func (l *look) requests() {
	p := l.p
	op := func(op *waitOp, kind WedgeKind, page, n uint64) {
		age := l.now.Sub(op.begun)
		if age < l.limit {
			return
		}
		how := "a goroutine waits"
		if op.isPark {
			how = "parked in place"
		} else if op.lock != nil {
			how = "LockEventfd"
		}
		l.name(Wedge{Kind: kind, Name: how, Offset: int64(page << op.r.shift), Len: int64(n << op.r.shift), Age: age}, op.r, op.told)
		op.told = true
	}
	for i := range p.buckets {
		b := &p.buckets[i]
		b.mu.Lock()
		for w := b.head; w != nil; w = w.next {
			op(w.op, WedgedFault, w.page, 1)
		}
		b.mu.Unlock()
	}
	p.line.mu.Lock()
	for k := range p.line.queue {
		for o := p.line.queue[k].head; o != nil; o = o.nextInLine {
			first, n := uint64(0), o.pages()
			if len(o.ranges) > 0 {
				first = o.ranges[0].first
			}
			op(o, WedgedRoom, first, n)
		}
	}
	p.line.mu.Unlock()
}

// sight notes that something is there, and since when.
func (l *look) sight(s sighting, since time.Time) {
	if len(l.new) >= maxSighting {
		return
	}
	x := seen{since: since}
	if age := l.now.Sub(since); age >= l.limit {
		if r := regionOf(s.d); r != nil && r.p == l.p {
			w := Wedge{Kind: s.kind, Offset: int64(s.page << r.shift), Len: 1 << r.shift, Age: age}
			if s.kind == WedgedFault {
				w.Name = "a blocked thread"
			}
			l.nameRun(w, r, l.old[s].told)
			x.told = true
		}
	}
	l.new[s] = x
}

// nameRun is name for pages, of which neighbours become one wedge.
func (l *look) nameRun(w Wedge, r *Region, told bool) {
	grow := func(list []Wedge) bool {
		if len(list) == 0 {
			return false
		}
		x := &list[len(list)-1]
		if x.Kind != w.Kind || x.Store != r.name || x.Offset+x.Len != w.Offset {
			return false
		}
		x.Len, x.Age = x.Len+w.Len, max(x.Age, w.Age)
		return true
	}
	if w.Kind == WedgedFault || !grow(l.found) {
		l.name(w, r, told)
	} else if !told && !grow(l.fresh) {
		w.Store = r.name
		l.fresh = append(l.fresh, w)
	}
}

// since is when s was first seen.
func (l *look) since(s sighting) time.Time {
	if x, ok := l.old[s]; ok {
		return x.since
	}
	return l.now
}

func (l *look) blocked() {
	for i := range servingNow {
		addr, number := bare.Load64(&servingNow[i].addr), bare.Load64(&servingNow[i].number)
		if addr == 0 {
			continue
		}
		if r := regionAt(uintptr(addr)); r != nil && r.p == l.p {
			s := sighting{WedgedFault, r.d, (addr - uint64(r.d.base)) >> r.shift, number}
			l.sight(s, l.since(s))
		}
	}
}

// pages looks at all page words for reads and pins.
func (l *look) pages() {
	p := l.p
	if load64(&p.w.free) >= p.budget.Load() {
		return // nothing is in memory, nor on its way
	}
	for lf := range p.leaves() {
		d := lf.d
		for k := range uint64(leafPages) {
			page := lf.group<<leafShift + k
			word := leafWord(lf.leaf, k)
			w := bare.Load64(word)
			if w&stateMask == stLoading && !isMarker(w) {
				s := sighting{WedgedRead, d, page, w >> 32}
				l.sight(s, l.since(s))
			}
			if w&pinMask == 0 || !present(w) {
				continue
			}
			s := sighting{WedgedPin, d, page, uint64(d.inc)}
			if w&flagWatched != 0 {
				l.sight(s, l.since(s))
			} else if bare.Cas64(word, w, w|flagWatched) {
				// There are new pins since the last look: their age is counted
				// from here.
				l.sight(s, l.now)
			}
		}
	}
}

// snapshot is a copy of what the last look has found.
func (w *wedges) snapshot() []Wedge {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.now)
}

// watchedEvict is a user's eviction policy under the detector's eyes.
type watchedEvict struct {
	evict.Policy
	r *Region
}

func (w *watchedEvict) Install(p evict.Page, why evict.Reason) {
	w.r.p.hook("evict.Policy.Install", w.r, 0, 0, func() { w.Policy.Install(p, why) })
}

func (w *watchedEvict) Remove(p evict.Page) {
	w.r.p.hook("evict.Policy.Remove", w.r, 0, 0, func() { w.Policy.Remove(p) })
}

func (w *watchedEvict) Evict(n int, take func(evict.Page) evict.Verdict) (gone int) {
	w.r.p.hook("evict.Policy.Evict", w.r, 0, 0, func() { gone = w.Policy.Evict(n, take) })
	return gone
}

func (w *watchedEvict) Cold(p evict.Page) {
	w.r.p.hook("evict.Policy.Cold", w.r, 0, 0, func() { w.Policy.Cold(p) })
}

// Drop keeps the policy a Dropper if it is one.
func (w *watchedEvict) Drop(p evict.Page) {
	d, ok := w.Policy.(evict.Dropper)
	if !ok {
		w.Cold(p)
		return
	}
	w.r.p.hook("evict.Dropper.Drop", w.r, 0, 0, func() { d.Drop(p) })
}
