package pager

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// markAfter plans eight pages after each miss and marks one of them.
type markAfter struct {
	mu      sync.Mutex
	mark    int64 // the how-manieth
	touched []int64
	marked  map[int64]bool
}

func (m *markAfter) Observe(e prefetch.Event, plan *prefetch.Plan) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Kind {
	case prefetch.Touch:
		m.touched = append(m.touched, e.Page)
	case prefetch.Miss:
		mark := e.Page + 1 + m.mark
		plan.Add(e.Page+1, m.mark)
		plan.Add(mark+1, 7-m.mark)
		plan.Mark(mark)
		if m.marked == nil {
			m.marked = map[int64]bool{}
		}
		m.marked[mark] = true
	}
}

func (p *Pager) keptMarkers() int {
	p.markers.mu.Lock()
	defer p.markers.mu.Unlock()
	return len(p.markers.list)
}

func stampOf(page int64) uint64 { return uint64(page*FrameSize)*0x9E3779B97F4A7C15 + 1 }

// A marker is read with its neighbours. Whoever touches it, in whichever way,
// waits for no read, sees its bytes, and is news to the policy.
func TestMarkersAreReadWithTheirNeighbours(t *testing.T) {
	name, _ := stampFile(t, 1024*FrameSize)
	for _, way := range []string{"Acquire", "ReadAt", "Bytes", "WriteAt", "TryAcquire", "LockEventfd", "WillNeed"} {
		for _, at := range []int64{0, 3, 6} {
			policy := &markAfter{mark: at}
			s, err := store.OpenFile(name, store.FileOptions{})
			if err != nil {
				t.Fatal(err)
			}
			p, r := rawMap(t, Options{Budget: 4 << 20}, s, RegionOptions{Private: true, Prefetch: policy})
			if way == "Bytes" && r.Raw() != nil {
				p.Close()
				continue
			}
			touchAll(t, r, "Acquire", []int64{100})
			eventually(t, "what was planned is there", func() bool {
				n, _ := r.Residency(100*FrameSize, 8*FrameSize)
				return n == 7*FrameSize && p.keptMarkers() == 1
			})
			if n := p.Stats().Reads; n != 2 {
				t.Errorf("%s %d: %d reads of a page and 7 more", way, at, n)
			}
			page := 101 + at
			switch way {
			case "WriteAt":
				if _, err := r.WriteAt([]byte{1}, page*FrameSize+100); err != nil {
					t.Fatal(err)
				}
			case "TryAcquire":
				eventually(t, "TryAcquire gets the marker", func() bool {
					pin, ok := r.TryAcquire(page*FrameSize, 1)
					pin.Release()
					return ok
				})
			case "LockEventfd":
				l, err := r.LockEventfd(page*FrameSize, 1, -1)
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Wait(context.Background()); err != nil {
					t.Fatal(err)
				}
				l.Unlock()
			case "WillNeed":
				if err := r.Advise(page*FrameSize, 1, WillNeed); err != nil {
					t.Fatal(err)
				}
				eventually(t, "WillNeed maps the marker", func() bool {
					n, _ := r.Residency(page*FrameSize, FrameSize)
					return n == FrameSize
				})
			default:
				touchAll(t, r, way, []int64{page})
			}
			b := make([]byte, 8)
			if _, err := r.ReadAt(b, page*FrameSize); err != nil || binary.LittleEndian.Uint64(b) != stampOf(page) {
				t.Errorf("%s %d: the marker has other bytes, %v", way, at, err)
			}
			// (A touch whose thread is made to wait is served by a read of its own.)
			if n := p.Stats().Reads; n != 2 && way != "Bytes" {
				t.Errorf("%s %d: %d reads when the marker was touched", way, at, n)
			}
			if way == "Bytes" { // of what a thread touched that waited the housekeeper tells
				eventually(t, "the policy hears of the touch", func() bool {
					policy.mu.Lock()
					defer policy.mu.Unlock()
					return len(policy.touched) > 0 || policy.marked[page+1+at]
				})
			}
			policy.mu.Lock()
			if len(policy.touched) == 0 && !policy.marked[page+1+at] || len(policy.touched) > 0 && policy.touched[0] != page {
				t.Errorf("%s %d: touches of %v are news, want %d", way, at, policy.touched, page)
			}
			policy.mu.Unlock()
			if n := p.keptMarkers(); n != 0 && way != "Bytes" {
				t.Errorf("%s %d: %d markers are kept", way, at, n)
			}
			p.Close()
		}
	}
}

// Markers that nobody touches are in nobody's way: not in Close's, Discard's,
// Resize's or SetBudget's, nor in that of those who need room.
func TestMarkersGiveWay(t *testing.T) {
	const pages = 4096
	limit := int64(pages / markerShare)
	for _, c := range []struct {
		what string
		do   func(ctx context.Context, p *Pager, r *Region) error
		left int64
	}{
		{"nothing", func(context.Context, *Pager, *Region) error { return nil }, limit},
		{"Discard", func(ctx context.Context, _ *Pager, r *Region) error { return r.Discard(ctx, 0, r.Len()) }, 0},
		{"Resize", func(ctx context.Context, _ *Pager, r *Region) error { return r.Resize(ctx, 8*FrameSize) }, 0},
		{"SetBudget", func(_ context.Context, p *Pager, _ *Region) error { return p.SetBudget(16 * FrameSize) }, 16},
		{"Acquire", func(ctx context.Context, p *Pager, r *Region) error {
			n := p.Stats().Pinnable
			pin, err := r.Acquire(ctx, 0, n)
			if err != nil {
				return err
			}
			defer pin.Release()
			// The rest of the budget is read over and over again.
			return r.View(ctx, func(mem []byte) error {
				sum := byte(0)
				for at := n; at < int64(len(mem)); at += FrameSize {
					sum += mem[at]
				}
				_ = sum
				return nil
			})
		}, limit},
	} {
		if c.what == "Acquire" && sp.fd < 0 {
			continue // there is no View
		}
		p, r := rawMap(t, Options{Budget: pages * FrameSize}, store.NewMemoryOf(make([]byte, pages*FrameSize)), RegionOptions{Prefetch: &markAfter{mark: 2}})
		for page := int64(0); page+8 < pages; page += 9 {
			touchAll(t, r, "Acquire", []int64{page})
		}
		eventually(t, c.what+": markers are kept", func() bool { return int64(p.keptMarkers()) == limit })
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if err := c.do(ctx, p, r); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		cancel()
		if n := int64(p.keptMarkers()); n > c.left {
			t.Errorf("%s: %d markers are kept, want at most %d", c.what, n, c.left)
		}
		closed := make(chan error, 1)
		go func() { closed <- p.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: Close waits for markers", c.what)
		}
		if n := p.keptMarkers(); n != 0 {
			t.Errorf("%s: %d markers are left of a closed pager", c.what, n)
		}
	}
}

// Whatever happens to pages that are markers at the moment, everybody reads
// what was written last.
func TestMarkersUnderWork(t *testing.T) {
	const pages, workers, turns = 2048, 4, 1000
	type truth struct{ page, version uint64 }
	for _, seed := range []uint64{1, 2} {
		p, r := rawMap(t, Options{Budget: 1 << 20}, store.NewMemoryOf(make([]byte, pages*FrameSize)), RegionOptions{Prefetch: &markAfter{mark: int64(seed) * 2}})
		var all sync.WaitGroup
		for w := range uint64(workers) {
			all.Go(func() {
				rng := rand.New(rand.NewPCG(seed, w))
				var version [pages]uint64
				b := make([]byte, FrameSize)
				check := func(page uint64, b []byte) {
					if got := (truth{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}); version[page] == 0 && got != (truth{}) || version[page] != 0 && got != (truth{page, version[page]}) {
						t.Errorf("page %d is %v, want version %d", page, got, version[page])
					}
				}
				at := rng.Uint64N(pages)
				for turn := range turns {
					if at++; rng.IntN(8) == 0 {
						at = rng.Uint64N(pages)
					}
					page := at%pages/workers*workers + w // everybody has his own
					off := int64(page * FrameSize)
					var err error
					switch what := rng.IntN(64); {
					case what < 20:
						if _, err = r.ReadAt(b[:16], off); err == nil {
							check(page, b)
						}
					case what < 30:
						var pin Pin
						if pin, err = r.Acquire(context.Background(), off, FrameSize); err == nil {
							check(page, pin.Bytes())
							pin.Release()
						}
					case what < 40 && r.Raw() == nil:
						check(page, r.Bytes()[off:])
					case what < 45:
						if pin, ok := r.TryAcquire(off, FrameSize); ok {
							check(page, pin.Bytes())
							pin.Release()
						}
					case what < 60:
						version[page] = uint64(turn) + 1
						clear(b)
						binary.LittleEndian.PutUint64(b, page)
						binary.LittleEndian.PutUint64(b[8:], version[page])
						n := FrameSize
						if what%2 == 0 {
							n = 16 // a part: what is there is read first
						}
						_, err = r.WriteAt(b[:n], off)
					case what == 60:
						version[page] = 0
						err = r.Discard(context.Background(), off, FrameSize)
					case what == 61:
						err = r.Advise(off, 64*FrameSize, []Advice{DontNeed, WillNeed, Cold}[rng.IntN(3)])
						if off+64*FrameSize > pages*FrameSize {
							err = nil
						}
					case what == 62:
						err = p.SetBudget([]int64{256, 512, 1024}[rng.IntN(3)] << 10)
						if errors.Is(err, ErrBudget) {
							err = nil
						}
					default:
						err = r.Sync(context.Background())
					}
					if err != nil {
						t.Errorf("worker %d, turn %d: %v", w, turn, err)
						return
					}
				}
			})
		}
		all.Wait()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Somebody who comes between the read of a marker and its being kept gets it.
func TestMarkerWantedWhileItIsRead(t *testing.T) {
	p, r := rawMap(t, Options{Budget: 4 << 20}, store.NewMemory(64*FrameSize), RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	for page := range uint64(8) {
		if p.reserve(r, 1) != roomMade {
			t.Fatal("no room")
		}
		pw, gen, got := r.d.claim(page, flagPrefetched|flagMark)
		if got != claimed {
			t.Fatal("not claimed")
		}
		if page%2 == 0 {
			p.keepMarker(r, page, gen, make([]byte, FrameSize))
			touchAll(t, r, "Acquire", []int64{int64(page)})
			continue
		}
		read := make(chan error, 1)
		go func() {
			_, err := r.ReadAt(make([]byte, 1), int64(page)*FrameSize)
			read <- err
		}()
		eventually(t, "somebody waits", func() bool { return bare.Load64(pw)&flagWaited != 0 })
		p.keepMarker(r, page, gen, make([]byte, FrameSize))
		select {
		case err := <-read:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("nobody told who waited for the marker")
		}
	}
}
