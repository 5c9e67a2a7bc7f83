package pager

import (
	"context"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// The bytes that a policy is shown are never the region's memory: those may be evicted
// or changed under it, and a look at them may be a fault with the policy's lock held. They
// are what the page holds all the same.
func TestPolicyIsNotShownTheRegionsMemory(t *testing.T) {
	const pages = 64
	content := make([]byte, pages*FrameSize)
	for i := range content {
		content[i] = byte(i / FrameSize)
	}
	for _, c := range []struct {
		name string
		o    RegionOptions
		read func(t *testing.T, r *Region)
	}{
		{"ReadAt", RegionOptions{ReadOnly: true}, func(t *testing.T, r *Region) {
			for page := range int64(pages) {
				if _, err := r.ReadAt(make([]byte, 1), page*FrameSize); err != nil {
					t.Error(err)
				}
			}
		}},
		{"Acquire", RegionOptions{ReadOnly: true}, acquireAll},
		{"Acquire of a writable region", RegionOptions{}, acquireAll},
		{"of pages of 16 KiB", RegionOptions{PageSize: 4 * FrameSize}, acquireAll},
		{"Prefetch", RegionOptions{}, func(t *testing.T, r *Region) {
			var offs []int64
			for page := range int64(pages) {
				offs = append(offs, page*FrameSize)
			}
			r.Prefetch(offs, 1)
		}},
		{"View", RegionOptions{ReadOnly: true}, func(t *testing.T, r *Region) {
			if r.Raw() != nil {
				t.Skip(r.Raw())
			}
			if err := r.View(context.Background(), func(b []byte) error {
				for page := range pages {
					if b[page*FrameSize] != byte(page) {
						t.Errorf("page %d has %d", page, b[page*FrameSize])
					}
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var base, seen atomic.Uint64
			c.o.Prefetch = prefetch.DataFunc(func(e prefetch.Event, _ *prefetch.Plan) {
				if e.Kind != prefetch.Arrived {
					return
				}
				seen.Add(uint64(len(e.Data)) / FrameSize)
				first := uint64(uintptr(unsafe.Pointer(&e.Data[0])))
				if at := base.Load(); first+uint64(len(e.Data)) > at && first < at+pages*FrameSize {
					t.Errorf("page %d: shown the region's memory", e.Page)
				}
				if e.Data[0] != byte(e.Page*int64(len(e.Data))/FrameSize) {
					t.Errorf("page %d: shown %d", e.Page, e.Data[0])
				}
			})
			p := newPager(t, Options{Budget: 2 * pages * FrameSize})
			r, err := p.Map(store.NewMemoryOf(content), c.o)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			base.Store(uint64(uintptr(r.base)))
			blocked := p.Stats().Faults.Blocked // of the process
			c.read(t, r)
			// A fault that blocks its thread is served without the policy.
			eventually(t, "all pages are shown", func() bool {
				return seen.Load()+(p.Stats().Faults.Blocked-blocked) >= pages
			})
		})
	}
}

func acquireAll(t *testing.T, r *Region) {
	for page := range int64(64) {
		pin, err := r.Acquire(context.Background(), page*FrameSize, 1)
		if err != nil {
			t.Error(err)
			return
		}
		pin.Release()
	}
}
