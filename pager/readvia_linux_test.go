package pager

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// A ReadAt into memory of a region, two pages of it, where there is one credit for
// dirty pages and hardly a frame to spare: each page that is made ready takes the
// credit of the other.
func TestReadAtIntoPagesThatCannotBeReadyTogether(t *testing.T) {
	const pages = 16
	m := store.NewMemory(pages * FrameSize)
	k, _ := m.Kernel()
	for i := range k.Mem {
		k.Mem[i] = byte(rand.Uint32())
	}
	p, from := rawMap(t, Options{Budget: 4 * FrameSize}, m, RegionOptions{Prefetch: prefetch.None()})
	defer p.Close()
	into, err := p.Map(store.NewMemory(pages*FrameSize), RegionOptions{Prefetch: prefetch.None()})
	if err != nil {
		t.Fatal(err)
	}
	if into.Raw() != nil {
		t.Skip(into.Raw())
	}
	pin, err := into.Acquire(context.Background(), 15*FrameSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	if left := p.credits.left(); left != 1 {
		t.Fatalf("%d credits are left, the test wants one", left)
	}
	for i := int64(0); i < 8; i++ {
		at, n := (i+1)*FrameSize-100, 200
		if !within(t, 20*time.Second, "ReadAt", func() {
			if _, err := from.ReadAt(into.Bytes()[at:][:n], i*FrameSize+7); err != nil {
				t.Error(err)
			}
		}) {
			return
		}
		got := make([]byte, n)
		if _, err := into.ReadAt(got, at); err != nil || !bytes.Equal(got, k.Mem[i*FrameSize+7:][:n]) {
			t.Errorf("at %d: other bytes than were read (%v)", at, err)
		}
	}
}
