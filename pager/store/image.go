package store

import "slices"

// Sector is the unit in which Image lets a change survive: a device writes a
// sector of 512 bytes whole or not at all, and promises no more.
const Sector = 512

// Survives decides, of a change that a crash may or may not have undone,
// whether it is in the image: for a write or discard, sector by sector (number
// in the store: offset / 512); for a truncation once, with sector -1. The same
// arguments must give the same answer.
type Survives func(x Record, sector int64) bool

// Everything lets all survive that was begun: the crash of a process, not of
// the machine.
func Everything(Record, int64) bool { return true }

// AtRandom loses some changes, keeps some and tears the others, as the seed
// says. Images of several stores of one Recorder go together by seed.
func AtRandom(seed uint64) Survives {
	return func(x Record, sector int64) bool {
		switch fate := draw(seed, uint64(x.Seq)); {
		case sector < 0:
			return fate < 0.5
		case fate < 1./3:
			return true
		case fate < 2./3:
			return false
		}
		return draw(seed, uint64(x.Seq), uint64(sector)) < 0.5
	}
}

// Lost reports whether a power loss at that tick may undo the change: it does
// not if the change had ended well before a flush of the same store began that
// had itself ended well by then. Nobody may rely on a change for which Lost is
// true; a flush is never lost.
func (rec *Recorder) Lost(x Record, tick int) bool {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return x.lost(rec.flushed(x.Store, tick))
}

// flushed is the last tick of which a flush that ended by tick makes durable
// what had ended until then. rec.mu is held.
func (rec *Recorder) flushed(s *Recording, tick int) int {
	last := 0
	for _, x := range rec.log {
		if x.Begun > tick {
			break
		}
		if x.Store == s && x.Op == OnFlush && x.Err == nil && x.Ended > 0 && x.Ended <= tick {
			last = max(last, x.Begun)
		}
	}
	return last
}

func (x *Record) lost(flushed int) bool {
	return x.Op != OnFlush && (x.Ended == 0 || x.Err != nil || x.Ended > flushed)
}

// Image is what the store holds after a loss of power at that tick (0: as it
// was wrapped; Recorder.Now: now): all that was durable, and of what else had
// begun whatever survives (nil: nothing). The image is the caller's; NewSlice
// or NewMemoryOf makes a store of it.
//
// Changes apply in the order in which they began. Two of the same bytes under
// way at once have no order, and no owner of a Store may start them.
func (r *Recording) Image(tick int, survives Survives) []byte {
	r.rec.mu.Lock()
	flushed := r.rec.flushed(r, tick)
	var log []Record
	for _, x := range r.rec.log {
		if x.Begun > tick {
			break
		}
		if x.Store == r && x.Op != OnFlush {
			log = append(log, *x)
		}
	}
	r.rec.mu.Unlock()
	img := slices.Clone(r.base)
	for _, x := range log {
		if !x.lost(flushed) {
			img = x.apply(img, nil)
		} else if survives != nil {
			img = x.apply(img, survives)
		}
	}
	return img
}

// apply makes the change to img, all of it or the sectors that survive.
func (x Record) apply(img []byte, survives Survives) []byte {
	if x.Op == OnTruncate {
		switch {
		case x.Err != nil && x.Ended > 0 || x.Len < 0 || survives != nil && !survives(x, -1):
		case x.Len <= int64(len(img)):
			img = img[:x.Len]
		default:
			img = append(img, make([]byte, x.Len-int64(len(img)))...)
		}
		return img
	}
	if x.Off < 0 || x.Len < 0 || x.Off >= int64(len(img)) {
		return img
	}
	end := x.Off + min(x.Len, int64(len(img))-x.Off)
	for off := x.Off; off < end; {
		next := min(end, (off/Sector+1)*Sector)
		if survives == nil || survives(x, off/Sector) {
			if x.Op == OnWrite {
				copy(img[off:next], x.Data[off-x.Off:])
			} else {
				clear(img[off:next])
			}
		}
		off = next
	}
	return img
}
