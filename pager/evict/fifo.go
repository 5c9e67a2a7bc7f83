package evict

// NewFIFO returns a policy that evicts pages in the order they came. Touches
// do not matter to it: a candidate that was [Touched] is offered again at
// once. It is exact and predictable, which is what tests of everything else
// want; for work that comes back to its pages use [NewS3FIFO].
func NewFIFO() Policy { return &fifo{} }

// NewClock returns the second-chance policy: a FIFO in which a page found
// [Touched] goes round once more. Where hits leave no trace (raw access) it is
// a FIFO.
func NewClock() Policy { return &fifo{secondChance: true} }

const (
	fifoCold  queueID = iota + 1 // Cold pages: first out
	fifoQueue                    // the rest, oldest first
)

type fifo struct {
	t            table
	secondChance bool
}

func (f *fifo) Install(p Page, why Reason) {
	s := f.t.index.find(&f.t, p)
	switch {
	case s == none:
		f.t.insert(p, fifoQueue)
	case why == Demand && f.t.at(s).queue == fifoCold:
		f.t.move(s, fifoQueue)
	}
}

func (f *fifo) Remove(p Page) {
	if s := f.t.index.find(&f.t, p); s != none {
		f.t.forget(s)
	}
}

func (f *fifo) Cold(p Page) {
	if s := f.t.index.find(&f.t, p); s != none && f.t.at(s).queue != fifoCold {
		f.t.move(s, fifoCold)
	}
}

func (f *fifo) Evict(n int, take func(Page) Verdict) int {
	gone := 0
	for _, q := range [...]queueID{fifoCold, fifoQueue} {
		for left := 2 * f.t.queue(q).n; left > 0 && gone < n; left-- {
			s := f.t.queue(q).head
			if s == none {
				break
			}
			p := f.t.at(s).page
			v := take(p)
			if v == Touched && !(f.secondChance && q == fifoQueue) {
				// The question cleared the page's touch: ask again.
				v = take(p)
			}
			switch v {
			case Gone:
				f.t.forget(s)
				gone++
			case Unknown:
				f.t.forget(s)
			case Stop:
				return gone
			default:
				f.t.move(s, q)
			}
		}
	}
	return gone
}

func (f *fifo) SetCapacity(int) {}

func (f *fifo) Len() int { return f.t.queue(fifoCold).n + f.t.queue(fifoQueue).n }
