//go:build linux

package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// promises is what a BeforeWrite hook has let through and nobody has written
// yet, and what the store must hold therefore.
type promises struct {
	mu    sync.Mutex
	t     testing.TB
	sums  map[int64]uint32 // page: of the contents that were let through
	model []byte
	asked int
	noes  int
	rnd   *rand.Rand
}

// ask is the hook. It takes its time, so that writers get in between.
func (p *promises) ask(run PageRun) bool {
	for range 3 {
		time.Sleep(10 * time.Microsecond)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.rnd.IntN(4) == 0 {
		p.noes++
		return false
	}
	for i := range run.N {
		pg := run.First + i
		if _, twice := p.sums[pg]; twice {
			p.t.Errorf("page %d: let through again before it was written", pg)
		}
		p.sums[pg] = crc32.ChecksumIEEE(run.Data[i*FrameSize : (i+1)*FrameSize])
	}
	return true
}

// written is told what is about to reach the store.
func (p *promises) written(off int64, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	copy(p.model[off:], b)
	for i := 0; i < len(b); i += FrameSize {
		pg := (off + int64(i)) / FrameSize
		sum, ok := p.sums[pg]
		delete(p.sums, pg)
		if !ok {
			p.t.Errorf("page %d is written, and nobody has let it through", pg)
		} else if sum != crc32.ChecksumIEEE(b[i:i+FrameSize]) {
			p.t.Errorf("page %d: what is written is not what BeforeWrite was shown", pg)
		}
	}
}

// What BeforeWrite was shown and has let through is what is written, to the
// byte, and once; whatever writers do meanwhile, and whoever wants it written,
// threads without a P included: those write nothing of such a region. So where
// every P is held by a raw store that waits for room, the hook cannot run, and
// the store ends with ErrBudget (docs/limits.md): in Block mode, and no other
// way of writing ever.
func TestBeforeWriteIsShownWhatIsWritten(t *testing.T) {
	const pages = 200
	for _, park := range []coro.Mode{coro.Auto, coro.Block} {
		t.Run(park.String(), func(t *testing.T) {
			p, err := New(Options{Budget: 32 * FrameSize, Park: park})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			see := &promises{t: t, sums: map[int64]uint32{}, model: make([]byte, pages*FrameSize), rnd: rand.New(rand.NewPCG(1, 2))}
			mem := store.NewMemory(pages * FrameSize)
			k, _ := mem.Kernel()
			s := &spyStore{Store: mem, onWrite: see.written}
			r, err := p.Map(s, RegionOptions{Prefetch: prefetch.None(), Writeback: Writeback{Age: time.Nanosecond, BeforeWrite: see.ask}})
			if err != nil {
				t.Fatal(err)
			}
			raw, blocks := r.Raw() == nil, p.Stats().ParkMode == coro.Block
			ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
			defer cancel()
			var stores, refused atomic.Int64 // raw ones
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(w), 4))
					b := make([]byte, 3*FrameSize)
					for i := 0; ctx.Err() == nil; i++ {
						off := rnd.Int64N((pages-3)*FrameSize) &^ 7
						for k := 0; k < len(b); k += 8 {
							binary.LittleEndian.PutUint64(b[k:], rnd.Uint64())
						}
						var err error
						switch what := rnd.IntN(4); {
						case what == 0:
							_, err = r.WriteAt(b[:rnd.IntN(len(b))], off)
						case what == 1 && raw:
							// Every word for itself: the page changes while it is
							// copied, shown and written.
							err = Guard(func() error {
								for k := int64(0); k < FrameSize; k += 64 {
									binary.LittleEndian.PutUint64(r.Bytes()[off+k:], uint64(i))
								}
								return nil
							})
							if blocks && errors.Is(err, ErrBudget) {
								refused.Add(1)
								err = nil
							} else if err == nil {
								stores.Add(1)
							}
						case what == 2:
							var pin Pin
							if pin, err = r.AcquireWrite(ctx, off, FrameSize); err == nil {
								copy(pin.Bytes(), b)
								time.Sleep(20 * time.Microsecond)
								pin.Release()
							}
						case what == 3 && i%50 == 0:
							err = r.Sync(ctx)
						}
						if err != nil && ctx.Err() == nil {
							t.Errorf("writer %d: %v", w, err)
							return
						}
					}
				})
			}
			wg.Wait()
			if err := r.Sync(context.Background()); err != nil {
				t.Error(err)
			}
			see.mu.Lock()
			if len(k.Mem) > 0 && !bytes.Equal(k.Mem[:pages*FrameSize], see.model) {
				t.Error("something has reached the store past Start")
			}
			if len(see.sums) != 0 {
				t.Errorf("%d pages were let through and never written", len(see.sums))
			}
			if see.asked == see.noes || see.noes == 0 {
				t.Errorf("asked %d times, %d times not yet: nothing was tested", see.asked, see.noes)
			}
			if raw && stores.Load() == 0 {
				t.Error("no raw store came to an end")
			}
			t.Logf("raw %v: asked %d times, %d times not yet, %d writes; %d raw stores, %d found no room",
				raw, see.asked, see.noes, s.writes.Load(), stores.Load(), refused.Load())
			see.mu.Unlock()
		})
	}
}
