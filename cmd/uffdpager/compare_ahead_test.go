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
// inner page, in that order, and the inner page that it comes to then.
func TestTreePolicyKnowsTheWalk(t *testing.T) {
	const blocks = 10_000
	policy, next := treePolicy(blocks), treeWalk(blocks, 3)
	page := make([]byte, blockSize)
	inner := next()
	for range 50 {
		stamp.Fill(page, inner*blockSize, 0)
		plan := prefetch.Plan{Pages: blocks, PageSize: blockSize, Room: 100}
		policy.Observe(prefetch.Event{Kind: prefetch.Touch, Page: inner}, &plan)
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
		if inner = next(); !slices.Equal(plan.Marks, []int64{inner}) {
			t.Fatalf("marked %v, the walk goes on at %d", plan.Marks, inner)
		}
		binary.LittleEndian.PutUint64(page[8:], 1) // another page, other leaves
		if l := treeLeaves(page, blocks); slices.Equal(l[:], read) {
			t.Fatal("the links do not depend on the page's bytes")
		}
	}
}

// A walk passes all inner pages before it comes to one again: else it would soon
// read what is in memory only.
func TestTreeWalkIsLong(t *testing.T) {
	for _, blocks := range []int64{1, 20, 10_000, 1 << 20} {
		next, seen := treeWalk(blocks, 1), map[int64]bool{}
		for range treeInner(blocks) {
			seen[next()] = true
			for range treeFanout {
				next()
			}
		}
		if int64(len(seen)) != treeInner(blocks) || treeInner(blocks)*2*(treeFanout+1) < blocks {
			t.Errorf("%d blocks: a walk of %d inner pages, there are %d", blocks, len(seen), treeInner(blocks))
		}
	}
}
