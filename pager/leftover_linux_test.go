package pager

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/pager/writeback"
)

// refuseToProtect makes the kernel refuse so many times to write-protect pages.
func refuseToProtect(t *testing.T, times int64) (left *atomic.Int64) {
	t.Helper()
	left = new(atomic.Int64)
	left.Store(times)
	protectVia = func(addr, n uintptr, protect bool) (errno uintptr) {
		if left.Add(-1) >= 0 {
			return uintptr(unix.ENOMEM)
		}
		return protectRange(addr, n, protect)
	}
	t.Cleanup(func() { protectVia = protectRange })
	return left
}

// synced waits for a Sync, which a defect would have wait for ever; then it has the
// pages written by somebody else, so that the region can be closed.
func synced(t *testing.T, p *Pager, r *Region, s *SyncOp) error {
	t.Helper()
	select {
	case <-s.Done():
		return s.Err()
	case <-time.After(20 * time.Second):
		t.Error("Sync waits, and nobody writes")
		protectVia = protectRange
		p.writeBack(p.collectDirty(nil, r.d, 0), writeSync)
		return s.Wait(context.Background())
	}
}

func startSync(t *testing.T, r *Region) *SyncOp {
	t.Helper()
	s, err := r.SyncEventfd(0, r.Len(), -1)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A Sync of pages that the kernel refuses to protect tries again: page by page, in
// spans, and when a page that is written a second time for it is refused.
func TestSyncOfPagesThatAreNotProtected(t *testing.T) {
	for refused := range int64(6) {
		p, r := spanRegion(t, 64, 3, 4, 5, 10, 12, 14)
		left := refuseToProtect(t, refused)
		if refused%2 == 0 {
			if err := synced(t, p, r, startSync(t, r)); err != nil {
				t.Error(err)
			}
		} else if !within(t, 20*time.Second, "a Sync by its caller", func() {
			if err := r.Sync(context.Background()); err != nil {
				t.Error(err)
			}
		}) {
			protectVia = protectRange
			p.writeBack(p.collectDirty(nil, r.d, 0), writeSync)
		}
		k, _ := r.store.Kernel()
		for _, page := range []int{3, 4, 5, 10, 12, 14} {
			if k.Mem[page*FrameSize] != byte(100+page) || stateOf(r, page) != stResident {
				t.Errorf("refused %d times: page %d of the store has %d, and is in state %#x", refused, page, k.Mem[page*FrameSize], stateOf(r, page))
			}
		}
		if n := left.Load(); n >= 0 {
			t.Errorf("refused %d times less than %d", n, refused)
		}
	}
}

// A Sync leaves a page to somebody who is copying it out, and he gives up.
func TestSyncOfPagesThatOthersGiveUp(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("who copies a page keeps his P")
	}
	noCollections(t) // he does not stop for the collector
	p, r := spanRegion(t, 64, 7)
	var entered, giveUp atomic.Bool
	protectVia = func(addr, n uintptr, protect bool) (errno uintptr) {
		if !entered.CompareAndSwap(false, true) {
			return protectRange(addr, n, protect)
		}
		for !giveUp.Load() {
			unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
		return uintptr(unix.ENOMEM)
	}
	t.Cleanup(func() { protectVia = protectRange })

	full := int32(p.opt.QueueDepth)
	p.writingIOs.Add(full) // so that the Sync has to wait before it writes
	s := startSync(t, r)
	gone := make(chan uint64)
	go func() {
		b := newWriteBatch(p.engine)
		took := p.writeRun(r, 7, 1, writeNeed, b)
		b.start()
		gone <- took
	}()
	for !entered.Load() {
		runtime.Gosched()
	}
	p.writingIOs.Add(-full)
	fed := make(chan struct{})
	go func() { p.feed(); close(fed) }()
	eventually(t, "the Sync has nothing left to begin", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.todo) == 0
	})
	for range 100 {
		unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	giveUp.Store(true)
	if took := <-gone; took != 0 {
		t.Errorf("%d pages were copied all the same", took)
	}
	<-fed
	if err := synced(t, p, r, s); err != nil {
		t.Error(err)
	}
	if k, _ := r.store.Kernel(); k.Mem[7*FrameSize] != 107 {
		t.Errorf("the store has %d", k.Mem[7*FrameSize])
	}
}

// If the kernel never protects the page, Sync says so and does not wait for ever;
// the next one finds the page as dirty as it was.
func TestSyncOfPagesThatAreNeverProtected(t *testing.T) {
	p, r := spanRegion(t, 16, 7)
	p.opt.StallLimit = 20 * time.Millisecond
	left := refuseToProtect(t, 1<<40)
	var f *FaultError
	if err := synced(t, p, r, startSync(t, r)); !errors.As(err, &f) || !errors.Is(err, ErrBudget) || f.Offset != 7*FrameSize {
		t.Errorf("%v", err)
	}
	if got := stateOf(r, 7); got != stDirty || !r.dirtyMark(7) {
		t.Errorf("state %#x, marked as dirty: %v", got, r.dirtyMark(7))
	}
	left.Store(0)
	if err := r.Sync(context.Background()); err != nil {
		t.Error(err)
	}
	if k, _ := r.store.Kernel(); k.Mem[7*FrameSize] != 107 {
		t.Errorf("the store has %d", k.Mem[7*FrameSize])
	}
}

// A write that is given up because writes are held for the moment is as good as
// none: the Sync that has left the page to it goes on when the hold ends.
func TestSyncOfPagesThatAreHeld(t *testing.T) {
	p, r := spanRegion(t, 16, 7)
	if err := r.quietPage(context.Background(), 7); err != nil {
		t.Fatal(err)
	}
	s := startSync(t, r)
	atomic.StoreUint64(&r.d.holdEnd, 0) // as unquiet, while somebody has the page in Copying
	if err := synced(t, p, r, s); err != nil {
		t.Error(err)
	}
	if k, _ := r.store.Kernel(); k.Mem[7*FrameSize] != 107 {
		t.Errorf("the store has %d", k.Mem[7*FrameSize])
	}
}

// A fault server has written the last dirty page, and the housekeeper has not heard
// of it yet: Close flushes all the same.
func TestCloseFlushesWhatServersWrote(t *testing.T) {
	s := store.NewFaulty(store.NewMemory(16*FrameSize), store.FaultyOptions{Kernel: true})
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{Writeback: Writeback{Age: -1}})
	defer p.Close()
	if r.Raw() != nil {
		t.Skip("only what a fault server writes: ", r.Raw())
	}
	// The housekeeper is in a hook of another region.
	busy, on := make(chan struct{}), make(chan struct{})
	defer close(on)
	var once sync.Once
	other, err := p.Map(store.NewMemory(FrameSize), RegionOptions{Writeback: Writeback{
		Policy: writeback.Func(func(writeback.Event, *writeback.Plan) {
			once.Do(func() { close(busy); <-on })
		}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, other, 0, 1)
	<-busy
	fill(t, r, 3, 7)
	if e := cleanPage(r.d, 3); e != 0 || stateOf(r, 3) != stResident {
		t.Fatalf("not written: %v, state %#x", unix.Errno(e), stateOf(r, 3))
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if n := s.Counts().Flushes; n == 0 {
		t.Error("closed, and what was written is not flushed")
	}
}
