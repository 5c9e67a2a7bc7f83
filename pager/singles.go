//go:build linux

package pager

// singles are the small buffers on the shelf: each of their pages has a place in a ring,
// the oldest first, and is found by its number. Buffers of several pages have a
// share for each, and count until the last of these has gone.
type singles struct {
	ring   []single // singlesMost, once there has been one
	oldest int      // place of the oldest
	used   int      // places from there on that are taken, or were
	at     map[pageOf]int
	bytes  int // of buffers
	trial  trial
}

type pageOf struct {
	r    *Region
	page uint64
}

// single is a page on the shelf, or was one; then it has no buffer any more.
type single struct {
	pageOf
	gen uint32
	off int
	buf *buffer
}

const (
	singlesMost  = 4096
	singlesBytes = 12 << 20 // what a replay has between the device and the program, and some
)

// add keeps the buffer of l, and adds those it has no more room for to out. The shelf's
// mu is held.
func (s *singles) add(l *load, most int, out []*buffer) []*buffer {
	size := len(l.buf.mem)
	if size > most || s.trial.rests(len(l.gens)) {
		return out
	}
	if s.ring == nil {
		s.ring, s.at = make([]single, singlesMost), map[pageOf]int{}
	}
	for i, gen := range l.gens {
		page := pageOf{l.r, l.first + uint64(i)}
		if old, ok := s.at[page]; ok { // it has been read again since
			out = append(out, s.pop(old))
		}
		for s.used == singlesMost || l.buf.shelf == 0 && s.bytes+size > most {
			if s.ring[s.oldest].buf != nil {
				s.trial.wasted++
				out = append(out, s.pop(s.oldest))
			}
			s.oldest = (s.oldest + 1) % singlesMost
			s.used--
		}
		l.buf.lent.Add(1)
		at := (s.oldest + s.used) % singlesMost
		s.ring[at] = single{page, gen, i << l.r.shift, l.buf}
		s.at[page] = at
		s.used++
		if l.buf.shelf == 0 {
			s.bytes += size
		}
		l.buf.shelf++
	}
	if s.trial.judge() {
		out = append(out, s.drop(nil)...)
	}
	return out
}

// pop takes out the page at place i of the ring, with its share of the buffer.
func (s *singles) pop(i int) *buffer {
	e := &s.ring[i]
	buf := e.buf
	if buf.shelf--; buf.shelf == 0 {
		s.bytes -= len(buf.mem)
	}
	delete(s.at, e.pageOf)
	*e = single{}
	return buf
}

// take is shelf.take.
func (s *singles) take(r *Region, page uint64, gen uint32) (buf *buffer, off int) {
	i, ok := s.at[pageOf{r, page}]
	if !ok || s.ring[i].gen != gen {
		return nil, 0
	}
	s.trial.copied++
	off = s.ring[i].off
	return s.pop(i), off
}

// drop is shelf.drop, but that the caller puts back what it returns.
func (s *singles) drop(r *Region) (out []*buffer) {
	if len(s.at) == 0 {
		return nil
	}
	for i := range s.ring {
		if e := &s.ring[i]; e.buf != nil && (r == nil || e.r == r) {
			out = append(out, s.pop(i))
		}
	}
	return out
}
