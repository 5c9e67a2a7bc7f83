//go:build linux

package pager

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// What reading ahead comes to, in counts: how fast that is depends on the
// device, which compare measures.

// waits is how many of n touches in order may wait for a page in spite of
// reading ahead. A touch of raw memory that stops its thread stops its P too,
// which reading ahead needs: how far it gets in the meantime is up to the
// machine, and nothing is promised.
func waits(s Stats, way string, n int64) int64 {
	if way == "Bytes" && s.ParkMode != coro.InPlace {
		return n
	}
	return max(n/50, 90)
}

// touchAll reads one byte of each page in order, by the named way.
func touchAll(t *testing.T, r *Region, way string, order []int64) {
	t.Helper()
	buf := make([]byte, 1)
	for _, page := range order {
		switch way {
		case "Bytes":
			buf[0] += r.Bytes()[page*FrameSize]
		case "ReadAt":
			if _, err := r.ReadAt(buf, page*FrameSize); err != nil {
				t.Fatal(err)
			}
		default:
			pin, err := r.Acquire(context.Background(), page*FrameSize, FrameSize)
			if err != nil {
				t.Fatal(err)
			}
			pin.Release()
		}
	}
}

func ascending(n int64) []int64 {
	l := make([]int64, n)
	for i := range l {
		l[i] = int64(i)
	}
	return l
}

// A scan reads every page once, with long reads, and waits for few of them; the
// budget holds.
func TestScanIsReadAhead(t *testing.T) {
	const pages = 8192
	up := ascending(pages)
	down := make([]int64, pages)
	for i := range down {
		down[i] = pages - 1 - int64(i)
	}
	for _, way := range []string{"Acquire", "ReadAt", "Bytes"} {
		for _, c := range []struct {
			what  string
			order []int64
		}{{"forward", up}, {"backward", down}} {
			if way == "ReadAt" && c.what == "backward" {
				continue // as Acquire
			}
			t.Run(way+" "+c.what, func(t *testing.T) {
				p, r := rawMap(t, Options{Budget: 16 << 20}, store.NewMemory(pages*FrameSize), RegionOptions{ReadOnly: true})
				defer p.Close()
				if way == "Bytes" && r.Raw() != nil {
					t.Skip(r.Raw())
				}
				touchAll(t, r, way, c.order)
				s := p.Stats()
				t.Logf("%d misses, %d reads, %d read ahead, %d used, %d unused, %d late", s.Misses, s.Reads, s.Prefetch.Issued, s.Prefetch.Used, s.Prefetch.Unused, s.Prefetch.Late)
				limit := waits(s, way, pages)
				if waited := s.Misses + s.Joined; waited > limit {
					t.Errorf("%d of %d pages were waited for", waited, pages)
				}
				if s.Reads > limit+pages/200 && limit < pages {
					t.Errorf("%d reads for %d pages", s.Reads, pages)
				}
				more := int64(3) // of 100
				if way == "Bytes" && s.ParkMode != coro.InPlace {
					more = 10 // reads that are under way are taken over, and begun anew
				}
				if s.ReadBytes > pages*FrameSize*(100+more)/100 {
					t.Errorf("%d bytes read of %d", s.ReadBytes, pages*FrameSize)
				}
				if s.PeakResident > s.Budget {
					t.Errorf("%d bytes resident, the budget is %d", s.PeakResident, s.Budget)
				}
				if way != "Bytes" && s.Prefetch.Used < s.Prefetch.Issued*95/100 {
					t.Errorf("%d of %d pages read ahead were used", s.Prefetch.Used, s.Prefetch.Issued)
				}
			})
		}
	}
}

// The default policy reads next to nothing more than random work asks for: by a
// hundredth of the 3 % it may where pages are as far apart as in a file much larger
// than memory; and little more where they are so close that chance makes streams all the
// time. What is asserted is near to what there is, on a memory store the same in every
// run, so that each of the things that keep it so low is missed when it is gone.
func TestRandomWorkIsLeftAlone(t *testing.T) {
	for _, c := range []struct {
		way            string
		pages, touches int64
		most           float64 // read ahead, of what is missed
	}{
		{"Acquire", 1 << 16, 20_000, 0.001},
		{"Bytes", 1 << 16, 6_000, 0.001},
		{"Acquire", 1 << 14, 40_000, 0.007},
		{"Acquire", 1 << 12, 40_000, 0.007},
		{"Bytes", 1 << 12, 20_000, 0.025},
	} {
		if testing.Short() && c.touches > 20_000 {
			continue
		}
		rng := rand.New(rand.NewPCG(1, 2))
		order := make([]int64, c.touches)
		for i := range order {
			order[i] = rng.Int64N(c.pages)
		}
		p, r := rawMap(t, Options{Budget: c.pages / 16 * FrameSize}, store.NewMemory(c.pages*FrameSize), RegionOptions{ReadOnly: true})
		if c.way == "Bytes" && r.Raw() != nil {
			p.Close()
			continue
		}
		touchAll(t, r, c.way, order)
		s := p.Stats()
		if s.ParkMode != coro.InPlace {
			c.most *= 2 // pages are taken over and stolen as it comes
		}
		t.Logf("%s: %d misses, %d read ahead", c.way, s.Misses, s.Prefetch.Issued)
		if useful := float64(s.Misses * FrameSize); float64(s.ReadBytes) > useful*(1+c.most) {
			t.Errorf("%s, %d touches of %d pages: %d bytes read for %d useful ones", c.way, c.touches, c.pages, s.ReadBytes, int64(useful))
		}
		p.Close()
	}
}

// So it is where a thousand goroutines wait, who come to the markers of false starts
// more often than one does. What chance does once in thirty runs it may do twice.
func TestRandomWorkOfManyIsLeftAlone(t *testing.T) {
	for try := range 3 {
		s := randomCrowd(t)
		t.Logf("%d misses, %d read ahead", s.Misses, s.Prefetch.Issued)
		switch {
		case s.Prefetch.Issued <= s.Misses*3/100:
			return
		case try == 2:
			t.Errorf("%d pages read ahead for %d random misses, and as many before", s.Prefetch.Issued, s.Misses)
		}
	}
}

// randomCrowd has a thousand goroutines load bytes at random.
func randomCrowd(t *testing.T) Stats {
	const pages, crowd, each = 1 << 16, 1000, 150
	slow := store.NewFaulty(store.NewMemory(pages*FrameSize), store.FaultyOptions{Latency: time.Millisecond, Kernel: true})
	p, r := rawMap(t, Options{Budget: pages / 16 * FrameSize}, slow, RegionOptions{ReadOnly: true})
	defer p.Close()
	if r.Raw() != nil || p.Stats().ParkMode != coro.InPlace {
		t.Skip("no goroutine waits in place here")
	}
	var wg sync.WaitGroup
	for i := range crowd {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			sum := byte(0)
			for range each {
				sum += r.Bytes()[rng.Int64N(pages)*FrameSize]
			}
			if sum != 0 {
				t.Error("a page is not empty")
			}
		})
	}
	wg.Wait()
	return p.Stats()
}

// A random working set, recorded by one goroutine with its first touches, is
// there before it is asked for at the next start.
func TestReplayOfARecordedRun(t *testing.T) {
	const pages, set = 1 << 16, 3000
	order := make([]int64, 0, set)
	for _, page := range rand.New(rand.NewPCG(3, 4)).Perm(pages)[:set] {
		order = append(order, int64(page))
	}
	for _, way := range []string{"Acquire", "Bytes"} {
		run := func(policy prefetch.Policy) Stats {
			p, r := rawMap(t, Options{Budget: 64 << 20}, store.NewMemory(pages*FrameSize), RegionOptions{ReadOnly: true, Prefetch: policy})
			defer p.Close()
			if way == "Bytes" && r.Raw() != nil {
				t.Skip(r.Raw())
			}
			touchAll(t, r, way, order)
			return p.Stats()
		}
		var trace bytes.Buffer
		recorder := prefetch.Record(&trace)
		first := run(recorder)
		least := int64(set)
		if way == "Bytes" && first.ParkMode != coro.InPlace {
			// Where threads wait, what they have waited for is noted in a ring, of
			// which a housekeeper without a P misses some.
			least = set / 2
		}
		if err := recorder.Close(); err != nil || recorder.Pages() < least || recorder.Pages() > set {
			t.Fatalf("%s: recorded %d of %d pages, %v", way, recorder.Pages(), set, err)
		}
		replay, err := prefetch.Replay(&trace, prefetch.ReplayOptions{PageSize: FrameSize})
		if err != nil {
			t.Fatal(err)
		}
		again := run(replay)
		t.Logf("%s: %d misses, then %d with %d read ahead", way, first.Misses, again.Misses, again.Prefetch.Issued)
		if first.Misses != set || again.Misses+again.Joined > waits(again, way, set) {
			t.Errorf("%s: %d misses recorded, %d when replayed", way, first.Misses, again.Misses+again.Joined)
		}
		if again.ReadBytes > set*FrameSize*103/100 {
			t.Errorf("%s: %d bytes read for %d useful ones", way, again.ReadBytes, set*FrameSize)
		}
	}
}

// A program that has filled its memory with something else, which is in the trace too
// but not in that order, finds the pages there all the same when it comes to what was
// recorded, and nothing that was read ahead is evicted before its use.
func TestReplayAfterSomethingElse(t *testing.T) {
	const pages, set, touches, budget = 1 << 15, 20_000, 8_000, 4096
	order := make([]int64, 0, set)
	for _, page := range rand.New(rand.NewPCG(5, 6)).Perm(pages)[:set] {
		order = append(order, int64(page))
	}
	for _, way := range []string{"Acquire", "Bytes"} {
		var trace bytes.Buffer
		if _, err := (&prefetch.Trace{PageSize: FrameSize, Pages: order}).WriteTo(&trace); err != nil {
			t.Fatal(err)
		}
		replay, err := prefetch.Replay(&trace, prefetch.ReplayOptions{PageSize: FrameSize})
		if err != nil {
			t.Fatal(err)
		}
		p, r := rawMap(t, Options{Budget: budget * FrameSize}, store.NewMemory(pages*FrameSize), RegionOptions{ReadOnly: true, Prefetch: replay})
		if way == "Bytes" && r.Raw() != nil {
			p.Close()
			continue
		}
		if _, err := r.ReadAt(make([]byte, budget*FrameSize), 0); err != nil {
			t.Fatal(err)
		}
		before := p.Stats()
		touchAll(t, r, way, order[:touches])
		s := p.Stats()
		p.Close()
		missed, read := s.Misses+s.Joined-before.Misses-before.Joined, (s.ReadBytes-before.ReadBytes)/FrameSize
		t.Logf("%s: %d of %d missed, %d read, %d evicted without use", way, missed, touches, read, s.Prefetch.Unused-before.Prefetch.Unused)
		if most := max(touches*3/100, waits(s, way, touches)); missed > most {
			t.Errorf("%s: %d of %d pages were missed or waited for", way, missed, touches)
		}
		if s.ParkMode == coro.InPlace && read > touches*105/100+budget/8 {
			t.Errorf("%s: %d pages read for %d", way, read, touches)
		}
	}
}
