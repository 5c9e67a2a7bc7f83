package evict

import "math/bits"

// index finds the node of a page: a hash table with chains through the nodes,
// grown and shrunk one bucket at a time (linear hashing, Litwin 1980), because
// the pager waits while a policy works: doubling a table for 16 million pages
// at once would hold up every fault for a second.
//
// Buckets 0..size-1 exist. With 2^level ≤ size < 2^(level+1), the first
// size-2^level of them have been split and use one more bit of the hash.
type index struct {
	buckets []*[bucketLen]slot
	size    uint32
	n       uint32 // nodes
}

const (
	bucketBits = 8
	bucketLen  = 1 << bucketBits
)

// 1<<nearBits is how many neighbouring pages have neighbouring buckets, which share a
// cache line: pages come and go in runs, and to look for one that is not in the
// cache costs more than all the rest that a policy does about it.
const nearBits = 4

// hash mixes page numbers, which are mostly consecutive and may carry a region
// in their high bits: groups of neighbours by the finalizer of MurmurHash3 (each
// input bit reaches all output bits), the pages of a group by what the mix says
// for all of them, so that pages with a step of such a group do not meet in one
// bucket of each.
func hash(p Page) uint32 {
	h := uint64(p) >> nearBits
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return uint32(h)<<nearBits | (uint32(p)^uint32(h>>32))&(1<<nearBits-1)
}

// bucket returns the head of the chain that p belongs to.
func (x *index) bucket(p Page) *slot {
	return x.head(place(hash(p), x.size))
}

func (x *index) head(b uint32) *slot {
	return &x.buckets[b>>bucketBits][b&(bucketLen-1)]
}

// place reduces a hash to a bucket number below size > 0.
func place(h, size uint32) uint32 {
	mask := uint32(1)<<log2(size) - 1 // of the buckets not yet split
	b := h & (mask<<1 | 1)
	if b >= size {
		b = h & mask
	}
	return b
}

func log2(n uint32) int { return bits.Len32(n) - 1 }

func (x *index) find(t *table, p Page) slot {
	if x.size == 0 {
		return none
	}
	s := *x.bucket(p)
	for s != none {
		n := t.at(s)
		if n.page == p {
			return s
		}
		s = n.chain
	}
	return none
}

func (x *index) add(t *table, s slot) {
	x.n++
	if x.n > x.size {
		x.split(t)
	}
	n := t.at(s)
	head := x.bucket(n.page)
	n.chain, *head = *head, s
}

func (x *index) remove(t *table, s slot) {
	*x.ref(t, s) = t.at(s).chain
	x.n--
	// Merging well below the point where splitting begins keeps a page that
	// comes and goes from moving a bucket each time; two buckets for one node
	// keep up with that factor of two.
	for range 2 {
		if x.size > bucketLen && x.n < x.size/2 {
			x.merge(t)
		}
	}
}

// rename makes the chain that holds from hold to in its place.
func (x *index) rename(t *table, from, to slot) {
	*x.ref(t, from) = to
}

// ref returns the link that points at s.
func (x *index) ref(t *table, s slot) *slot {
	r := x.bucket(t.at(s).page)
	for *r != s {
		r = &t.at(*r).chain
	}
	return r
}

// split adds one bucket and moves there what its new number attracts.
func (x *index) split(t *table) {
	b := x.size
	if int(b>>bucketBits) == len(x.buckets) {
		x.buckets = append(x.buckets, new([bucketLen]slot))
	}
	x.size++
	if b == 0 {
		return
	}
	from := x.head(b - 1<<log2(b))
	to := x.head(b)
	for r := from; *r != none; {
		s := *r
		n := t.at(s)
		if place(hash(n.page), x.size) == b {
			*r = n.chain
			n.chain, *to = *to, s
		} else {
			r = &n.chain
		}
	}
}

// merge undoes the last split.
func (x *index) merge(t *table) {
	x.size--
	b := x.size
	from := x.head(b)
	r := x.head(b - 1<<log2(b))
	for *r != none {
		r = &t.at(*r).chain
	}
	*r, *from = *from, none
	if keep := int(b>>bucketBits) + 2; len(x.buckets) > keep {
		x.buckets[keep] = nil
		x.buckets = x.buckets[:keep]
	}
}
