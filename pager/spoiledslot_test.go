//go:build linux

package pager

import (
	"bytes"
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
)

// A write of images that fails while the cut is taken gives its slots back, and the
// rest of the same cut may get them: they are taken back with it, so that the next
// commit has these pages too.
func TestSlotsThatOneCutUsesTwice(t *testing.T) {
	needProtection(t)
	const pages = 1024
	p := newPager(t, Options{Budget: 2 * pages * FrameSize})
	data, dataBytes := memoryStore(make([]byte, pages*FrameSize))
	below, journalBytes := memoryStore(make([]byte, 8192))
	journal := store.NewFaulty(below, store.FaultyOptions{Kernel: true, Check: true})
	o := RegionOptions{
		Durability: Atomic, Writeback: Writeback{NoSteal: true},
		Journal: JournalOptions{Store: journal, Limit: 4 * pages * FrameSize, Interval: -1},
	}
	r, err := p.Map(data, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for r.atomic.grow(context.Background()) == nil {
	}
	all := int64(r.d.slotCount)
	for nth := range int64(3) {
		want := bytes.Repeat([]byte{byte(nth + 1)}, pages*FrameSize)
		if _, err := r.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		journal.Inject(store.Fault{Ops: store.OnWrite, Off: r.atomic.j.SlotOffset(0), Nth: nth + 1, Count: 1, Err: unix.EIO})
		if err := r.Commit(context.Background()); err == nil {
			t.Fatal("a commit without some of its images")
		}
		journal.Clear()
		if err := r.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		r.atomic.keep.Lock()
		d, j := dataBytes(), journalBytes()
		r.atomic.keep.Unlock()
		again, err := tryMapAtomic(p, d, j, RegionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := checkBytes(again.Region, want); err != nil {
			t.Errorf("after write %d of a commit had failed, and the next commit had not, recovery: %v", nth+1, err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
		if err := r.atomic.checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := load64(&r.d.slotsFree); n != all {
			t.Errorf("%d of %d slots are free when nothing is uncommitted and all is in place", n, all)
		}
	}
	if n := journal.Counts().Changed; n != 0 {
		t.Errorf("%d images changed on their way", n)
	}
}
