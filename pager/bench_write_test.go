//go:build linux

package pager_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/uffdpager/uffdpager/pager"
)

// BenchmarkWriteMiss: writes within pages of which 15 of 16 are absent: each is
// read, mapped, written back and leaves. All but the last way map it writable;
// "protected first" is what that is to be compared with: the page is there for a
// reader, write-protected, when AcquireWrite comes.
func BenchmarkWriteMiss(b *testing.B) {
	ctx := context.Background()
	acquireWrite := func(r *pager.Region, off int64, _ []byte) error {
		pin, err := r.AcquireWrite(ctx, off, 8)
		if err == nil {
			pin.Bytes()[0]++
			pin.Release()
		}
		return err
	}
	kept := keptStore{benchStore(benchMisses)}
	for _, way := range []struct {
		name string
		do   func(r *pager.Region, off int64, buf []byte) error
	}{
		{"AcquireWrite", acquireWrite},
		{"WriteAt", func(r *pager.Region, off int64, buf []byte) error {
			_, err := r.WriteAt(buf, off+16)
			return err
		}},
		{"Bytes", func(r *pager.Region, off int64, buf []byte) error {
			r.Bytes()[off+32] = buf[0]
			return nil
		}},
		{"protected first", func(r *pager.Region, off int64, buf []byte) error {
			pin, err := r.Acquire(ctx, off, 8)
			if err == nil {
				err = acquireWrite(r, off, buf)
				pin.Release()
			}
			return err
		}},
	} {
		for _, crowd := range []int{1, benchCrowd} {
			b.Run(fmt.Sprintf("%s/crowd=%d", way.name, crowd), func(b *testing.B) { // goroutines for each P
				onProcs(b, func(b *testing.B) {
					p, r := benchMap(b, kept, benchBudget, pager.RegionOptions{})
					if way.name == "Bytes" {
						needRaw(b, r)
					}
					b.ReportAllocs()
					b.SetParallelism(crowd)
					price := benchPrice(b, p)
					b.RunParallel(func(pb *testing.PB) {
						at, buf := newOffsets(benchSeed.Add(1), benchMisses), make([]byte, 8)
						for pb.Next() {
							if err := way.do(r, at.next(), buf); err != nil {
								b.Error(err)
								return
							}
						}
					})
					price()
				})
			})
		}
	}
}
