//go:build linux

package pager

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// named collects what the detector tells.
type named struct {
	mu   sync.Mutex
	list []Wedge
}

func (n *named) listener() *EventListener {
	return &EventListener{Wedged: func(w Wedge) {
		n.mu.Lock()
		n.list = append(n.list, w)
		n.mu.Unlock()
	}}
}

func (n *named) count(kind WedgeKind, off int64) (c int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.list {
		if w.Kind == kind && (off < 0 || w.Offset <= off && off < w.Offset+w.Len) {
			c++
		}
	}
	return c
}

const wedgeLimit = 80 * time.Millisecond

// inStats: Stats names it now.
func inStats(p *Pager, kind WedgeKind, name string) bool {
	for _, w := range p.Stats().Wedged {
		if w.Kind == kind && strings.Contains(w.Name, name) && w.Age >= wedgeLimit {
			return true
		}
	}
	return false
}

// A pin that is kept is named once, with where it is; a page that is pinned
// and released all the time is not; and what has ended is not named any more.
func TestWedgedPins(t *testing.T) {
	var n named
	p, r, _ := mapMemory(t, 100, Options{Budget: 64 * FrameSize, WedgeLimit: wedgeLimit, Events: n.listener()}, store.FaultyOptions{}, RegionOptions{})
	pin, err := r.Acquire(context.Background(), 7*FrameSize, 3*FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	hot := func() {
		p, err := r.Acquire(context.Background(), 50*FrameSize, 1)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		p.Release()
	}
	eventually(t, "the pin is named", func() bool { hot(); return n.count(WedgedPin, 8*FrameSize) > 0 })
	if table := p.Stats().String(); !strings.Contains(table, "\nwedged           pin of 12288 bytes at offset 28672 of faulty memory for ") {
		t.Errorf("the table does not name it:\n%s", table)
	}
	if w := p.Stats().Wedged; len(w) != 1 || w[0].Offset != 7*FrameSize || w[0].Len != 3*FrameSize || w[0].Store != "faulty memory" {
		t.Errorf("Stats names %v, want one pin of pages 7 to 9", w)
	}
	for end := time.Now().Add(3 * wedgeLimit); time.Now().Before(end); {
		hot()
	}
	if c := n.count(WedgedPin, -1); c != 1 {
		t.Errorf("named %d times: %v", c, n.list)
	}
	pin.Release()
	eventually(t, "nothing is named", func() bool { return len(p.Stats().Wedged) == 0 })
}

// I/O that does not end, and who waits for it.
func TestWedgedIO(t *testing.T) {
	var n named
	p, r, s := mapMemory(t, 100, Options{Budget: 64 * FrameSize, WedgeLimit: wedgeLimit, Events: n.listener()}, store.FaultyOptions{}, RegionOptions{})
	touchPages(t, r, 3)
	s.Hold(0)
	defer s.Release()
	op, err := r.SyncEventfd(3*FrameSize, 1, -1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := r.LockEventfd(9*FrameSize, 1, -1)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the read, the write and the fault are named", func() bool {
		return n.count(WedgedRead, 9*FrameSize) > 0 && n.count(WedgedWrite, 3*FrameSize) > 0 && n.count(WedgedFault, 9*FrameSize) > 0
	})
	if !inStats(p, WedgedFault, "LockEventfd") {
		t.Errorf("Stats: %v", p.Stats().Wedged)
	}
	s.Step(-1) // the flush comes now
	eventually(t, "the flush is named", func() bool { return n.count(WedgedFlush, -1) > 0 })
	s.Release()
	if err := errors.Join(op.Wait(context.Background()), l.Wait(context.Background())); err != nil {
		t.Fatal(err)
	}
	l.Unlock()
	eventually(t, "nothing is named", func() bool { return len(p.Stats().Wedged) == 0 })
}

// A commit whose record, and one whose flush does not end.
func TestWedgedCommit(t *testing.T) {
	var n named
	p := newPager(t, Options{Budget: 64 * FrameSize, WedgeLimit: wedgeLimit, Events: n.listener()})
	needProtection(t)
	js := store.NewFaulty(store.NewMemory(1<<20), store.FaultyOptions{})
	r, err := p.Map(store.NewMemory(100*FrameSize), RegionOptions{Durability: Atomic, Journal: JournalOptions{Store: js, Limit: 1 << 20, Interval: -1}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer js.Release()
	if _, err := r.WriteAt([]byte{1}, 7*FrameSize); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(context.Background()); err != nil { // the keeper has looked at the new journal
		t.Fatal(err)
	}
	if _, err := r.WriteAt([]byte{2}, 7*FrameSize); err != nil {
		t.Fatal(err)
	}
	js.Hold(0)
	defer js.Release()
	got := make(chan error, 1)
	go func() { got <- r.Commit(context.Background()) }()
	eventually(t, "image and record are named", func() bool {
		return n.count(WedgedWrite, 7*FrameSize) > 0 && inStats(p, WedgedWrite, "commit record")
	})
	js.Step(-1) // the flush comes now
	eventually(t, "the flush is named", func() bool { return inStats(p, WedgedFlush, "journal") })
	if inStats(p, WedgedWrite, "") {
		t.Errorf("writes that have ended are named: %v", p.Stats().Wedged)
	}
	js.Release()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is named", func() bool { return len(p.Stats().Wedged) == 0 })
}

type slowEvict struct {
	evict.Policy
	gate chan struct{}
}

func (e *slowEvict) Evict(n int, take func(evict.Page) evict.Verdict) int {
	<-e.gate
	return e.Policy.Evict(n, take)
}

// A hook or policy that blocks is named, whichever it is.
func TestWedgedHooks(t *testing.T) {
	for _, name := range []string{"BeforeWrite", "Verify", "Seal", "prefetch.Policy", "evict.Policy.Evict", "EventListener"} {
		t.Run(name, func(t *testing.T) {
			gate := make(chan struct{})
			var once sync.Once
			open := func() { once.Do(func() { close(gate) }) }
			var o RegionOptions
			var po = Options{Budget: 32 * FrameSize, WedgeLimit: wedgeLimit}
			switch name {
			case "BeforeWrite":
				o.Writeback.BeforeWrite = func(PageRun) bool { <-gate; return true }
			case "Verify":
				o.Verify = func(int64, []byte) error { <-gate; return nil }
			case "Seal":
				o.Seal = func(int64, []byte) error { <-gate; return nil }
			case "prefetch.Policy":
				o.Prefetch = prefetch.Func(func(prefetch.Event, *prefetch.Plan) { <-gate })
			case "evict.Policy.Evict":
				o.Evict = &slowEvict{evict.NewFIFO(), gate}
			case "EventListener":
				po.Events = &EventListener{Evicted: func(int) { <-gate }}
			}
			p, r, _ := mapMemory(t, 200, po, store.FaultyOptions{}, o)
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = r.WriteAt(make([]byte, FrameSize), 0)
				for pg := range int64(100) {
					_, _ = r.ReadAt(make([]byte, 1), pg*FrameSize)
				}
				_ = r.Sync(context.Background())
			}()
			defer func() { open(); <-done }()
			eventually(t, name+" is named", func() bool { return inStats(p, WedgedHook, name) })
		})
	}
}

// A thread that waits for the fault server, and a parked goroutine, for a page
// that cannot be read.
func TestWedgedRawAccess(t *testing.T) {
	for _, mode := range []coro.Mode{coro.Auto, coro.Block} {
		t.Run(mode.String(), func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "short")
			if err := os.WriteFile(name, make([]byte, 16*FrameSize), 0o600); err != nil {
				t.Fatal(err)
			}
			var n named
			p, r := mapFile(t, name, Options{Budget: 32 * FrameSize, Park: mode, WedgeLimit: wedgeLimit, Events: n.listener()},
				RegionOptions{ReadOnly: true, OnReadError: Wait, Prefetch: prefetch.None()})
			if r.Raw() != nil {
				t.Skip(r.Raw())
			}
			if p.Stats().ParkMode != coro.InPlace {
				noCollections(t)
			}
			if err := unix.Truncate(name, 4*FrameSize); err != nil {
				t.Fatal(err)
			}
			got := make(chan error, 1)
			go func() {
				got <- Guard(func() error { sink += r.Bytes()[9*FrameSize]; return nil })
			}()
			eventually(t, "the access is named", func() bool { return n.count(WedgedFault, 9*FrameSize) > 0 })
			if err := unix.Truncate(name, 16*FrameSize); err != nil { // the page comes back
				t.Fatal(err)
			}
			if err := <-got; err != nil {
				t.Errorf("OnReadError Wait: %v", err)
			}
			eventually(t, "nothing is named", func() bool { return len(p.Stats().Wedged) == 0 })
		})
	}
}
