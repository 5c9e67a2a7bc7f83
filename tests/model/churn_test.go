package model

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestChurn is the workload by which pagers are usually tried: writers go
// round a set of pages twice the budget, others read it behind them, and all
// come back to a hot tenth again and again. Every page carries its number
// and a count in its first and last words: a page in the wrong place, a lost
// write and a torn page all show.
func TestChurn(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	if child.Isolate(t, child.Options{Procs: 2, Deadline: duration(2*time.Minute, 5*time.Minute)}) {
		return
	}
	budget := 1000
	if fixture.Torture() {
		budget = 10000
	}
	cold, hot := 2*budget, budget/10
	path := fixture.File(t, 0, seed)
	p := fixture.Pager(t, pager.Options{Budget: int64(budget) * pager.FrameSize})
	size := int64(cold+hot) * pager.FrameSize
	r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{Size: size}), pager.RegionOptions{})
	fixture.NeedRaw(t, r)
	fixture.CollectGarbage(t)

	c := &churn{r: r, pages: make([]churnPage, cold+hot)}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// So long, and then until enough has moved: the machine may be slow.
	enough := func() bool {
		s := p.Stats()
		return s.ReadBytes+s.WrittenBytes > 10*int64(budget)*pager.FrameSize
	}
	go func() {
		time.Sleep(duration(3*time.Second, time.Minute))
		for end := time.Now().Add(40 * time.Second); !enough() && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	errs := make([]error, 16)
	var visits atomic.Int64
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			defer cancel() // the first to fail ends it
			g := newGenerator(seed, uint64(i))
			for n := i * 131; ctx.Err() == nil && errs[i] == nil; n++ {
				page, write := n%cold, i%2 == 0
				if g.intn(4, "hot") == 0 {
					page, write = cold+g.intn(hot, "page"), !write
				}
				errs[i] = pager.Guard(func() error { return c.visit(page, write) })
				visits.Add(1)
			}
		})
	}
	wg.Wait()
	stats := p.Stats()
	for i, err := range errs {
		if err != nil {
			t.Errorf("seed %d, goroutine %d: %v", seed, i, err)
		}
	}
	if err := c.all(); err != nil {
		t.Errorf("seed %d: at the end: %v", seed, err)
	}
	if !enough() {
		t.Errorf("only %d bytes moved under a budget of %d", stats.ReadBytes+stats.WrittenBytes, int64(budget)*pager.FrameSize)
	}
	t.Logf("%d visits, %d reads, %d writebacks, %d evictions", visits.Load(), stats.Reads, stats.Writebacks, stats.Evictions)
}

type churn struct {
	r     *pager.Region
	pages []churnPage
}

type churnPage struct {
	sync.RWMutex
	count uint64
}

func (c *churn) visit(page int, write bool) error {
	g := &c.pages[page]
	mem := c.r.Bytes()[page*pager.FrameSize : (page+1)*pager.FrameSize]
	if !write {
		g.RLock()
		defer g.RUnlock()
		return c.look(page, mem)
	}
	g.Lock()
	defer g.Unlock()
	if err := c.look(page, mem); err != nil {
		return err
	}
	g.count++
	for _, at := range []int{0, pager.FrameSize - 16} {
		binary.NativeEndian.PutUint64(mem[at:], uint64(page))
		binary.NativeEndian.PutUint64(mem[at+8:], g.count)
	}
	return nil
}

// look compares one page; its lock is held.
func (c *churn) look(page int, mem []byte) error {
	want := c.pages[page].count
	for _, at := range []int{0, pager.FrameSize - 16} {
		number, count := binary.NativeEndian.Uint64(mem[at:]), binary.NativeEndian.Uint64(mem[at+8:])
		if count != want || want > 0 && number != uint64(page) {
			return fmt.Errorf("page %d at %d: says page %d, count %d; want count %d", page, at, number, count, want)
		}
	}
	return nil
}

func (c *churn) all() error {
	buf := make([]byte, pager.FrameSize)
	for page := range c.pages {
		if _, err := c.r.ReadAt(buf, int64(page)*pager.FrameSize); err != nil {
			return err
		}
		if err := c.look(page, buf); err != nil {
			return err
		}
	}
	return nil
}
