package pager

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// crowdSpy knows how many transfers its store had under way at a time.
type crowdSpy struct {
	store.Store
	under, most, all atomic.Int64
}

func (s *crowdSpy) Start(e aio.Engine, ops []*aio.Op) {
	n := s.under.Add(int64(len(ops)))
	for old := s.most.Load(); n > old && !s.most.CompareAndSwap(old, n); old = s.most.Load() {
	}
	s.all.Add(int64(len(ops)))
	for _, op := range ops {
		done := op.Done
		op.Done = func(op *aio.Op) {
			s.under.Add(-1)
			op.Done = done
			done(op)
		}
	}
	s.Store.Start(e, ops)
}

// A checkpoint of scattered pages has no more of them under way at a time than a
// read that somebody waits for may stand behind.
func TestCheckpointLeavesRoomForReads(t *testing.T) {
	const dirty, most = 1024, 32
	data := &crowdSpy{Store: store.NewMemory(2 * dirty * FrameSize)}
	journal, err := store.OpenFile(filepath.Join(t.TempDir(), "journal"), store.FileOptions{Create: true, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	p := newPager(t, Options{Budget: 4 * dirty * FrameSize})
	needProtection(t)
	r, err := p.Map(data, RegionOptions{
		Durability: Atomic,
		Journal:    JournalOptions{Store: journal, Limit: 16 * dirty * FrameSize, Interval: -1},
	})
	if err != nil {
		t.Fatal(err)
	}
	for page := 0; page < 2*dirty; page += 2 {
		fill(t, r, page, 1)
	}
	ctx := context.Background()
	if err := soon(t, "Commit", func() error { return r.Commit(ctx) }); err != nil {
		t.Fatal(err)
	}
	data.most.Store(0)
	data.all.Store(0)
	if err := soon(t, "the checkpoint", func() error { return r.atomic.checkpoint(ctx) }); err != nil {
		t.Fatal(err)
	}
	if n := data.all.Load(); n < dirty {
		t.Fatalf("a checkpoint of %d pages, none next to another, has made %d transfers", dirty, n)
	}
	if n := data.most.Load(); n > most {
		t.Errorf("%d transfers of a checkpoint are under way at a time", n)
	}
}
