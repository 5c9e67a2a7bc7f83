package evict_test

import (
	"fmt"

	"github.com/uffdpager/uffdpager/pager/evict"
)

// indexFirst keeps the index pages of a file, which its author knows to be the
// first 100, as long as there is anything else to evict. A policy may be made
// of others.
type indexFirst struct{ index, rest evict.Policy }

func newIndexFirst() evict.Policy {
	return indexFirst{index: evict.NewFIFO(), rest: evict.NewS3FIFO()}
}

func (f indexFirst) of(p evict.Page) evict.Policy {
	if p < 100 {
		return f.index
	}
	return f.rest
}

func (f indexFirst) Install(p evict.Page, why evict.Reason) { f.of(p).Install(p, why) }
func (f indexFirst) Remove(p evict.Page)                    { f.of(p).Remove(p) }
func (f indexFirst) Cold(p evict.Page)                      { f.of(p).Cold(p) }
func (f indexFirst) SetCapacity(pages int)                  { f.index.SetCapacity(pages); f.rest.SetCapacity(pages) }
func (f indexFirst) Len() int                               { return f.index.Len() + f.rest.Len() }

func (f indexFirst) Evict(n int, take func(evict.Page) evict.Verdict) int {
	gone := f.rest.Evict(n, take)
	if gone < n {
		gone += f.index.Evict(n-gone, take)
	}
	return gone
}

func ExamplePolicy() {
	p := newIndexFirst()
	p.SetCapacity(6)
	for _, page := range []evict.Page{1, 2, 500, 501, 3, 502} {
		p.Install(page, evict.Demand)
	}
	p.Evict(4, func(page evict.Page) evict.Verdict {
		fmt.Println(page)
		return evict.Gone
	})
	// Output:
	// 500
	// 501
	// 502
	// 1
}
