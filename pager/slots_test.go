//go:build linux

package pager

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
)

// More than the journal can hold, uncommitted: writers get ErrBudget instead of
// waiting for ever, what was written can be committed, and then there is room.
func TestUncommittedFillsTheJournal(t *testing.T) {
	const pages = 600
	p := newPager(t, Options{Budget: 32 * FrameSize, StallLimit: 100 * time.Millisecond})
	r, _, _ := faultyAtomic(t, p, pages, RegionOptions{Journal: JournalOptions{Limit: 100 * FrameSize}})
	ctx := context.Background()
	for round := range 3 {
		n := 0
		var err error
		for ; n < pages && err == nil; n++ {
			_, err = r.WriteAt(bytes.Repeat([]byte{byte(round + 1)}, FrameSize), int64(n*FrameSize))
		}
		if !errors.Is(err, ErrBudget) || n < 30 {
			t.Fatalf("round %d: after %d pages: %v", round, n, err)
		}
		// What is there can still be read, …
		b := make([]byte, FrameSize)
		for i := range n - 1 {
			if _, err := r.ReadAt(b, int64(i*FrameSize)); err != nil || b[0] != byte(round+1) {
				t.Fatalf("round %d: page %d: %d, %v", round, i, b[0], err)
			}
		}
		// … and committed.
		if err := r.Commit(ctx); err != nil {
			t.Fatalf("round %d: Commit: %v", round, err)
		}
	}
}

// Commits go on for ever in a journal of few slots: checkpoints make room.
func TestJournalIsUsedAgain(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, data, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Limit: 200 * FrameSize}})
	for i := range 500 {
		fill(t, r, i%16, byte(i))
		if err := r.Commit(context.Background()); err != nil {
			t.Fatalf("Commit %d: %v", i, err)
		}
	}
	if s := p.Stats(); s.Commits != 500 || s.Checkpoints == 0 {
		t.Errorf("%d commits, %d checkpoints", s.Commits, s.Checkpoints)
	}
	k, _ := data.Kernel()
	mem := k.Mem
	got := make([]byte, 16*FrameSize)
	if err := r.atomic.checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	copy(got, mem)
	for i := range 16 {
		want := byte(496 + i) // the last that went to page i
		if i >= 4 {
			want -= 16
		}
		if got[i*FrameSize] != want {
			t.Errorf("page %d of the store is %d, want %d", i, got[i*FrameSize], want)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// With a larger budget more can be dirty, so more slots are kept for that.
func TestSlotsForWhatCanBeDirty(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Limit: 2000 * FrameSize}})
	for _, frames := range []int64{256, 64, 512} {
		if err := p.SetBudget(frames * FrameSize); err != nil {
			t.Fatal(err)
		}
		if kept := int64(r.d.slotMost) - load64(&r.d.slotsMayLoose); kept != p.pinnable.Load() {
			t.Errorf("%d slots are kept for %d frames that can be dirty", kept, p.pinnable.Load())
		}
	}
}

// A checkpoint of what was committed before a Resize, after it: the page that
// the new end goes through can be read when the store has been cut as well.
func TestCheckpointAfterTheCut(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 16, RegionOptions{Journal: JournalOptions{Interval: -1}})
	ctx := context.Background()
	const size = 5*FrameSize + 100
	fill(t, r, 5, 7)
	for i, step := range []func() error{
		func() error { return r.Commit(ctx) },
		func() error { return r.Resize(ctx, size) },
		func() error { return r.atomic.checkpoint(ctx) },
		func() error { return r.Commit(ctx) },
		func() error { return r.atomic.checkpoint(ctx) },
		func() error { return r.Advise(5*FrameSize, 100, DontNeed) },
	} {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	b := make([]byte, 100)
	if _, err := r.ReadAt(b, 5*FrameSize); err != nil || b[99] != 7 {
		t.Errorf("the last page: %d, %v", b[99], err)
	}
	if stored := atomic.LoadUint64(&r.d.stored); stored > size {
		t.Errorf("the store is read up to %d, and has %d", stored, size)
	}
}

// J4: as long as the header is not durable that covers a commit, its slots keep
// what they had, also those whose pages have newer commits.
func TestSlotsOutliveTheirRecord(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, data, journal := faultyAtomic(t, p, 16, RegionOptions{Retry: Retry{Times: -1}, Journal: JournalOptions{Limit: 100 * FrameSize, Interval: -1}})
	ctx := context.Background()
	for i := range 4 {
		fill(t, r, 3, byte(i+1))
		if err := r.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// The images get to the store, the header does not get to the journal.
	journal.Inject(store.Fault{Ops: store.OnWrite, Len: 8192, Err: unix.EIO})
	if err := r.atomic.checkpoint(ctx); !errors.Is(err, unix.EIO) {
		t.Fatalf("checkpoint without a header: %v", err)
	}
	// Now everything that is dirty looks for slots, from the first one on.
	atomic.StoreUint32(&r.d.slotHint, 0)
	for i := range 16 {
		fill(t, r, i, 99)
	}
	r.p.writeBack(r.p.collectDirty(nil, r.d, 0), writeSync)
	for turn := 0; r.write.inflight.Load() != 0; turn++ {
		p.reapSome(64)
		pause(turn)
	}
	k, _ := journal.Kernel()
	d, _ := data.Kernel()
	c, err := tryMapAtomic(newPager(t, Options{Budget: 64 * FrameSize}), bytes.Clone(d.Mem), bytes.Clone(k.Mem), RegionOptions{})
	if err != nil {
		t.Fatalf("recovery: %v", err)
	}
	b := make([]byte, 1)
	if _, err := c.ReadAt(b, 3*FrameSize); err != nil || b[0] != 4 {
		t.Errorf("page 3 is %d after recovery, want 4: %v", b[0], err)
	}
	c.Close()
	journal.Clear()
}

// A read of a slot that is under way while a checkpoint moves the page, and
// another page gets the slot, is read again from the store.
func TestReadOfASlotThatMoves(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, journal := faultyAtomic(t, p, 32, RegionOptions{Journal: JournalOptions{Limit: 100 * FrameSize, Interval: -1}})
	ctx := context.Background()
	for try := 0; ; try++ {
		for i := range 4 {
			fill(t, r, i, byte(40+i))
		}
		if err := r.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if err := r.Advise(0, 4*FrameSize, DontNeed); err != nil {
			t.Fatal(err)
		}
		if r.d.place(2) != 0 {
			break
		}
		if try == 100 { // else the keeper was faster, and the page is in its place by now
			t.Fatal("page 2 is not in a slot")
		}
	}
	slot := r.d.place(2) - 1
	journal.Inject(store.Fault{Ops: store.OnRead, Count: 1, Delay: 200 * time.Millisecond})
	before := journal.Counts().Reads
	got := make(chan byte, 1)
	go func() {
		pin, err := r.Acquire(ctx, 2*FrameSize, 8)
		if err != nil {
			t.Error(err)
			got <- 0
			return
		}
		got <- pin.Bytes()[0]
		pin.Release()
	}()
	// On a busy machine it may have ended before we look.
	eventually(t, "the read", func() bool { return journal.Counts().Reads > before })
	if err := r.atomic.checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	atomic.StoreUint32(&r.d.slotHint, slot)
	fill(t, r, 8, 99)
	p.writeBack([]dirtyPage{{r.d, 8}}, writeSync)
	for turn := 0; r.write.inflight.Load() != 0; turn++ {
		p.reapSome(64)
		pause(turn)
	}
	if r.d.place(8) != slot+1 {
		t.Fatalf("page 8 is in slot %d, not in %d", r.d.place(8)-1, slot)
	}
	if b := <-got; b != 42 {
		t.Errorf("page 2 reads as %d, want 42", b)
	}
}

// A write that finds the first of its pages taken by somebody else, after it
// has a slot for it, goes on with the others; one that finds all of them taken
// is no write.
func TestWriteOfPagesTakenMeanwhile(t *testing.T) {
	p := newPager(t, Options{Budget: 64 * FrameSize})
	r, _, _ := faultyAtomic(t, p, 32, RegionOptions{Journal: JournalOptions{Limit: 100 * FrameSize, Interval: -1}})
	ctx := context.Background()
	fill(t, r, 1, 1)
	if err := r.Commit(ctx); err != nil { // makes the slots
		t.Fatal(err)
	}
	write := func(pages ...uint64) (started int) {
		list := make([]dirtyPage, len(pages))
		for i, page := range pages {
			list[i] = dirtyPage{r.d, page}
		}
		started = p.writeBack(list, writeSync)
		for turn := 0; r.write.inflight.Load() != 0; turn++ {
			p.reapSome(64)
			pause(turn)
		}
		return started
	}
	// Pages 5 and 9 have slots that do not follow each other.
	for _, page := range []int{5, 20, 9} {
		fill(t, r, page, byte(page))
		if n := write(uint64(page)); n != 1 {
			t.Fatalf("%d pages written, want page %d", n, page)
		}
	}
	free := load64(&r.d.slotsFree)
	fill(t, r, 5, 50)
	fill(t, r, 9, 90)
	atomic.StoreUint64(&r.d.holdFirst, 5)
	atomic.StoreUint64(&r.d.holdEnd, 6)
	if n := write(5); n != 0 {
		t.Errorf("%d pages written, the only one is held", n)
	}
	if n := write(5, 9); n != 1 {
		t.Errorf("%d pages written, want page 9", n)
	}
	atomic.StoreUint64(&r.d.holdEnd, 0)
	if n := write(5, 9); n != 1 {
		t.Errorf("%d pages written, want page 5", n)
	}
	// One more, if the checkpoint of the first commit has ended meanwhile.
	if now := load64(&r.d.slotsFree); now < free || now > free+1 {
		t.Errorf("%d slots are free, %d were", now, free)
	}
	if err := r.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	for page, want := range map[int64]byte{5: 50, 9: 90, 20: 20} {
		var b [1]byte
		if _, err := r.ReadAt(b[:], page*FrameSize); err != nil || b[0] != want {
			t.Errorf("page %d is %d, %v; want %d", page, b[0], err, want)
		}
	}
}
