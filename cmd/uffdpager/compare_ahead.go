package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/prefetch"
)

// What compare does about reading ahead: workloads in which something can be
// known of what comes next, and rows that differ in who knows it.

// chunkSize is what those read at a time who are to show the device's bandwidth.
const chunkSize = 1 << 20

// ahead: the workload has rows of its own, see aheadRows.
func (w compareWorkload) ahead() bool {
	switch w {
	case loadInterleaved, loadBackward, loadStride3, loadStride17, loadReplay, loadTree, loadBulk:
		return true
	}
	return false
}

// progress is the metric in which a row is set in proportion to the device.
// Where pages come before they are missed, misses say nothing.
func (w compareWorkload) progress() string {
	if w.ahead() && w != loadBulk || w == loadScan {
		return mOps
	}
	return mMisses
}

// reference is the row that all ratios refer to.
func (w compareWorkload) reference() string {
	switch w {
	case loadScan, loadInterleaved, loadBackward:
		return referenceSeq
	}
	return referenceRow
}

// The policies that rows ask for.
const (
	aheadNone   = "none"
	aheadStride = "stride"
	aheadReplay = "replay"
	aheadTree   = "tree" // the application's own: see treePolicy
)

// with is the same row with a policy of that name.
func (r compareRow) with(policy string) compareRow {
	r.Name += "-" + policy
	r.Prefetch = policy
	return r
}

// scanRows is who reads from front to back, beside those of all workloads.
func scanRows(p int) []compareRow {
	mmap := func(advice string) compareRow {
		return compareRow{Name: "mmap-" + advice + "-1g", Group: groupMmap, Way: wayMmap, Procs: p, Goroutines: 1, Advice: advice}
	}
	large := func(way string) compareRow {
		return compareRow{Name: way + "-1g-2m", Group: groupPager, Way: way, Procs: p, Goroutines: 1, PageSize: pager.MaxPageSize, Direct: true}
	}
	return []compareRow{
		{Name: referenceSeq, Group: groupDevice, Way: wayDevice, Procs: p, Goroutines: 8, Chunk: chunkSize, Direct: true},
		{Name: "fio-seq", Group: groupDevice, Way: wayFio, Procs: 1, Goroutines: 8, Chunk: chunkSize, Direct: true},
		{Name: "readat-1g", Group: groupPager, Way: wayReadAt, Procs: p, Goroutines: 1, Direct: true},
		large(wayBytes), large(wayAcquire),
		mmap("sequential"), mmap("normal"),
		{Name: "pread-direct-1m", Group: groupPread, Way: wayPread, Procs: p, Goroutines: 1, Chunk: chunkSize, Direct: true},
	}
}

// aheadRows is the rows of a workload that is about reading ahead.
func aheadRows(o compareOptions) []compareRow {
	p, g := o.procs, o.goroutines
	ours := func(way string, g int) compareRow {
		r := compareRow{Name: fmt.Sprintf("%s-%dg", way, g), Group: groupPager, Way: way, Procs: p, Goroutines: g, Direct: true}
		return r
	}
	mmap := func(advice string, g int) compareRow {
		return compareRow{Name: fmt.Sprintf("mmap-%s-%dg", advice, g), Group: groupMmap, Way: wayMmap, Procs: p, Goroutines: g, Advice: advice}
	}
	device := func(depth int) compareRow {
		return compareRow{Name: fmt.Sprintf("device-qd%d", depth), Group: groupDevice, Way: wayDevice, Procs: p, Goroutines: depth, Direct: true}
	}
	bulk := func(r compareRow) compareRow {
		r.Name, r.Bulk = r.Name+"-bulk", true
		return r
	}
	seq := scanRows(p)[:2] // the device, by our engine and by fio
	switch o.workload {
	case loadInterleaved:
		return append(seq, ours(wayBytes, g), ours(wayAcquire, g), ours(wayReadAt, g), mmap("normal", g), mmap("sequential", g))
	case loadBackward:
		return append(seq, ours(wayBytes, 1), ours(wayBytes, 1).with(aheadNone), ours(wayAcquire, 1), ours(wayAcquire, 1).with(aheadNone), mmap("normal", 1))
	case loadStride3, loadStride17:
		return []compareRow{device(64), ours(wayBytes, 1).with(aheadStride), ours(wayBytes, 1).with(aheadNone),
			ours(wayAcquire, 1).with(aheadStride), ours(wayAcquire, 1).with(aheadNone), mmap("normal", 1), mmap("random", 1)}
	case loadReplay:
		return []compareRow{device(64), ours(wayBytes, 1).with(aheadReplay), ours(wayBytes, 1).with(aheadNone),
			ours(wayAcquire, 1).with(aheadReplay), ours(wayAcquire, 1).with(aheadNone),
			ours(wayReadAt, 1).with(aheadReplay), ours(wayReadAt, 1).with(aheadNone),
			ours(wayBytes, g).with(aheadNone), ours(wayAcquire, g).with(aheadNone), ours(wayReadAt, g).with(aheadNone)}
	case loadTree:
		return []compareRow{device(64), device(16), ours(wayBytes, 16).with(aheadTree), ours(wayBytes, 16).with(aheadNone),
			ours(wayAcquire, 16).with(aheadTree), ours(wayAcquire, 16).with(aheadNone),
			ours(wayAcquire, 1).with(aheadTree), ours(wayAcquire, 1).with(aheadNone), mmap("random", 16)}
	}
	return []compareRow{device(64), ours(wayAcquire, 1), bulk(ours(wayAcquire, 1)), ours(wayAcquire, 16), bulk(ours(wayAcquire, 16)),
		ours(wayBytes, 1), bulk(ours(wayBytes, 1))}
}

// prefill is what memory that keeps so many bytes is filled with before the row
// is measured: not with what the workload is about to read, or its first seconds
// would be hits, at the speed of memory.
func (s rowSpec) prefill(keeps int64) []pager.Range {
	size := s.Size / blockSize * blockSize
	keeps = min(keeps, size)
	switch s.Workload {
	case loadScan:
		return []pager.Range{{Off: size - keeps, Len: keeps}}
	case loadInterleaved:
		// The end of each goroutine's share.
		share := size / int64(s.Row.Goroutines) / blockSize * blockSize
		n := min(keeps/int64(s.Row.Goroutines), share) / blockSize * blockSize
		var parts []pager.Range
		for i := range int64(s.Row.Goroutines) {
			parts = append(parts, pager.Range{Off: (i+1)*share - n, Len: n})
		}
		return parts
	case loadTree:
		// Leaves: to read the inner pages is to have all leaves fetched.
		from := treeInner(size/blockSize) * blockSize
		return []pager.Range{{Off: from, Len: min(keeps, size-from)}}
	}
	return []pager.Range{{Len: keeps}}
}

// aheadPolicy makes the policy of a row of the pager; nil is the default.
func aheadPolicy(s rowSpec) (prefetch.Policy, error) {
	switch s.Row.Prefetch {
	case "":
		return nil, nil
	case aheadNone:
		return prefetch.None(), nil
	case aheadStride:
		return prefetch.Stride(prefetch.StrideOptions{}), nil
	case aheadReplay:
		return replayPolicy(s)
	case aheadTree:
		return treePolicy(s.Size / blockSize), nil
	}
	return nil, fmt.Errorf("unknown policy %q", s.Row.Prefetch)
}

// replayPolicy replays the order in which the row will read. The trace is what
// Record would have written in a run of one goroutine.
func replayPolicy(s rowSpec) (prefetch.Policy, error) {
	var trace bytes.Buffer
	t := prefetch.Trace{PageSize: blockSize, Pages: randomOrder(s.Size/blockSize, s.Seed)}
	if _, err := t.WriteTo(&trace); err != nil {
		return nil, err
	}
	return prefetch.Replay(&trace, prefetch.ReplayOptions{PageSize: blockSize})
}

// aheadStream is the blocks that goroutine i reads.
func (r *readers) aheadStream(i int) func() int64 {
	at, n := int64(-1), r.blocks
	switch r.kind {
	case loadBackward:
		return func() int64 {
			at++
			return n - 1 - at%n
		}
	case loadStride3, loadStride17:
		step := int64(3)
		if r.kind == loadStride17 {
			step = 17
		}
		at -= step - 1
		return func() int64 {
			if at += step; at >= n {
				at = (at%step + 1) % min(step, n) // the next column
			}
			return at
		}
	case loadReplay:
		// Everybody together goes through one order.
		order := r.order()
		return func() int64 { return order[(r.cursor.Add(1)-1)%int64(len(order))] }
	case loadTree:
		return treeWalk(n, uint64(i))
	}
	rng := rand.New(rand.NewPCG(r.seed, uint64(i)))
	return func() int64 { return n/2 + rng.Int64N(n-n/2) } // the other half is needed in bulk
}

// replayPages is the length of a recorded order: more than a turn gets through,
// and not so much that the policy needs a memory of its own.
const replayPages = 200_000

// order is a random order of different blocks, the same for everybody.
func (r *readers) order() []int64 {
	r.once.Do(func() { r.ordered = randomOrder(r.blocks, r.seed) })
	return r.ordered
}

func randomOrder(blocks int64, seed uint64) []int64 {
	rng := rand.New(rand.NewPCG(seed, 0))
	seen := make([]uint64, blocks/64+1)
	order := make([]int64, 0, min(blocks, replayPages))
	for len(order) < cap(order) {
		if b := rng.Int64N(blocks); seen[b/64]>>(b%64)&1 == 0 {
			seen[b/64] |= 1 << (b % 64)
			order = append(order, b)
		}
	}
	return order
}

// The tree: an inner page names 16 leaves, in its bytes, which lie anywhere in the
// rest of the file. The inner pages follow each other in a circle of all of them,
// so that a walk comes back to what it has read after most of the file, and not
// after the few pages that are the way of a random function into a circle.
const treeFanout = 16

// treeInner is how many inner pages there are: a power of two.
func treeInner(blocks int64) int64 {
	return 1 << (bits.Len64(uint64(max(blocks/(treeFanout+1), 1))) - 1)
}

// treeNext is the inner page that follows node: a linear congruential generator of
// full period (Hull and Dobell 1962).
func treeNext(node, blocks int64) int64 {
	return (node*0x5851f42d4c957f2d + 1) & (treeInner(blocks) - 1)
}

// treeLeaves gives the leaves that an inner page names.
func treeLeaves(page []byte, blocks int64) (leaves [treeFanout]int64) {
	inner := treeInner(blocks)
	w := binary.LittleEndian.Uint64(page[8:])
	for i := range leaves {
		leaves[i] = inner + int64(stamp.Mix(w+uint64(i+1))%uint64(max(blocks-inner, 1)))
		leaves[i] = min(leaves[i], blocks-1)
	}
	return leaves
}

// treeWalk goes from inner page to inner page and over the leaves of each. What
// a page holds is computed here instead of looked at; the walk still waits for
// every page before it asks for the next.
func treeWalk(blocks int64, seed uint64) func() int64 {
	node := int64(stamp.Mix(seed+1) % uint64(treeInner(blocks)))
	var leaves [treeFanout]int64
	at := -1
	return func() int64 {
		if at == -1 || at == treeFanout {
			at = 0
			var head [16]byte
			stamp.Fill(head[:], node*blockSize, 0)
			b := node
			leaves, node = treeLeaves(head[:], blocks), treeNext(node, blocks)
			return b
		}
		at++
		return leaves[at-1]
	}
}

// treePolicy is what an application with such a tree writes. When an inner page
// arrives, the pages that it names are fetched; when somebody comes to it, the one
// that follows is, which is a marker, so that coming to it is news again.
func treePolicy(blocks int64) prefetch.Policy {
	inner := treeInner(blocks)
	return prefetch.DataFunc(func(e prefetch.Event, plan *prefetch.Plan) {
		if e.Page >= inner {
			return
		}
		if e.Kind == prefetch.Arrived {
			for _, page := range treeLeaves(e.Data, blocks) {
				plan.Add(page, 1)
			}
		}
		if e.Kind == prefetch.Miss || e.Kind == prefetch.Touch {
			plan.Mark(treeNext(e.Page, blocks))
		}
	})
}
