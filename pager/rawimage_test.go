//go:build linux

package pager

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
)

// An image that the fault server has written has no checksum until a commit
// reads it back. When that read fails, the commit fails, and the next one must
// read it again: with a wrong checksum in its record recovery would take an
// acknowledged commit for a torn one.
func TestRawImagesAreReadAgain(t *testing.T) {
	const pages = 32
	ctx := context.Background()
	needProtection(t)
	p := newPager(t, Options{Budget: 8 * FrameSize})
	data, dataBytes := memoryStore(make([]byte, pages*FrameSize))
	side, sideBytes := memoryStore(nil)
	faulty := store.NewFaulty(side, store.FaultyOptions{})
	r, err := p.Map(data, RegionOptions{Durability: Atomic, Journal: JournalOptions{Store: faulty, Limit: 4 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, pages*FrameSize)
	for page := range pages { // most of them have to leave, into slots
		for i := range FrameSize {
			want[page*FrameSize+i] = byte(page + i + 1)
		}
		if _, err := r.WriteAt(want[page*FrameSize:(page+1)*FrameSize], int64(page*FrameSize)); err != nil {
			t.Fatal(err)
		}
	}
	raw := 0
	for s := range bare.Load32(&r.d.slotCount) {
		if w := bare.Load64(r.d.slotWord(s)); w&slotState == slotLoose && bare.Cas64(r.d.slotWord(s), w, w|slotRaw) {
			*r.d.slotCRC(s) = ^*r.d.slotCRC(s) // as the fault server leaves it: of something else
			raw++
		}
	}
	if raw == 0 {
		t.Fatal("no page is in a slot: the test shows nothing")
	}
	faulty.Inject(store.Fault{Ops: store.OnRead, Err: unix.EIO})
	if err := r.Commit(ctx); !errors.Is(err, unix.EIO) {
		t.Fatalf("Commit whose images cannot be read back: %v, want EIO", err)
	}
	faulty.Clear()
	if err := r.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	r.atomic.keep.Lock() // no checkpoint: what is there now is what a crash leaves
	d, j := dataBytes(), sideBytes()
	r.atomic.keep.Unlock()
	again, err := tryMapAtomic(p, d, j, RegionOptions{Journal: JournalOptions{Limit: 4 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	if err := checkBytes(again.Region, want); err != nil {
		t.Error("an acknowledged commit is gone: ", err)
	}
	if err := errors.Join(again.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
}
