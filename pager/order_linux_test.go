package pager

import (
	"context"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// What is written in the background has no more than its share of the queue depth, however
// far apart the pages are; what is read ahead goes out beside it, up to its own share, and
// what somebody waits for beside both.
func TestReadsAheadGoBesideWritesInTheBackground(t *testing.T) {
	const (
		depth  = 16
		writes = depth / backgroundShare
		reads  = depth / aheadShare
	)
	p, r, s := mapMemory(t, 1<<14, Options{Budget: 2048 * FrameSize, QueueDepth: depth}, store.FaultyOptions{},
		RegionOptions{Writeback: Writeback{DirtyShare: 0.05, Age: -1}})
	s.Hold(0)
	defer s.Release()
	for i := range int64(400) {
		got := make(chan error, 1)
		go func() {
			pin, err := r.AcquireWrite(context.Background(), 3*i*FrameSize, 1) // no two in one write
			if err == nil {
				pin.Bytes()[0] = 1
				pin.Release()
			}
			got <- err
		}()
		for done := false; !done; {
			select {
			case err := <-got:
				if err != nil {
					t.Fatal(err)
				}
				done = true
			default:
				s.StepOp(func(code aio.Code, _ int64, _ int) bool { return code == aio.Read })
				time.Sleep(10 * time.Microsecond)
			}
		}
	}
	held := func() int { return s.Counts().Held }
	eventually(t, "writes in the background", func() bool { return held() >= writes })
	time.Sleep(4 * tick)
	if n := held(); n != writes {
		t.Errorf("%d writes are under way in the background, want %d of a queue depth of %d", n, writes, depth)
	}
	n := held()
	var offs []int64
	for i := range int64(4 * reads) {
		offs = append(offs, (4000+3*i)*FrameSize)
	}
	r.Prefetch(offs, 1)
	if n := held() - n; n != reads {
		t.Errorf("%d reads ahead go out beside them, want %d", n, reads)
	}
	got := make(chan error, 1)
	go func() {
		_, err := r.ReadAt(make([]byte, 1), 9000*FrameSize)
		got <- err
	}()
	eventually(t, "what somebody waits for goes out", func() bool {
		return s.StepOp(func(_ aio.Code, off int64, _ int) bool { return off == 9000*FrameSize }) == 1
	})
	if err := <-got; err != nil {
		t.Error(err)
	}
	s.Release()
	eventually(t, "all else has ended", func() bool { return held() == 0 && p.aheadLoads.Load() == 0 })
}

// What is read ahead and has to wait for its turn goes before what is written in the
// background.
func TestReadsAheadComeBeforeWritesInTheBackground(t *testing.T) {
	p, r, s := mapMemory(t, 1000, Options{Budget: 256 * FrameSize, QueueDepth: 2}, store.FaultyOptions{}, RegionOptions{Writeback: Writeback{Age: -1}})
	s.Hold(store.OnRead)
	defer s.Release()
	got := make(chan error, 2)
	for i := range int64(2) {
		go func() {
			_, err := r.ReadAt(make([]byte, 1), 10*i*FrameSize)
			got <- err
		}()
	}
	eventually(t, "two reads under way", func() bool { return s.Counts().Held == 2 })
	if writes, frames := p.backgroundRoom(false); writes <= 0 || frames <= 0 {
		t.Errorf("room for %d writes of %d frames while no read waits", writes, frames)
	}
	r.Prefetch([]int64{500 * FrameSize}, 1)
	if writes, frames := p.backgroundRoom(false); writes > 0 || frames > 0 {
		t.Errorf("room for %d writes of %d frames while a read ahead waits", writes, frames)
	}
	s.Release()
	for range 2 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
}
