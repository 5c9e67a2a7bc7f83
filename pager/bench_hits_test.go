//go:build linux

package pager_test

import (
	"context"
	"testing"

	"github.com/uffdpager/uffdpager/pager"
)

// BenchmarkOtherHits: what else finds its page there. AcquireV names 16 pages, LockEventfd
// has no eventfd, and the pages that are written are dirty already.
func BenchmarkOtherHits(b *testing.B) {
	ctx := context.Background()
	var rs [benchNamed]pager.Range
	var pins [benchNamed]pager.Pin
	for _, way := range []struct {
		name   string
		writes bool
		raw    bool
		do     func(r *pager.Region, at *offsets) error
	}{
		{"TryAcquire", false, false, func(r *pager.Region, at *offsets) error {
			pin, ok := r.TryAcquire(at.next(), 64)
			if !ok {
				return pager.ErrBudget
			}
			pin.Release()
			return nil
		}},
		{"AcquireV", false, false, func(r *pager.Region, at *offsets) error {
			for i := range rs {
				rs[i] = pager.Range{Off: at.next(), Len: 64}
			}
			err := r.AcquireV(ctx, rs[:], pins[:])
			if err == nil {
				for _, pin := range pins {
					pin.Release()
				}
			}
			return err
		}},
		{"LockEventfd", false, false, func(r *pager.Region, at *offsets) error {
			l, err := r.LockEventfd(at.next(), 64, -1)
			if err == nil {
				l.Unlock()
			}
			return err
		}},
		{"Guard", false, true, func(r *pager.Region, at *offsets) error {
			return pager.Guard(func() error {
				benchSink.Store(uint64(r.Bytes()[at.next()]))
				return nil
			})
		}},
		{"AcquireWrite", true, false, func(r *pager.Region, at *offsets) error {
			pin, err := r.AcquireWrite(ctx, at.next(), 64)
			if err == nil {
				pin.Release()
			}
			return err
		}},
		{"Update", true, true, func(r *pager.Region, at *offsets) error {
			return r.Update(ctx, func(mem []byte) error {
				mem[at.next()]++
				return nil
			})
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			var r *pager.Region
			if way.writes {
				r = benchDirty(b, benchHits)
			} else {
				r = benchResident(b, benchHits)
			}
			if way.raw {
				needRaw(b, r)
			}
			at := newOffsets(1, benchHits)
			b.ReportAllocs()
			price := benchPrice(b, nil)
			for b.Loop() {
				if err := way.do(r, &at); err != nil {
					b.Fatal(err)
				}
			}
			price()
		})
	}
}

// benchDirty is a region every page of which is resident, mapped and dirty.
func benchDirty(b *testing.B, size int64) *pager.Region {
	b.Helper()
	_, r := benchRegion(b, size, 4*size, pager.RegionOptions{Writeback: pager.Writeback{DirtyShare: 1, Age: -1}})
	for off := int64(0); off < size; off += benchPage {
		pin, err := r.AcquireWrite(context.Background(), off, 8)
		if err != nil {
			b.Fatal(err)
		}
		pin.Bytes()[0]++
		pin.Release()
	}
	return r
}
