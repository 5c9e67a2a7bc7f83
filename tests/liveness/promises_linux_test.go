package liveness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestPinnedPagesStay pins all that can be pinned and then reads ten times the
// budget beside it: nothing that is pinned has left. (A look at the memory would
// prove nothing: it would bring the page back.)
func TestPinnedPagesStay(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	r := fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 700*page, 1), store.FileOptions{ReadOnly: true}), quiet)
	fixture.NeedRaw(t, r)
	pins := pinAll(t, p, r)
	for i := int64(len(pins)); i < 700; i++ {
		if err := raw[i%2].read(context.Background(), r, i*page); err != nil {
			t.Fatal(err)
		}
		if err := explicit[2].read(context.Background(), r, (i+300)%600*page+100*page); err != nil {
			t.Fatal(err)
		}
	}
	for i := range pins {
		if n, _ := r.Residency(int64(i)*page, page); n != page {
			t.Errorf("pinned page %d has left", i)
		}
		pins[i].Release()
	}
}

// TestSetBudgetHoldsWhenItReturns: on the way down it waits until what is too
// much has left, dirty pages as well.
func TestSetBudgetHoldsWhenItReturns(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 400 * page})
	s := store.NewFaulty(fixture.Memory(t, 600*page, 1), store.FaultyOptions{Latency: time.Millisecond})
	r := fixture.Map(t, p, s, pager.RegionOptions{Writeback: pager.Writeback{DirtyShare: 1, Age: -1}})
	buf := make([]byte, page)
	for round := range 3 {
		if err := p.SetBudget(400 * page); err != nil {
			t.Fatal(err)
		}
		for i := range int64(600) {
			if _, err := r.ReadAt(buf, i*page); err != nil {
				t.Fatal(err)
			}
			if i%3 == 0 {
				if _, err := r.WriteAt(buf[:10], i*page); err != nil { // what is there already
					t.Fatal(err)
				}
			}
		}
		if n := p.Stats().Resident; n < 300*page {
			t.Fatalf("only %d bytes resident before the budget shrinks", n)
		}
		if err := p.SetBudget(20 * page); err != nil {
			t.Fatal(err)
		}
		if n := p.Stats().Resident; n > 20*page {
			t.Fatalf("round %d: SetBudget(%d) returned with %d bytes resident", round, 20*page, n)
		}
	}
}

// TestAbandonedRequestsLeaveNothingPinned: callers whose context ends while
// their pages are on the way get nothing, and keep nothing.
func TestAbandonedRequestsLeaveNothingPinned(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	p, r, s := rig(t, 64, 200)
	s.Hold(store.OnRead)
	const callers = 40
	errs := make(chan error, callers)
	ctx, cancel := context.WithCancel(context.Background())
	for i := range int64(callers) {
		go func() {
			var err error
			if i%2 == 0 {
				_, err = r.Acquire(ctx, i%10*3*page, 3*page)
			} else {
				err = r.AcquireV(ctx, []pager.Range{{Off: i % 10 * 3 * page, Len: page}, {Off: 150 * page, Len: 2 * page}}, make([]pager.Pin, 2))
			}
			errs <- err
		}()
	}
	fixture.Eventually(t, "reads are under way", func() bool { st := p.Stats(); return st.Misses > 20 && st.Joined > 5 })
	cancel()
	for range callers {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("told %v", err)
		}
	}
	s.Release()
	end := time.Now().Add(5 * time.Second)
	for p.Stats().Pinned != 0 && time.Now().Before(end) {
		time.Sleep(time.Millisecond)
	}
	if n := p.Stats().Pinned; n != 0 {
		// Close would wait for them for ever, also after a panic.
		fmt.Printf("    promises_linux_test.go: %d bytes are pinned by nobody\n--- FAIL: %s\n", n, t.Name())
		os.Exit(1)
	}
	// All that can be pinned can be had again.
	for _, pin := range pinAll(t, p, r) {
		pin.Release()
	}
}

// TestSyncWritesAgainWhatChangedUnderWay: a write that began before the page was
// written to once more is not what a Sync called afterwards waits for.
func TestSyncWritesAgainWhatChangedUnderWay(t *testing.T) {
	fixture.NeedWrite(t)
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	m := store.NewMemory(16 * page)
	k, _ := m.Kernel()
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	s := store.NewFaulty(m, store.FaultyOptions{})
	r := fixture.Map(t, p, s, quiet)
	t.Cleanup(s.Release)
	ctx := context.Background()
	old, fresh := bytes.Repeat([]byte{1}, page), bytes.Repeat([]byte{2}, page)
	// (Not whole, for which it would go to the store at once where only copies come.)
	if _, err := r.WriteAt(old[1:], 1); err != nil {
		t.Fatal(err)
	}
	s.Hold(store.OnWrite)
	first, err := r.SyncEventfd(0, page, -1)
	if err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, "the first write waits at the device", func() bool { return s.Counts().Held == 1 })
	if _, err := r.WriteAt(fresh, 0); err != nil {
		t.Fatal(err)
	}
	second, err := r.SyncEventfd(0, page, -1)
	if err != nil {
		t.Fatal(err)
	}
	s.Step(1)
	if err := first.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, "the second write, or the end of its Sync", func() bool {
		select {
		case <-second.Done():
			return true
		default:
			return s.Counts().Held == 1
		}
	})
	select {
	case <-second.Done():
		if !bytes.Equal(k.Mem[:page], fresh) {
			t.Fatal("Sync said that what was written before it is durable, and the store has what was written before that")
		}
	default:
	}
	s.Release()
	if err := second.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(k.Mem[:page], fresh) {
		t.Fatal("after Sync the store has what was written before")
	}
}
