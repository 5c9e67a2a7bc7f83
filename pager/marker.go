//go:build linux

package pager

import (
	"sync"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// Markers
//
// A policy leaves a page out of what it reads ahead so that the first access to
// it is news (prefetch.Plan.Marks). The page is read all the same, with its
// neighbours, and only not mapped: it stays Loading, with flagMark, and its
// bytes in a buffer. Whoever touches it joins its waiters as those of any page
// on its way, finds that it is a marker, and maps it: a copy instead of a read
// that stands behind all that was read ahead.
//
// A marker has a frame and cannot be evicted; so there are few of them, and the
// oldest are given up (the page is Missing again) when there are too many, when
// eviction finds nothing else, and when somebody waits for the region to have
// no pages on their way. The fault server takes them over like other Loading
// pages, and the generation tells.
//
// The bytes of a marker are copied from the buffer of its read, which is that of its
// neighbours as well. A page that is moved (move.go) has its buffer for itself: that
// one is kept, and becomes the page when it is touched.
type markers struct {
	mu   sync.Mutex
	list []marker // oldest first
}

// marker is one that has been read.
type marker struct {
	r    *Region
	page uint64
	gen  uint32
	buf  *buffer
	move bool // it becomes the page; else it is copied
}

const (
	maxMarkers   = 256
	markerShare  = 64       // at most 1/markerShare of the budget
	maxMarkBytes = 64 << 10 // pages larger than that are left out as ever, but for those that are moved: of these …
	movedMarkers = 8        // … there are at most so many,
	movedShare   = 16       // and 1/movedShare of the budget: what readers of a page or two ahead need
)

// markerLimit is how many markers there may be of pages like r's; 0: a marker
// is left out of the read.
func (p *Pager) markerLimit(r *Region) int {
	switch {
	case r.moves():
		return int(min(movedMarkers, p.budget.Load()/movedShare/r.fpp))
	case 1<<r.shift > maxMarkBytes:
		return 0
	}
	return int(min(maxMarkers, p.budget.Load()/markerShare/p.largestPage.Load()))
}

// isMarker: read ahead as a marker, and nobody waits for it yet.
//
//go:nosplit
//go:norace
func isMarker(w word) bool {
	return w&stateMask == stLoading && w&(flagMark|flagWaited|pinMask) == flagMark
}

// holdBack finds the markers among k pages of l from the i-th, which have just
// been read, and keeps them from being installed.
func (l *load) holdBack(i, k int, res []installResult) (some bool) {
	for j := range k {
		pw, w := l.r.d.look(l.first + uint64(i+j))
		if res[j].code == installNone && pw != nil && isMarker(w) && uint32(w>>32) == l.gens[i+j] {
			res[j].code = installMark
			some = true
		}
	}
	return some
}

// keepMarker keeps the bytes of a marker until it is touched. The caller holds
// the region.
func (p *Pager) keepMarker(r *Region, page uint64, gen uint32, mem []byte) {
	m := marker{r: r, page: page, gen: gen, buf: bufs.get(len(mem))}
	copy(m.buf.mem, mem)
	p.keep(m)
}

// keepBuffer is keepMarker for the only page of l, with the buffer it was read to,
// which is not l's any more if it is to be moved.
func (p *Pager) keepBuffer(l *load, move bool) {
	l.buf.lent.Add(1)
	l.kept = move
	p.keep(marker{l.r, l.first, l.gens[0], l.buf, move})
}

// keep puts m in the list, from where it may be gone when that is over.
func (p *Pager) keep(m marker) {
	var out marker
	k := &p.markers
	k.mu.Lock()
	if i, n := k.oldest(m.r.moves()); n > 0 && n >= p.markerLimit(m.r) {
		out = k.pop(i)
	}
	k.list = append(k.list, m)
	k.mu.Unlock()
	if out.r != nil {
		p.giveUpMarker(out)
	}
	// Who has joined since it was held back did not find it in the list; who
	// joins from now on does.
	if pw, w := m.r.d.look(m.page); pw == nil || !isMarker(w) || uint32(w>>32) != m.gen {
		p.mapMarker(m.r, m.page, m.gen)
	}
}

// oldest is the first of those that are moved, or of the others, and how many of them
// there are. k.mu is held.
func (k *markers) oldest(moves bool) (first, n int) {
	for i := len(k.list) - 1; i >= 0; i-- {
		if k.list[i].r.moves() == moves {
			first = i
			n++
		}
	}
	return first, n
}

// pop takes out the i-th marker and holds its region. k.mu is held.
func (k *markers) pop(i int) marker {
	m := k.list[i]
	m.r.active.Add(1) // it is there: Close empties the list before it lets go
	n := copy(k.list[i:], k.list[i+1:])
	k.list[i+n] = marker{}
	k.list = k.list[:i+n]
	return m
}

// mapMarker installs a marker somebody wants, and reports whether it was there.
func (p *Pager) mapMarker(r *Region, page uint64, gen uint32) bool {
	if p.mapUnmapped(r, page, gen) {
		return true
	}
	k := &p.markers
	k.mu.Lock()
	for i := range k.list {
		if m := &k.list[i]; m.r == r && m.page == page && m.gen == gen {
			m := k.pop(i)
			k.mu.Unlock()
			p.install(m, ahead)
			return true
		}
	}
	k.mu.Unlock()
	return false
}

// install maps a marker that was taken out, if it is still ours.
func (p *Pager) install(m marker, kind int) {
	l := loadPool.Get().(*load)
	l.r, l.first, l.kind = m.r, m.page, kind
	l.gens = append(l.gens, m.gen)
	l.op.Buf = m.buf.mem[:1<<m.r.shift]
	if m.move {
		l.buf = m.buf
	}
	if p.finishGroup(l, 0, 1, m.move, nil) {
		l.kind, l.begun = demand, time.Now() // it was counted as read ahead when it came
		p.launchAll(p.anew(l))
	}
	*l = load{gens: l.gens[:0]}
	loadPool.Put(l)
	bufs.put(m.buf)
	m.r.leave()
}

// giveUpMarker makes a marker that was taken out Missing again; if somebody
// wants it meanwhile he gets it. It returns the frames that became free.
func (p *Pager) giveUpMarker(m marker) (frames int64) {
	switch cancelMarker(m.r.d, m.page, m.gen) {
	case installDone:
		p.stats.aheadUnused.Add(1)
		m.r.ahead.unused.Add(1)
		frames = m.r.fpp
		p.unreserve(frames)
	case installNone:
		p.install(m, ahead)
		return 0
	}
	bufs.put(m.buf)
	m.r.leave()
	return frames
}

// cancelMarker takes a marker from Loading to Missing: installDone. installNone:
// somebody wants it. installLost: it is not ours any more.
//
//go:nosplit
//go:norace
//go:nocheckptr
func cancelMarker(d *desc, page uint64, gen uint32) int {
	for {
		pw, w := d.look(page)
		switch {
		case pw == nil || w&stateMask != stLoading || uint32(w>>32) != gen:
			return installLost
		case !isMarker(w):
			return installNone
		case bare.Cas64(pw, w, w&genMask):
			add64(&d.resident, -d.framesPerPage())
			d.drop(page)
			return installDone
		}
	}
}

// giveUpMarkers gives up the oldest markers, of r if it is not nil, until n
// frames are free, and returns how many are.
func (p *Pager) giveUpMarkers(r *Region, n int64) (frames int64) {
	k := &p.markers
	for frames < n {
		k.mu.Lock()
		i := 0
		for i < len(k.list) && r != nil && k.list[i].r != r {
			i++
		}
		if i == len(k.list) {
			k.mu.Unlock()
			return frames
		}
		m := k.pop(i)
		k.mu.Unlock()
		frames += p.giveUpMarker(m)
	}
	return frames
}

// sweepMarkers drops the bytes of markers whose frames P-less code has taken for
// something else: it tells nobody of them.
func (p *Pager) sweepMarkers() {
	k := &p.markers
	for {
		k.mu.Lock()
		i := 0
		for i < len(k.list) && k.list[i].there() {
			i++
		}
		if i == len(k.list) {
			k.mu.Unlock()
			return
		}
		m := k.pop(i)
		k.mu.Unlock()
		p.giveUpMarker(m)
	}
}

// there: the page is on its way as when it was held back.
func (m *marker) there() bool { return m.r.d.loading(m.page, m.gen) }

// forgetMarker drops the bytes of a marker that the fault server has read itself.
func (p *Pager) forgetMarker(r *Region, page uint64) {
	p.unmapped.sweep(r.d, page)
	k := &p.markers
	k.mu.Lock()
	for i := range k.list {
		if m := &k.list[i]; m.r == r && m.page == page {
			m := k.pop(i)
			k.mu.Unlock()
			p.giveUpMarker(m)
			return
		}
	}
	k.mu.Unlock()
}

// touchMarker maps a marker that somebody asked for without waiting for it.
func (r *Region) touchMarker(page uint64) {
	if pw, w := r.d.look(page); pw != nil && isMarker(w) && r.p.mapMarker(r, page, uint32(w>>32)) {
		r.touchedMarker(page)
	}
}

// touchedMarker tells of a marker that has been mapped because it is needed, or is
// being read again for that.
func (r *Region) touchedMarker(page uint64) {
	switch pw, w := r.d.look(page); {
	case pw == nil || w&flagPrefetched == 0:
	case present(w):
		r.firstTouch(pw, w, page)
	case w&stateMask == stLoading:
		r.lateTouch(page)
	}
}
