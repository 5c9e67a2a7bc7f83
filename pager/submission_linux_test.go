package pager

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// submissionSpy counts submissions, each of which is one system call for up to
// 32 I/Os, and the reads in them.
type submissionSpy struct {
	store.Store
	submissions, reads atomic.Int64
}

func (s *submissionSpy) Start(e aio.Engine, ops []*aio.Op) {
	s.submissions.Add(1)
	s.reads.Add(int64(len(ops)))
	s.Store.Start(e, ops)
}

// What is named together is read with one submission: neighbours with reads of a
// MiB, others with a read each.
func TestNamedTogetherIsSubmittedTogether(t *testing.T) {
	const scattered = 64
	var offs []int64
	var ranges []Range
	for i := range int64(scattered) {
		offs = append(offs, 3*i*FrameSize)
		ranges = append(ranges, Range{Off: 3 * i * FrameSize, Len: FrameSize})
	}
	ctx := context.Background()
	for _, c := range []struct {
		what  string
		do    func(r *Region) error
		bytes int64
		reads int64
	}{
		{"WillNeed", func(r *Region) error { return r.Advise(0, 4<<20, WillNeed) }, 4 << 20, 4},
		{"LockEventfd", func(r *Region) error {
			l, err := r.LockEventfd(0, 4<<20, -1)
			if err == nil {
				err = l.Wait(ctx)
				l.Unlock()
			}
			return err
		}, 4 << 20, 4},
		{"Acquire", func(r *Region) error {
			pin, err := r.Acquire(ctx, 0, 4<<20)
			pin.Release()
			return err
		}, 4 << 20, 4},
		{"AcquireV", func(r *Region) error {
			pins := make([]Pin, scattered)
			err := r.AcquireV(ctx, ranges, pins)
			for _, pin := range pins {
				pin.Release()
			}
			return err
		}, scattered * FrameSize, scattered},
		{"Prefetch", func(r *Region) error { r.Prefetch(offs, 1); return nil }, scattered * FrameSize, scattered},
	} {
		s := &submissionSpy{Store: store.NewMemory(32 << 20)}
		p, r := rawMap(t, Options{Budget: 64 << 20}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
		if err := c.do(r); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		eventually(t, c.what, func() bool {
			n, _ := r.Residency(0, r.Len())
			return n == c.bytes
		})
		if n, reads := s.submissions.Load(), s.reads.Load(); n != 1 || reads != c.reads {
			t.Errorf("%s: %d submissions of %d reads, want one of %d", c.what, n, reads, c.reads)
		}
		p.Close()
	}
}
