package pager

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// refuses lets nothing leave as long as it is told to.
type refuses struct {
	evict.Policy
	all atomic.Bool
}

func (e *refuses) Evict(n int, take func(evict.Page) evict.Verdict) int {
	if e.all.Load() {
		return 0
	}
	return e.Policy.Evict(n, take)
}

// TestAPolicyThatLetsNothingLeave: who waits for room that the region's own policy
// does not give is told so, in whatever way he has come, and all is well when it does.
func TestAPolicyThatLetsNothingLeave(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	for way, read := range map[string]func(*Region, int64) error{
		"Acquire": func(r *Region, off int64) error {
			pin, err := r.Acquire(ctx, off, 1)
			pin.Release()
			return err
		},
		"ReadAt":  func(r *Region, off int64) error { _, err := r.ReadAt(make([]byte, 8), off); return err },
		"WriteAt": func(r *Region, off int64) error { _, err := r.WriteAt(make([]byte, FrameSize), off); return err },
		"Bytes": func(r *Region, off int64) error {
			return Guard(func() error { sink += r.Bytes()[off]; return nil })
		},
		"View": func(r *Region, off int64) error {
			return r.View(ctx, func(m []byte) error { sink += m[off]; return nil })
		},
		"LockEventfd": func(r *Region, off int64) error {
			l, err := r.LockEventfd(off, 1, -1)
			if err != nil {
				return err
			}
			defer l.Unlock()
			return l.Wait(ctx)
		},
	} {
		t.Run(way, func(t *testing.T) {
			p := newPager(t, Options{Budget: 32 * FrameSize, StallLimit: 100 * time.Millisecond})
			pol := &refuses{Policy: evict.NewFIFO()}
			pol.all.Store(true)
			r, err := p.Map(store.NewMemory(256*FrameSize), RegionOptions{Evict: pol, Prefetch: prefetch.None()})
			if err != nil {
				t.Fatal(err)
			}
			if way == "Bytes" || way == "View" {
				needRaw(t, r)
			}
			for k := int64(0); k < 256 && err == nil; k++ {
				err = read(r, k*FrameSize)
			}
			if p.Stats().Stolen > 0 {
				t.Skip("threads that wait take their room without asking")
			}
			if !errors.Is(err, ErrBudget) || !strings.Contains(err.Error(), "eviction policy") {
				t.Fatalf("the budget is full and nothing may leave: %v", err)
			}
			pol.all.Store(false)
			for k := range int64(256) {
				if err := read(r, k*FrameSize); err != nil {
					t.Fatalf("pages may leave again: %v", err)
				}
			}
		})
	}
}
