//go:build linux

package pager

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/uffd"
)

// A read comes back after its page was taken from it, written, written back,
// evicted and claimed by another read: what it has in its buffer is old. The page's
// word may be in another leaf by then.
func TestAReadThatWasTakenOverIsDropped(t *testing.T) {
	t.Run("the same leaf", func(t *testing.T) { takenOver(t, false) })
	t.Run("other leaves", func(t *testing.T) { takenOver(t, true) })
}

func takenOver(t *testing.T, otherLeaves bool) {
	s := store.NewFaulty(store.NewMemory(16*FrameSize), store.FaultyOptions{})
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{Prefetch: prefetch.None()})
	defer p.Close()
	defer s.Release()
	ctx := context.Background()
	others, err := p.Map(store.NewMemory(FrameSize), RegionOptions{MaxSize: 64 << 30})
	if err != nil {
		t.Fatal(err)
	}
	taken := uint64(0) // leaves
	defer func() {
		for ; taken > 0; taken-- {
			others.d.drop((taken - 1) << leafShift)
		}
	}()
	// Others take the leaf that r has had, so that r's next is one that nobody has.
	nextLeaf := func() {
		for used := atomic.LoadUint32(&sp.leafUsed); otherLeaves && atomic.LoadUint32(&sp.leafUsed) == used; taken++ {
			if others.d.hold(taken<<leafShift) == nil {
				t.Fatal("no leaf")
			}
		}
	}
	nextLeaf()
	s.HoldDone(store.OnRead)
	defer s.Release()
	if _, ok := r.TryAcquire(0, FrameSize); ok {
		t.Fatal("resident before it was read")
	}
	eventually(t, "the first read holds its data", func() bool { return s.Counts().Held == 1 })
	if !stealOne(p.w, true, 0) { // as the fault server does under pressure
		t.Fatal("the read was not cancelled")
	}
	nextLeaf()
	fresh := bytes.Repeat([]byte{0xee}, FrameSize)
	if _, err := r.WriteAt(fresh, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.Advise(0, FrameSize, DontNeed); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the page leaves", func() bool { n, _ := r.Residency(0, FrameSize); return n == 0 })
	nextLeaf()
	got := make([]byte, FrameSize)
	done := make(chan error, 1)
	go func() {
		_, err := r.ReadAt(got, 0)
		done <- err
	}()
	eventually(t, "the second read holds its data", func() bool { return s.Counts().Held == 2 })
	s.Step(1) // the old one
	eventually(t, "the old read has ended", func() bool { return s.Counts().Held == 1 && p.inflight.Load() == 1 })
	if n, _ := r.Residency(0, FrameSize); n != 0 {
		t.Error("the page was installed by a read it had been taken from")
	}
	s.Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, fresh) {
		t.Errorf("read % x…, want % x…", got[:8], fresh[:8])
	}
}

// A large page of which a part is there already, from an install that ended
// half way, is installed whole.
func TestInstallOverALeftover(t *testing.T) {
	const pageSize = 4 * FrameSize
	m := store.NewMemory(8 * pageSize)
	k, _ := m.Kernel()
	for i := range k.Mem {
		k.Mem[i] = byte(i/FrameSize) + 1
	}
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, m, RegionOptions{PageSize: pageSize, Prefetch: prefetch.None()})
	defer p.Close()
	if sp.fd < 0 {
		t.Skip("nothing is mapped page by page here: ", r.Raw())
	}
	left := bufs.get(FrameSize)
	for i := range left.mem {
		left.mem[i] = 0x55
	}
	var mode uint64
	if sp.wp {
		mode = uffd.CopyWP
	}
	if n, e := uffd.RawCopy(sp.fd, r.d.addr(2)+FrameSize, uintptr(unsafe.Pointer(&left.mem[0])), FrameSize, mode); n != FrameSize || e != 0 {
		t.Fatalf("copy: %d, %v", n, unix.Errno(e))
	}
	bufs.put(left)
	pin, err := r.Acquire(context.Background(), 2*pageSize, pageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	for i := range 2 { // all of it: the first two are decisive, and mapped in any case
		if b := pin.Bytes()[i*FrameSize]; b != byte(8+i+1) {
			t.Errorf("frame %d reads as %#x, want %#x", i, b, 8+i+1)
		}
	}
}

// The fault server takes frames wherever it finds them, but not from under a
// pin.
func TestStealingSparesPins(t *testing.T) {
	p, r := rawMap(t, Options{Budget: 16 * FrameSize}, store.NewMemory(64*FrameSize), RegionOptions{Prefetch: prefetch.None()})
	defer p.Close()
	pin, err := r.Acquire(context.Background(), 3*FrameSize, FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	for i := range int64(8) {
		if _, err := r.ReadAt(make([]byte, 1), i*FrameSize); err != nil {
			t.Fatal(err)
		}
	}
	stolen := 0
	for stealOne(p.w, true, 0) {
		stolen++
	}
	if stolen != 7 {
		t.Errorf("%d pages were stolen, want the 7 that nobody has pinned", stolen)
	}
	if n, _ := r.Residency(3*FrameSize, FrameSize); n != FrameSize {
		t.Error("the pinned page was stolen")
	}
}

// What leaves, and what could not be read, gives its frame back once.
func TestFramesComeBack(t *testing.T) {
	s := store.NewFaulty(store.NewMemory(300*FrameSize), store.FaultyOptions{Faults: []store.Fault{
		{Ops: store.OnRead, Off: 100 * FrameSize, Len: 10 * FrameSize, Err: unix.EIO},
	}})
	p, r := rawMap(t, Options{Budget: 32 * FrameSize}, s, RegionOptions{Prefetch: prefetch.None()})
	defer p.Close()
	failed := 0
	for i := range int64(300) {
		_, err := r.ReadAt(make([]byte, 1), i*FrameSize)
		if errors.Is(err, unix.EIO) {
			failed++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if failed != 10 {
		t.Fatalf("%d reads failed, want 10", failed)
	}
	free, resident := func() int64 { return load64(&p.w.free) }, func() int64 { return load64(&r.d.resident) }
	for end := time.Now().Add(2 * time.Second); 32-free() != resident() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if 32-free() != resident() || resident() == 0 {
		t.Errorf("%d of 32 frames are free, and %d pages are resident", free(), resident())
	}
}

// The addresses of a closed region are not given to the next: who kept a slice
// meets a fault, not another file.
func TestAddressesRestAfterClose(t *testing.T) {
	p, err := New(Options{Budget: 16 * FrameSize})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	seen := map[unsafe.Pointer]bool{}
	for range 8 {
		r, err := p.Map(store.NewMemory(FrameSize), RegionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if seen[r.base] {
			t.Fatal("the addresses of a region that has just been closed")
		}
		seen[r.base] = true
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
