package evict

// NewS3FIFO returns the default policy: S3-FIFO ("FIFO queues are all you need
// for cache eviction", Yang et al., SOSP 2023), arranged so that it works when
// misses are all there is to see.
//
//	          miss                      prefetch
//	           │ remembered?               │
//	 no ┌──────┴──────┐ yes                ▼
//	    ▼             ▼                 ┌───────┐
//	┌───────┐touched┌──────┐            │ ahead │── used ──▶ as if missed
//	│ small │──────▶│ main │⟲ touched   └───────┘
//	└───────┘       └──────┘                │
//	    │               │                   ▼
//	    ▼               ▼                  out
//	out, but           out
//	remembered
//
// A page that is missed again soon after it left has proven itself and goes to
// main; what is used once passes through small, a sixteenth of the budget, and
// never disturbs main. Touches, where there are any, save a page the way
// through the store. Prefetched pages have a queue of their own: whatever is
// read ahead and not known to be used displaces at most an eighth of the
// budget.
//
// What leaves main is not remembered, so that a loop over more than the budget
// keeps a part of it resident instead of replacing all of it each time round.
//
// Every operation is O(1) and does not allocate once the policy has seen its
// budget full. It keeps 28 to 32 bytes for each page that is resident or
// remembered; the latter are at most three quarters of the budget.
func NewS3FIFO() Policy { return &s3fifo{} }

const (
	s3Cold  queueID = iota + 1 // the program expects no more use: first out
	s3Ahead                    // prefetched, no use known
	s3Small                    // missed once
	s3Main                     // missed again, or touched
	s3Ghost                    // not resident: left recently
)

type s3fifo struct {
	t        table
	capacity int
}

// Shares of the capacity, chosen by the simulations in sim_test.go with misses
// only. A smaller small queue is better for every workload there; much smaller
// and the pages of a thousand goroutines that all miss at once would push each
// other out. A longer ghost list promotes what is merely lukewarm; a shorter
// one loses the loops over somewhat more than the budget.
func (c *s3fifo) smallShare() int { return max(1, c.capacity/16) }
func (c *s3fifo) aheadShare() int { return c.capacity / 8 }
func (c *s3fifo) ghostShare() int { return max(ghostMin, c.capacity/4*3) }

// ghostMin lets a budget of a few pages still tell a loop from a scan.
const ghostMin = 8

func (c *s3fifo) Install(p Page, why Reason) {
	s := c.t.index.find(&c.t, p)
	if s == none {
		switch why {
		case Demand:
			c.t.insert(p, s3Small)
		case Prefetch:
			c.t.insert(p, s3Ahead)
		case Reprieve:
			c.t.insert(p, s3Main)
		}
		return
	}
	switch n := c.t.at(s); n.queue {
	case s3Ghost:
		if why == Prefetch {
			n.mark = true // its first use will be its second miss
			c.t.move(s, s3Ahead)
		} else {
			c.t.move(s, s3Main)
		}
	case s3Cold, s3Ahead:
		if why == Demand {
			c.promote(s)
		}
	}
}

// promote moves a page whose first use has become known to where a miss would
// have put it, and says where.
func (c *s3fifo) promote(s slot) queueID {
	n := c.t.at(s)
	to := s3Small
	if n.queue == s3Ahead && n.mark {
		to = s3Main
	}
	n.mark = false
	c.t.move(s, to)
	return to
}

func (c *s3fifo) Remove(p Page) {
	if s := c.t.index.find(&c.t, p); s != none {
		c.t.forget(s)
	}
}

func (c *s3fifo) Cold(p Page) {
	s := c.t.index.find(&c.t, p)
	if s == none {
		return
	}
	switch n := c.t.at(s); n.queue {
	case s3Cold:
	case s3Ghost:
		c.t.forget(s)
	default:
		n.mark = false
		c.t.move(s, s3Cold)
	}
}

// Drop implements Dropper: a scan that passes over the hot set leaves it where
// it is.
func (c *s3fifo) Drop(p Page) {
	if s := c.t.index.find(&c.t, p); s != none {
		if q := c.t.at(s).queue; q == s3Ahead || q == s3Small {
			c.t.at(s).mark = false
			c.t.move(s, s3Cold)
		}
	}
}

func (c *s3fifo) Evict(n int, take func(Page) Verdict) int {
	gone := 0
	// Two rounds of each queue, counted apart: a queue full of busy pages must
	// not keep the others from being offered. Each page can be granted at most
	// two more offers by its touches, so this ends whatever take answers.
	var left [numQueues]int
	for q := s3Cold; q <= s3Main; q++ {
		left[q] = 2 * c.t.queue(q).n
	}
	for gone < n {
		q := c.next(&left)
		if q == freeList {
			break
		}
		left[q]--
		s := c.t.queue(q).head
		switch take(c.t.at(s).page) {
		case Gone:
			gone++
			c.leave(s, q)
		case Unknown:
			c.t.forget(s)
		case Touched:
			if to := c.touched(s, q); to != q {
				left[to]++
			}
		case Busy:
			c.t.move(s, q)
		case Stop:
			return gone
		}
	}
	return gone
}

// next chooses the queue to offer from, or freeList when all have been through.
func (c *s3fifo) next(left *[numQueues]int) queueID {
	ready := func(q queueID) bool { return left[q] > 0 && c.t.queue(q).n > 0 }
	switch {
	case ready(s3Cold):
		return s3Cold
	case ready(s3Ahead) && c.t.queue(s3Ahead).n > c.aheadShare():
		return s3Ahead
	case ready(s3Small) && c.t.queue(s3Small).n >= c.smallShare():
		return s3Small
	}
	for _, q := range [...]queueID{s3Main, s3Small, s3Ahead} {
		if ready(q) {
			return q
		}
	}
	return freeList
}

// leave takes a page out.
func (c *s3fifo) leave(s slot, q queueID) {
	if q != s3Small {
		c.t.forget(s)
		return
	}
	c.t.move(s, s3Ghost)
	c.trimGhosts()
}

// touched says where a page goes that was used since it was last offered.
func (c *s3fifo) touched(s slot, q queueID) queueID {
	switch n := c.t.at(s); {
	case q == s3Cold && !n.mark:
		// The touch may be older than the advice: a scan touches its pages
		// before it drops them.
		n.mark = true
		c.t.move(s, s3Cold)
		return s3Cold
	case q == s3Cold || q == s3Ahead:
		return c.promote(s)
	}
	c.t.move(s, s3Main)
	return s3Main
}

func (c *s3fifo) trimGhosts() {
	for c.t.queue(s3Ghost).n > c.ghostShare() {
		c.t.forget(c.t.queue(s3Ghost).head)
	}
}

func (c *s3fifo) SetCapacity(pages int) {
	c.capacity = pages
	c.trimGhosts()
}

func (c *s3fifo) Len() int {
	return c.t.queue(s3Cold).n + c.t.queue(s3Ahead).n + c.t.queue(s3Small).n + c.t.queue(s3Main).n
}
