package hostile

import (
	"context"
	"testing"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestTheTailReadsAsZeros: what lies between the end of a store and the end of
// its last page is zeros, whatever the device left in the buffer, and shows
// when the region grows.
func TestTheTailReadsAsZeros(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{}) {
		return
	}
	const size = page + 1000
	p := fixture.Pager(t, pager.Options{Budget: 32 * page})
	// A Faulty leaves junk behind what it has read.
	s := store.NewFaulty(fixture.Memory(t, size, 1), store.FaultyOptions{})
	r := fixture.Map(t, p, s, pager.RegionOptions{MaxSize: 4 * page})
	b := make([]byte, size)
	if _, err := r.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Resize(context.Background(), 3*page); err != nil {
		t.Fatal(err)
	}
	b = make([]byte, 3*page)
	if _, err := r.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := fixture.Check(b[:size], 0, 1); err != nil {
		t.Error(err)
	}
	if err := fixture.Compare(b[size:], make([]byte, 3*page-size), size); err != nil {
		t.Errorf("past the old end: %v", err)
	}
}
