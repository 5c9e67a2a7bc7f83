//go:build linux && uffdpager_invariants

package pager

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
)

// quietRegion has page 0 dirty, page 1 resident, page 2 absent.
func quietRegion(t *testing.T) (*Pager, *Region) {
	t.Helper()
	p, err := New(Options{Budget: 64 * FrameSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	r, err := p.Map(store.NewMemory(64*FrameSize), RegionOptions{Writeback: Writeback{Age: -1, DirtyShare: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.WriteAt([]byte("dirty"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(make([]byte, 1), FrameSize); err != nil {
		t.Fatal(err)
	}
	return p, r
}

func TestCheckQuietHoldsWhereAllIsWell(t *testing.T) {
	p, r := quietRegion(t)
	if err := p.CheckQuiet(); err != nil {
		t.Fatal(err)
	}
	pin, err := r.Acquire(context.Background(), FrameSize, FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	if err := p.CheckQuiet(); err != nil {
		t.Fatal(err)
	}
}

// A notice that is not urgent lies there as long as the housekeeper sleeps.
func TestCheckQuietHasNoticesRead(t *testing.T) {
	p, err := New(Options{Budget: 64 * FrameSize})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := p.Map(store.NewMemory(4*FrameSize), RegionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); bare.Load32(&p.w.sleeping) != asleep; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the housekeeper does not go to sleep")
		}
	}
	p.w.notify(noticeLoaded, r.d.index, 0, false)
	if err := p.CheckQuiet(); err != nil {
		t.Fatal(err)
	}
}

// TestCheckQuietFindsDamage: each kind of damage is found, and the state is put
// right again afterwards.
func TestCheckQuietFindsDamage(t *testing.T) {
	p, r := quietRegion(t)
	wordOf := func(page uint64) *word {
		pw, _ := r.d.look(page)
		return pw
	}
	dirty, clean := wordOf(0), wordOf(1)
	if *dirty&stateMask != stDirty || *clean&stateMask != stResident {
		t.Fatalf("words %#x, %#x", *dirty, *clean)
	}
	leaf := metaOf(uint32(bare.Load64(r.d.dirEntry(0))) & dirLeafMask)
	swap := func(p *word, w word) func() {
		old := bare.Load64(p)
		bare.Store64(p, w)
		return func() { bare.Store64(p, old) }
	}
	for _, c := range []struct {
		name, want string
		damage     func() (repair func())
	}{
		{"a frame is lost", "frames are free", func() func() {
			p.w.giveFrames(-1)
			return func() { p.w.giveFrames(1) }
		}},
		{"a credit is lost", "credits are left", func() func() {
			add64(&p.w.credits, -1)
			return func() { add64(&p.w.credits, 1) }
		}},
		{"a dirty page is not counted", "counted as dirty", func() func() {
			r.d.countClean()
			return r.d.countDirty
		}},
		{"a dirty page is not marked", "its leaf does not say so", func() func() {
			bare.And64(&leaf.dirty, ^uint64(1))
			return func() { bare.Or64(&leaf.dirty, 1) }
		}},
		{"a clean page is writable", "clean, and writable", func() func() {
			protectRange(r.d.addr(1), FrameSize, false)
			return func() { protectRange(r.d.addr(1), FrameSize, true) }
		}},
		{"a dirty page is protected", "dirty, and protected", func() func() {
			protectRange(r.d.addr(0), FrameSize, true)
			return func() { protectRange(r.d.addr(0), FrameSize, false) }
		}},
		{"a page without a state", "no such state", func() func() { return swap(clean, *clean|stateMask) }},
		{"a write pin alone", "a write pin without a pin", func() func() { return swap(clean, *clean|flagWritePin) }},
		{"a pin without a credit", "credits are left", func() func() { return swap(clean, *clean+pinOne) }},
		{"a group counts one more", "group 0 counts", func() func() {
			bare.Add64(r.d.dirEntry(0), dirCountOne)
			return func() { bare.Add64(r.d.dirEntry(0), ^uint64(dirCountOne-1)) }
		}},
		{"somebody waits", "somebody waits for page 1", func() func() {
			op := newOp(r)
			op.one[0] = pageRange{1, 1}
			op.ranges = op.one[:]
			p.enlist(op.waiterFor(1))
			return func() {
				b := p.bucketOf(r, 1)
				b.mu.Lock()
				b.take(r, 1)
				b.mu.Unlock()
			}
		}},
		{"the policy has forgotten a page", "their policy knows", func() func() {
			p.lockEvict()
			defer p.evictMu.Unlock()
			r.domain.policy.Remove(pageKey(r.d, 1))
			return func() {
				p.lockEvict()
				defer p.evictMu.Unlock()
				r.domain.policy.Install(pageKey(r.d, 1), 0)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			repair := c.damage()
			err := p.checkQuiet()
			repair()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("found %v, want an error that says %q", err, c.want)
			}
			if err := p.checkQuiet(); err != nil {
				t.Errorf("after the repair: %v", err)
			}
		})
	}
}

func TestPinAfterRelease(t *testing.T) {
	_, r := quietRegion(t)
	ctx := context.Background()
	for _, c := range []struct {
		name string
		use  func(Pin)
	}{{"Bytes", func(p Pin) { p.Bytes() }}, {"Release", Pin.Release}} {
		t.Run(c.name, func(t *testing.T) {
			// Another pin on the page hides the second Release from its count.
			other, err := r.Acquire(ctx, FrameSize, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Release()
			pin, err := r.Acquire(ctx, FrameSize, 1)
			if err != nil {
				t.Fatal(err)
			}
			kept := pin
			pin.Release()
			defer func() {
				if v := recover(); v != errPinReleased {
					t.Errorf("%s after Release: %v, want %v", c.name, v, errPinReleased)
				}
			}()
			c.use(kept)
		})
	}
}
