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
// rest of the same cut may get them. A crash then leaves what was committed before, and
// not the one page with the image of the other; and they are taken back with the cut, so
// that the next commit has these pages too.
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
	// recovered is what a crash would leave now.
	recovered := func() []byte {
		r.atomic.keep.Lock()
		d, j := dataBytes(), journalBytes()
		r.atomic.keep.Unlock()
		again, err := tryMapAtomic(p, d, j, RegionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, again.Len())
		if _, err := again.ReadAt(got, 0); err != nil {
			t.Error(err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
		return got
	}
	was := make([]byte, pages*FrameSize)
	for nth := range int64(3) {
		want := make([]byte, pages*FrameSize)
		for i := range want {
			want[i] = byte(i>>frameShift) ^ byte(i>>frameShift>>8+int(nth)+1)
		}
		if _, err := r.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		// The images are there, in spite of the error: the record must not verify with them.
		journal.Inject(store.Fault{Ops: store.OnWrite, Off: r.atomic.j.SlotOffset(0), Nth: nth + 1, Count: 1, Err: unix.EIO, Short: 1 << 30})
		if err := r.Commit(context.Background()); err == nil {
			t.Fatal("a commit without some of its images")
		}
		if got := recovered(); !bytes.Equal(got, was) && !bytes.Equal(got, want) {
			t.Errorf("write %d of a commit had failed: recovery left some of it", nth+1)
		}
		journal.Clear()
		if err := r.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(recovered(), want) {
			t.Errorf("write %d of a commit had failed, and the next commit had not: recovery left something else", nth+1)
		}
		was = want
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
