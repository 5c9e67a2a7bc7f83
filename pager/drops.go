//go:build linux

package pager

import (
	"sync"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/prefetch"
)

// drops is what policies of prefetching are done with (drop-behind), for the next
// ones who evict: they have evictMu, which may be held for as long as a batch takes
// to leave, and a policy that waited for it would be deaf meanwhile.
type drops struct {
	mu   sync.Mutex
	list []dropRun // from head on
	head int
	n    atomic.Int32
}

type dropRun struct {
	r          *Region
	first, end int64 // pages
}

// maxDrops bounds the list where nothing is evicted: what is not on it leaves as
// if nobody had said anything of it. dropMost is how many pages of it one eviction
// looks at, some times what it evicts.
const (
	maxDrops = 4096
	dropMost = 8 * maxEvictBatch
)

func (q *drops) add(r *Region, runs []prefetch.Run) {
	if len(runs) == 0 {
		return
	}
	n := int64(r.pageCount())
	q.mu.Lock()
	for _, run := range runs {
		first, end := max(0, run.First), min(n, run.First+run.N)
		k := len(q.list) - 1
		switch {
		case first >= end:
		case k >= q.head && q.list[k].r == r && q.list[k].end == first:
			q.list[k].end = end
		case len(q.list)-q.head < maxDrops:
			if q.head > 0 && len(q.list) == cap(q.list) {
				q.list = q.list[:copy(q.list, q.list[q.head:])]
				q.head = 0
			}
			q.list = append(q.list, dropRun{r, first, end})
		}
	}
	q.n.Store(int32(len(q.list) - q.head))
	q.mu.Unlock()
}

// next takes the first run, or as much of it as most pages.
func (q *drops) next(most int64) (run dropRun, ok bool) {
	if q.n.Load() == 0 || most <= 0 {
		return run, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.head == len(q.list) {
		return run, false
	}
	first := &q.list[q.head]
	run = *first
	if run.end-run.first > most {
		run.end = run.first + most
		first.first = run.end
		return run, true
	}
	*first = dropRun{}
	if q.head++; q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
	}
	q.n.Store(int32(len(q.list) - q.head))
	return run, true
}

// forget removes what is said of r. Who has taken some of it out has evictMu.
func (q *drops) forget(r *Region) {
	q.mu.Lock()
	kept := q.list[:0] // the head is behind: nothing is overwritten before it is read
	for _, d := range q.list[q.head:] {
		if d.r != r {
			kept = append(kept, d)
		}
	}
	clear(q.list[len(kept):])
	q.list, q.head = kept, 0
	q.n.Store(int32(len(kept)))
	q.mu.Unlock()
}

// cool makes what policies are done with leave first. evictMu is held.
func (p *Pager) cool() {
	for left := int64(dropMost); ; {
		run, ok := p.drops.next(left)
		if !ok {
			return
		}
		left -= run.end - run.first
		pol := run.r.domain.policy
		drop := pol.Cold
		if d, ok := pol.(evict.Dropper); ok {
			drop = d.Drop
		}
		for page := run.first; page < run.end; page++ {
			if pw, w := run.r.d.look(uint64(page)); pw != nil && present(w) {
				drop(pageKey(run.r.d, uint64(page)))
				run.r.domain.cold++
			}
		}
	}
}
