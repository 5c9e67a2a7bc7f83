package pager

import (
	"context"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// After Advise(Sequential) what a scan has passed leaves before what was there before
// it, also where the region's own policy keeps what is behind; without, what was there
// before leaves first.
func TestSequentialDropsBehind(t *testing.T) {
	const (
		budget = 1024
		old    = 256 // pages, missed once, far apart
		scan   = 600 // a MiB is not much of a scan yet
		more   = 250 // pages missed afterwards
	)
	for _, c := range []struct {
		name   string
		policy prefetch.Policy
		advice Advice
		keeps  bool
	}{
		{"sequential", prefetch.Readahead(prefetch.ReadaheadOptions{KeepBehind: true}), Sequential, true},
		{"sequential instead of none", prefetch.None(), Sequential, true},
		{"normal, which drops behind itself", nil, Normal, true},
		{"normal, which keeps", prefetch.Readahead(prefetch.ReadaheadOptions{KeepBehind: true}), Normal, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPager(t, Options{Budget: budget * FrameSize})
			r, err := p.Map(store.NewMemory(1<<18*FrameSize), RegionOptions{Prefetch: c.policy})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			use := func(page int64) {
				pin, err := r.Acquire(context.Background(), page*FrameSize, 1)
				if err != nil {
					t.Fatal(err)
				}
				pin.Release()
			}
			advise := func(a Advice) {
				if err := r.Advise(0, 0, a); err != nil {
					t.Fatal(err)
				}
			}
			oldPage := func(i int64) int64 { return 1<<16 + i*i }
			advise(Random)
			for i := range int64(old) {
				use(oldPage(i))
			}
			advise(c.advice)
			for page := range int64(scan) {
				use(page)
			}
			advise(Random)
			eventually(t, "all reads have ended", func() bool { return p.aheadPages.Load() == 0 })
			if n := p.Stats().Evictions; n != 0 {
				t.Fatalf("%d pages left before there was need", n)
			}
			for i := range int64(more) {
				use(1<<17 + i*i)
			}
			lost := 0
			for i := range int64(old) {
				if n, _ := r.Residency(oldPage(i)*FrameSize, FrameSize); n == 0 {
					lost++
				}
			}
			left := p.Stats().Evictions
			t.Logf("%d pages left, %d of them older than the scan", left, lost)
			if left == 0 || (lost == 0) != c.keeps {
				t.Errorf("%d pages left, %d of them older than the scan", left, lost)
			}
		})
	}
}
