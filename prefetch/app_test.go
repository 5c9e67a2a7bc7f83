package prefetch

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// A walk over a tree whose pages lie anywhere: only the application knows what
// comes next, and it takes one function to say so.
func TestApplicationKnowsItsTree(t *testing.T) {
	const fanout, levels = 16, 4
	var nodes, firstOfLast int64
	for n, level := int64(1), 0; level < levels; level++ {
		firstOfLast = nodes
		nodes += n
		n *= fanout
	}
	where := rand.New(rand.NewPCG(2, 2)).Perm(int(nodes)) // node → page
	node := make([]int64, nodes)                          // page → node
	for n, p := range where {
		node[p] = int64(n)
	}
	child := func(n, i int64) int64 { return n*fanout + 1 + i }
	var walk []int64
	var visit func(n int64)
	visit = func(n int64) {
		walk = append(walk, int64(where[n]))
		for i := range int64(fanout) {
			if c := child(n, i); c < nodes {
				visit(c)
			}
		}
	}
	visit(0)

	page := make([]byte, 4096)
	content := func(p int64) []byte {
		k := 0
		for i := range int64(fanout) {
			if c := child(node[p], i); c < nodes {
				binary.LittleEndian.PutUint64(page[2+8*k:], uint64(where[c]))
				k++
			}
		}
		binary.LittleEndian.PutUint16(page, uint16(k))
		return page
	}
	children := DataFunc(func(e Event, plan *Plan) {
		// Inner children are not fetched: their misses tell where the walk is.
		if e.Kind != Arrived || !e.Demand || node[e.Page] < firstOfLast/fanout {
			return
		}
		for i := range int64(binary.LittleEndian.Uint16(e.Data)) {
			plan.Add(int64(binary.LittleEndian.Uint64(e.Data[2+8*i:])), 1)
		}
	})
	for _, budget := range []int{64, 1024} {
		without := newSimulator(None(), nodes, budget)
		without.run(walk)
		with := newSimulator(children, nodes, budget)
		with.data = content
		got := with.run(walk)
		t.Logf("budget %d of %d pages: %.1f times as fast, %d misses, %d late, %d of %d wasted", budget, nodes, without.now/with.now, got.misses, got.late, got.unused, got.issued)
		if without.now < 3*with.now {
			t.Errorf("budget %d: %.1f times as fast, want 3", budget, without.now/with.now)
		}
	}
}
