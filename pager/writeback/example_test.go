package writeback_test

import (
	"fmt"
	"time"

	"github.com/uffdpager/uffdpager/pager/writeback"
)

// oldest writes the pages that have been dirty longest, as many as it takes to
// keep at most Keep dirty.
type oldest struct {
	Keep  int64
	order []int64 // pages in the order in which they became dirty
	dirty map[int64]bool
}

func (o *oldest) Observe(e writeback.Event, plan *writeback.Plan) {
	switch e.Kind {
	case writeback.Dirty:
		o.order = append(o.order, e.Page)
		o.dirty[e.Page] = true
	case writeback.Clean:
		delete(o.dirty, e.Page)
	case writeback.Tick:
		for n := int64(len(o.dirty)) - o.Keep; n > 0 && len(o.order) > 0; o.order = o.order[1:] {
			if page := o.order[0]; o.dirty[page] {
				plan.Add(page, 1)
				n--
			}
		}
	}
}

func Example() {
	var policy writeback.Policy = &oldest{Keep: 2, dirty: map[int64]bool{}}
	var plan writeback.Plan
	for _, page := range []int64{30, 10, 20, 40} {
		policy.Observe(writeback.Event{Kind: writeback.Dirty, Page: page}, &plan)
	}
	policy.Observe(writeback.Event{Kind: writeback.Tick, Now: time.Second}, &plan)
	fmt.Println(plan.Runs)
	// Output: [{30 1} {10 1}]
}
