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

// What memory is filled with is not what a row reads first.
func TestPrefillIsNotReadSoon(t *testing.T) {
	const blocks, keeps = 1 << 16, 1 << 12
	for _, kind := range []compareWorkload{loadScan, loadInterleaved, loadBackward, loadTree} {
		for _, goroutines := range []int{1, 16, 64} {
			s := rowSpec{Row: compareRow{Goroutines: goroutines}, Workload: kind, Size: blocks * blockSize, Seed: 1}
			there, n := map[int64]bool{}, int64(0)
			for _, part := range s.prefill(keeps * blockSize) {
				if part.Off < 0 || part.Off+part.Len > s.Size {
					t.Fatalf("%s: %v of %d bytes", kind, part, s.Size)
				}
				for off := part.Off; off < part.Off+part.Len; off += blockSize {
					there[off/blockSize] = true
				}
				n += part.Len
			}
			if int64(len(there)) != keeps || n != keeps*blockSize {
				t.Errorf("%s, %d goroutines: %d blocks, %d bytes are read, want %d", kind, goroutines, len(there), n, keeps)
			}
			r, hits := newReaders(s), 0
			for i := range goroutines {
				next := r.stream(i)
				for range blocks / 2 / goroutines {
					if there[next()] {
						hits++
					}
				}
			}
			if kind == loadTree {
				hits -= blocks / 2 * keeps / blocks * 5 / 4 // leaves lie anywhere
			}
			if hits > 0 {
				t.Errorf("%s, %d goroutines: %d of the first reads are there", kind, goroutines, hits)
			}
		}
	}
}
