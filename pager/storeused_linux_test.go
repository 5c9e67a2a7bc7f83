//go:build linux

package pager

import (
	"context"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// A page that was read ahead and is stored to has been used, whichever way the store
// takes, and counts once.
func TestStoredToIsUsed(t *testing.T) {
	needProtection(t)
	for way, put := range map[string]func(r *Region, off int64) error{
		"Bytes": func(r *Region, off int64) error {
			return Guard(func() error { r.Bytes()[off] = 1; return nil })
		},
		"Update": func(r *Region, off int64) error {
			return r.Update(context.Background(), func(mem []byte) error { mem[off] = 1; return nil })
		},
		"WriteAt": func(r *Region, off int64) error {
			_, err := r.WriteAt([]byte{1}, off)
			return err
		},
		"AcquireWrite": func(r *Region, off int64) error {
			pin, err := r.AcquireWrite(context.Background(), off, 1)
			if err == nil {
				pin.Release()
			}
			return err
		},
	} {
		t.Run(way, func(t *testing.T) {
			p := newPager(t, Options{Budget: 1 << 20})
			next := prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
				if e.Kind == prefetch.Miss && e.Page == 0 {
					plan.Add(1, 2)
				}
			})
			r, err := p.Map(store.NewMemory(64*FrameSize), RegionOptions{Prefetch: next})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if way == "Bytes" {
				needRaw(t, r)
			}
			pin, err := r.Acquire(context.Background(), 0, 1)
			if err != nil {
				t.Fatal(err)
			}
			pin.Release()
			eventually(t, "two pages are read ahead", func() bool {
				n, _ := r.Residency(FrameSize, 2*FrameSize)
				return n == 2*FrameSize
			})
			for range 2 {
				if err := put(r, FrameSize); err != nil {
					t.Fatal(err)
				}
			}
			for what, s := range map[string]Stats{"pager": p.Stats(), "region": r.Stats()} {
				if s.Prefetch.Issued != 2 || s.Prefetch.Used != 1 {
					t.Errorf("%s: %d pages read ahead and %d used, want 2 and 1", what, s.Prefetch.Issued, s.Prefetch.Used)
				}
			}
		})
	}
}
