package main

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/prefetch"
)

// Every policy that a row names exists, and the replayed one knows the order
// that the row reads in.
func TestCompareAheadPolicies(t *testing.T) {
	for _, w := range compareWorkloads {
		o := compareDefaults()
		o.workload = compareWorkload(w)
		for _, r := range allRows(o) {
			if _, err := aheadPolicy(rowSpec{Row: r, Workload: o.workload, Size: 64 << 20, Seed: 1}); err != nil {
				t.Errorf("%s, %s: %v", w, r.Name, err)
			}
		}
	}
}

// Strides and backward scans leave nothing out in one round.
func TestAheadStreamsCoverTheFile(t *testing.T) {
	for _, kind := range []compareWorkload{loadBackward, loadStride3, loadStride17} {
		for _, blocks := range []int64{1, 2, 17, 100, 1000} {
			next := newReaders(rowSpec{Row: compareRow{Goroutines: 1}, Workload: kind, Size: blocks * blockSize}).stream(0)
			seen := map[int64]bool{}
			for range blocks {
				seen[next()] = true
			}
			if int64(len(seen)) != blocks {
				t.Errorf("%s: %d of %d blocks", kind, len(seen), blocks)
			}
		}
	}
}

// The policy of the tree plans exactly the leaves that the walk reads after an
// inner page, in that order.
func TestTreePolicyKnowsTheWalk(t *testing.T) {
	const blocks = 10_000
	policy, next := treePolicy(blocks), treeWalk(blocks, 3)
	page := make([]byte, blockSize)
	for range 50 {
		inner := next()
		stamp.Fill(page, inner*blockSize, 0)
		plan := prefetch.Plan{Pages: blocks, PageSize: blockSize, Room: 100}
		policy.Observe(prefetch.Event{Kind: prefetch.Arrived, Page: inner, Data: page, Demand: true}, &plan)
		var planned, read []int64
		for _, r := range plan.Runs {
			planned = append(planned, r.First)
		}
		for range treeFanout {
			read = append(read, next())
		}
		if !slices.Equal(planned, read) {
			t.Fatalf("after page %d: planned %v, read %v", inner, planned, read)
		}
		binary.LittleEndian.PutUint64(page[8:], 1) // another page, other leaves
		if l, _ := treeLinks(page, blocks); slices.Equal(l[:], read) {
			t.Fatal("the links do not depend on the page's bytes")
		}
	}
}
