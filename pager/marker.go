//go:build linux

package pager

import (
	"sync"

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
}

const (
	maxMarkers   = 256
	markerShare  = 64       // at most 1/markerShare of the budget
	maxMarkBytes = 64 << 10 // pages larger than that are left out as ever
)

// markerLimit is how many markers there may be of pages like r's; 0: a marker
// is left out of the read.
func (p *Pager) markerLimit(r *Region) int {
	if 1<<r.shift > maxMarkBytes {
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
	m := marker{r, page, gen, bufs.get(len(mem))}
	copy(m.buf.mem, mem)
	var out marker
	k := &p.markers
	k.mu.Lock()
	if len(k.list) > 0 && len(k.list) >= p.markerLimit(r) {
		out = k.pop(0)
	}
	k.list = append(k.list, m)
	k.mu.Unlock()
	if out.r != nil {
		p.giveUpMarker(out)
	}
	// Who has joined since it was held back did not find it in the list; who
	// joins from now on does.
	if pw, w := r.d.look(page); pw == nil || !isMarker(w) || uint32(w>>32) != gen {
		p.mapMarker(r, page, gen)
	}
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
	k := &p.markers
	k.mu.Lock()
	for i := range k.list {
		if m := &k.list[i]; m.r == r && m.page == page && m.gen == gen {
			m := k.pop(i)
			k.mu.Unlock()
			p.install(m)
			return true
		}
	}
	k.mu.Unlock()
	return false
}

// install maps a marker that was taken out, if it is still ours.
func (p *Pager) install(m marker) {
	l := loadPool.Get().(*load)
	l.r, l.first, l.kind = m.r, m.page, ahead
	l.gens = append(l.gens, m.gen)
	l.op.Buf = m.buf.mem[:1<<m.r.shift]
	p.finishGroup(l, 0, 1, false, nil)
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
		p.install(m)
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

// forgetMarker drops the bytes of a marker that the fault server has read itself.
func (p *Pager) forgetMarker(r *Region, page uint64) {
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

// touchedMarker tells of a marker that has been mapped because it is needed.
func (r *Region) touchedMarker(page uint64) {
	if pw, w := r.d.look(page); pw != nil && present(w) && w&flagPrefetched != 0 {
		r.firstTouch(pw, w, page)
	}
}
