package evict

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"pgregory.net/rapid"
)

// policies are all that the package offers; whatever holds for evict.Policy
// must hold for each.
var policies = []struct {
	name string
	new  func() Policy
}{
	{"FIFO", NewFIFO},
	{"Clock", NewClock},
	{"S3FIFO", NewS3FIFO},
}

func tableOf(p Policy) *table {
	switch p := p.(type) {
	case *fifo:
		return &p.t
	case *s3fifo:
		return &p.t
	}
	panic(fmt.Sprintf("no table in %T", p))
}

// checkTable says what is wrong with the slab, the queues or the index.
func checkTable(t *table) error {
	onQueues := 0
	for q := range t.queues {
		l := &t.queues[q]
		n, prev := 0, none
		for s := l.head; s != none; s = t.at(s).next {
			nd := t.at(s)
			if nd.prev != prev || nd.queue != queueID(q) {
				return fmt.Errorf("queue %d: node %d has prev %d (want %d) and queue %d", q, s, nd.prev, prev, nd.queue)
			}
			if queueID(q) != freeList {
				if found := t.index.find(t, nd.page); found != s {
					return fmt.Errorf("index has %d for page %d of node %d", found, nd.page, s)
				}
				onQueues++
			}
			prev = s
			if n++; n > int(t.high) {
				return fmt.Errorf("queue %d is a circle", q)
			}
		}
		if l.tail != prev || l.n != n {
			return fmt.Errorf("queue %d: tail %d n %d, want %d and %d", q, l.tail, l.n, prev, n)
		}
	}
	if int(t.index.n) != onQueues {
		return fmt.Errorf("index counts %d nodes of %d", t.index.n, onQueues)
	}
	if onQueues+t.queues[freeList].n != int(t.high) {
		return fmt.Errorf("%d nodes and %d holes in %d slots", onQueues, t.queues[freeList].n, t.high)
	}
	return nil
}

// Whatever the pager says and answers: only resident pages are offered, none
// is lost, Len is exact, Evict ends after about two rounds, and when it comes
// back short it has asked for every page.
func TestPolicyKeepsItsPromises(t *testing.T) {
	// Histories are cheap; rapid's default of 100 is meant for dearer ones.
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		checks := "1000"
		if os.Getenv("UFFDPAGER_TORTURE") != "" {
			checks = "300000"
		}
		if err := f.Value.Set(checks); err != nil {
			t.Fatal(err)
		}
	}
	for _, pol := range policies {
		t.Run(pol.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { historyOf(t, pol.new()) })
		})
	}
}

func historyOf(t *rapid.T, p Policy) {
	capacity := rapid.OneOf(rapid.IntRange(1, 8), rapid.IntRange(9, 200)).Draw(t, "capacity")
	p.SetCapacity(capacity)
	page := rapid.Uint64Range(0, uint64(2*capacity+4))
	resident := map[Page]bool{}

	draw := func(t *rapid.T) Page { return Page(page.Draw(t, "page")) }
	t.Repeat(map[string]func(*rapid.T){
		"install": func(t *rapid.T) {
			pg := draw(t)
			p.Install(pg, Reason(rapid.IntRange(0, 2).Draw(t, "why")))
			resident[pg] = true
		},
		"remove": func(t *rapid.T) {
			pg := draw(t)
			p.Remove(pg)
			delete(resident, pg)
		},
		"cold": func(t *rapid.T) { p.Cold(draw(t)) },
		"drop": func(t *rapid.T) {
			if d, ok := p.(Dropper); ok {
				d.Drop(draw(t))
			} else {
				t.Skip("no Dropper")
			}
		},
		"capacity": func(t *rapid.T) {
			p.SetCapacity(rapid.IntRange(1, 2*capacity).Draw(t, "pages"))
		},
		"evict": func(t *rapid.T) {
			n := rapid.IntRange(0, capacity).Draw(t, "n")
			before := len(resident)
			verdict := rapid.SampledFrom([]Verdict{Gone, Gone, Gone, Touched, Touched, Busy, Busy, Unknown, Unknown, Stop})
			offers, gone, stopped := map[Page]int{}, 0, false
			total := 0
			got := p.Evict(n, func(pg Page) Verdict {
				if !resident[pg] {
					t.Fatalf("offered page %d, which is not resident", pg)
				}
				if stopped {
					t.Fatalf("offered page %d after Stop", pg)
				}
				offers[pg]++
				if total++; total > 5*before {
					t.Fatalf("%d offers for %d pages", total, before)
				}
				v := verdict.Draw(t, "verdict")
				switch v {
				case Gone:
					gone++
					delete(resident, pg)
				case Unknown:
					delete(resident, pg)
				case Stop:
					stopped = true
				}
				return v
			})
			if got != gone || gone > n {
				t.Fatalf("Evict(%d) = %d with %d pages gone", n, got, gone)
			}
			for pg := range resident {
				if gone < n && !stopped && offers[pg] == 0 {
					t.Fatalf("Evict(%d) = %d without asking for page %d", n, got, pg)
				}
			}
		},
		"": func(t *rapid.T) {
			if p.Len() != len(resident) {
				t.Fatalf("Len = %d, want %d", p.Len(), len(resident))
			}
			if err := checkTable(tableOf(p)); err != nil {
				t.Fatal(err)
			}
		},
	})

	if got := p.Evict(len(resident)+1, func(pg Page) Verdict {
		if !resident[pg] {
			t.Fatalf("offered page %d, which is not resident", pg)
		}
		delete(resident, pg)
		return Gone
	}); len(resident) != 0 || p.Len() != 0 {
		t.Fatalf("after evicting all (%d): %d pages never offered, Len %d", got, len(resident), p.Len())
	}
}

// Evict ends even if every answer is the most obstinate one.
func TestEvictEnds(t *testing.T) {
	for _, pol := range policies {
		for _, v := range []Verdict{Touched, Busy} {
			p := pol.new()
			p.SetCapacity(40)
			for i := range Page(40) {
				p.Install(i, Reason(i%3))
				if i%5 == 0 {
					p.Cold(i)
				}
			}
			offers := map[Page]int{}
			if got := p.Evict(7, func(pg Page) Verdict { offers[pg]++; return v }); got != 0 {
				t.Errorf("%s: Evict = %d", pol.name, got)
			}
			if len(offers) != 40 || p.Len() != 40 {
				t.Errorf("%s: verdict %d: %d of 40 pages offered, Len %d", pol.name, v, len(offers), p.Len())
			}
			for pg, n := range offers {
				if n < 2 || n > 4 {
					t.Errorf("%s: verdict %d: page %d offered %d times", pol.name, v, pg, n)
				}
			}
		}
	}
}

// A policy's memory follows the number of pages it knows, down as well as up.
func TestMemoryFollowsPages(t *testing.T) {
	for _, pol := range policies {
		p := pol.new()
		tab := tableOf(p)
		const many, few = 200_000, 1_000
		p.SetCapacity(many)
		for i := range Page(many) {
			p.Install(i*7919, Demand)
		}
		if got := len(tab.chunks) * chunkLen; got > many+2*chunkLen {
			t.Errorf("%s: slots for %d pages: %d", pol.name, many, got)
		}
		p.SetCapacity(few)
		p.Evict(many-few, func(Page) Verdict { return Gone })
		if err := checkTable(tab); err != nil {
			t.Fatalf("%s: %v", pol.name, err)
		}
		if p.Len() != few {
			t.Errorf("%s: Len = %d, want %d", pol.name, p.Len(), few)
		}
		known := int(tab.index.n) // resident and remembered
		if known > 2*few {
			t.Errorf("%s: %d pages known with a budget of %d", pol.name, known, few)
		}
		if got, most := len(tab.chunks)*chunkLen, 2*known+7*chunkLen; got > most {
			t.Errorf("%s: slots for %d pages after shrinking: %d, want at most %d", pol.name, known, got, most)
		}
		if got, most := len(tab.index.buckets)*bucketLen, 2*known+3*bucketLen; got > most {
			t.Errorf("%s: buckets for %d pages after shrinking: %d, want at most %d", pol.name, known, got, most)
		}
	}
}

// No operation allocates once the budget has been full.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	for _, pol := range policies {
		p := pol.new()
		const capacity = 3000
		p.SetCapacity(capacity)
		next := Page(0)
		gone := func(Page) Verdict { return Gone }
		cycle := func() {
			if p.Len() >= capacity {
				p.Evict(64, gone)
			}
			for range 64 {
				next += 977
				p.Install(next%(3*capacity), Demand)
			}
			p.Cold(next % (3 * capacity))
			p.Remove(next % (3 * capacity))
		}
		for range 1000 {
			cycle()
		}
		if n := testing.AllocsPerRun(200, cycle); n != 0 {
			t.Errorf("%s: %v allocations", pol.name, n)
		}
	}
}
