package evict

// Nodes live in a slab and are named by 32-bit slots, not pointers: 24 bytes a
// page, nothing for the garbage collector to scan, and no allocation once the
// slab has grown to what the budget needs.
//
// The slab grows by chunks, so growing never copies a page, and an unused
// policy costs nothing. When most of it has become empty (a smaller budget)
// the last nodes move into the holes and the chunks behind them are given
// back, a few steps with each node freed.

// slot names a node; none is no node, so that zeroed memory means "empty".
type slot uint32

const none slot = 0

// queueID says which list a node is on.
type queueID uint8

// node is one page the policy knows: resident or, on a ghost list, remembered.
type node struct {
	page       Page
	next, prev slot // on its queue: next is offered after this one
	chain      slot // next node in the same bucket of the index
	queue      queueID
	mark       bool // the owning policy's: see there
}

const (
	chunkBits = 9
	chunkLen  = 1 << chunkBits
)

// queue is a list of nodes in the order they are offered.
type queue struct {
	head, tail slot
	n          int
}

const (
	freeList  queueID = iota // holes in the slab
	numQueues         = 8
)

// table is the slab, its queues and the index over them.
type table struct {
	chunks []*[chunkLen]node
	high   slot // slots 1..high have been handed out at least once
	queues [numQueues]queue
	index  index
}

func (t *table) at(s slot) *node {
	return &t.chunks[s>>chunkBits][s&(chunkLen-1)]
}

func (t *table) queue(q queueID) *queue { return &t.queues[q] }

// insert makes a node for a page that is not in the table and puts it last on q.
func (t *table) insert(p Page, q queueID) slot {
	s := t.queues[freeList].head
	if s != none {
		t.unlink(s)
	} else {
		t.high++
		s = t.high
		if int(s>>chunkBits) >= len(t.chunks) {
			t.chunks = append(t.chunks, new([chunkLen]node))
		}
	}
	n := t.at(s)
	n.page, n.mark = p, false
	t.link(s, q)
	t.index.add(t, s)
	return s
}

// forget removes the node from its queue and the table.
func (t *table) forget(s slot) {
	t.index.remove(t, s)
	t.unlink(s)
	t.link(s, freeList)
	t.trim()
}

// move puts the node last on q.
func (t *table) move(s slot, q queueID) {
	t.unlink(s)
	t.link(s, q)
}

func (t *table) link(s slot, q queueID) {
	l, n := &t.queues[q], t.at(s)
	n.queue, n.next, n.prev = q, none, l.tail
	if l.tail != none {
		t.at(l.tail).next = s
	} else {
		l.head = s
	}
	l.tail = s
	l.n++
}

func (t *table) unlink(s slot) {
	n := t.at(s)
	l := &t.queues[n.queue]
	if n.prev != none {
		t.at(n.prev).next = n.next
	} else {
		l.head = n.next
	}
	if n.next != none {
		t.at(n.next).prev = n.prev
	} else {
		l.tail = n.prev
	}
	l.n--
}

// trim gives memory back when fewer than half of the slots are in use. Two
// steps for each node freed outrun any shrinking, so no call does it all.
func (t *table) trim() {
	for range 2 {
		holes := t.queues[freeList].n
		if holes <= int(t.high)/2+2*chunkLen {
			return
		}
		last := t.high
		if n := t.at(last); n.queue == freeList {
			t.unlink(last)
		} else {
			hole := t.queues[freeList].head
			t.unlink(hole)
			t.relocate(last, hole)
		}
		t.high--
		// One spare chunk, so that a page coming and going at a chunk's edge
		// does not allocate each time.
		if keep := int(t.high>>chunkBits) + 2; len(t.chunks) > keep {
			t.chunks[keep] = nil
			t.chunks = t.chunks[:keep]
		}
	}
}

// relocate moves a node to another slot.
func (t *table) relocate(from, to slot) {
	t.index.rename(t, from, to)
	src, dst := t.at(from), t.at(to)
	*dst = *src
	l := &t.queues[dst.queue]
	if dst.prev != none {
		t.at(dst.prev).next = to
	} else {
		l.head = to
	}
	if dst.next != none {
		t.at(dst.next).prev = to
	} else {
		l.tail = to
	}
}
