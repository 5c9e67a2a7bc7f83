package prefetch_test

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/uffdpager/uffdpager/prefetch"
)

// feed shows a policy some events and prints what it plans.
func feed(p prefetch.Policy, events ...prefetch.Event) {
	plan := prefetch.Plan{Pages: 10_000, Budget: 1000, Room: 100}
	for _, e := range events {
		plan.Reset()
		p.Observe(e, &plan)
		fmt.Printf("%v %d:", e.Kind, e.Page)
		for _, r := range plan.Runs {
			fmt.Printf(" %d+%d", r.First, r.N)
		}
		fmt.Println()
	}
}

// A search tree in pages. A page begins with its height, leaves being 0, and
// the number of its children, 16 bits; their page numbers follow, 64 bits each.
// When a page of height 1 comes in because somebody waits for it, its leaves
// are fetched, so that a walk over the tree waits once for each inner page
// instead of once for each page. Inner pages are not fetched early: their
// misses are how the policy learns where the walk is, which hits do not tell.
func ExampleDataFunc_tree() {
	leaves := prefetch.DataFunc(func(e prefetch.Event, plan *prefetch.Plan) {
		if e.Kind != prefetch.Arrived || !e.Demand || e.Data[0] != 1 {
			return
		}
		n := int(binary.LittleEndian.Uint16(e.Data[1:]))
		// Damaged pages are for the program to notice: stay inside the page.
		for at := 3; n > 0 && at+8 <= len(e.Data); at += 8 {
			plan.Add(int64(binary.LittleEndian.Uint64(e.Data[at:])), 1)
			n--
		}
	})

	page := func(height byte, children ...uint64) []byte {
		b := binary.LittleEndian.AppendUint16([]byte{height}, uint16(len(children)))
		for _, c := range children {
			b = binary.LittleEndian.AppendUint64(b, c)
		}
		return b
	}
	feed(leaves,
		prefetch.Event{Kind: prefetch.Miss, Page: 1},
		prefetch.Event{Kind: prefetch.Arrived, Page: 1, Data: page(2, 5, 6), Demand: true},
		prefetch.Event{Kind: prefetch.Arrived, Page: 5, Data: page(1, 17, 4711, 42), Demand: true},
		prefetch.Event{Kind: prefetch.Arrived, Page: 17, Data: page(0)},
	)
	// Output:
	// miss 1:
	// arrived 1:
	// arrived 5: 17+1 4711+1 42+1
	// arrived 17:
}

// A graph whose adjacency lists are known to the program: vertex v lives in
// page v/64. When a page is missed, the pages of the vertices its own vertices
// point to come with it, each once, as far as there is room.
func ExampleFunc_graph() {
	const perPage = 64
	edges := map[int64][]int64{
		128: {130, 700, 5000},
		130: {701, 9000},
	}
	var planned []int64 // memory of this policy: one goroutine calls it
	neighbours := prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
		if e.Kind != prefetch.Miss {
			return
		}
		planned = append(planned[:0], e.Page)
		for v := e.Page * perPage; v < (e.Page+1)*perPage; v++ {
		next:
			for _, w := range edges[v] {
				page := w / perPage
				for _, p := range planned {
					if p == page {
						continue next
					}
				}
				if int64(len(planned)) > plan.Room {
					return
				}
				planned = append(planned, page)
				plan.Add(page, 1)
			}
		}
	})
	feed(neighbours, prefetch.Event{Kind: prefetch.Miss, Page: 2}, prefetch.Event{Kind: prefetch.Miss, Page: 3})
	// Output:
	// miss 2: 10+1 78+1 140+1
	// miss 3:
}

// A table scan that reads a header page and then knows exactly which extents
// follow needs no guessing: what is named (Region.Prefetch, Advise) arrives as
// a Hint and can be completed by the policy.
func ExampleFunc_extents() {
	const extent = 32 // pages
	whole := prefetch.Func(func(e prefetch.Event, plan *prefetch.Plan) {
		if e.Kind == prefetch.Hint {
			plan.Add(e.Page/extent*extent, extent)
		}
	})
	feed(whole, prefetch.Event{Kind: prefetch.Hint, Page: 70})
	// Output:
	// hint 70: 64+32
}

// The default policy finds sequential readers by itself. The page left out,
// 111, is the marker: its miss says that the reader has come there.
func ExampleReadahead() {
	feed(prefetch.Readahead(prefetch.ReadaheadOptions{}),
		prefetch.Event{Kind: prefetch.Miss, Page: 100},
		prefetch.Event{Kind: prefetch.Miss, Page: 101},
		prefetch.Event{Kind: prefetch.Miss, Page: 102},
		prefetch.Event{Kind: prefetch.Miss, Page: 111},
	)
	// Output:
	// miss 100:
	// miss 101:
	// miss 102: 103+8 112+7
	// miss 111: 120+15
}

// Record what a process touches first, and read it ahead when it starts again.
func ExampleReplay() {
	var file bytes.Buffer
	recorder := prefetch.Record(&file)
	plan := prefetch.Plan{Pages: 10_000}
	for _, page := range []int64{9, 3, 5000, 4, 3} {
		recorder.Observe(prefetch.Event{Kind: prefetch.Miss, Page: page}, &plan)
	}
	if err := recorder.Close(); err != nil {
		fmt.Println(err)
	}

	replay, err := prefetch.Replay(&file, prefetch.ReplayOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	feed(replay, prefetch.Event{Kind: prefetch.Miss, Page: 9})
	// Output:
	// miss 9: 3+2 5000+1
}
