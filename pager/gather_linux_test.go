package pager

import (
	"context"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// A goroutine that misses again and again, with nobody beside it, does not wait for
// others' reads: it would have the runtime wake a thread for nothing, with every
// gatherReady-th miss. (Where reapers are late in counting what they have told of,
// it may look like a crowd now and then.)
func TestOneGoroutineDoesNotGather(t *testing.T) {
	name, _ := stampFile(t, 256*FrameSize)
	s, err := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	p, r := rawMap(t, Options{Budget: 32 * FrameSize}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	const misses = 32 * gatherReady
	for page := range int64(misses) {
		pin, err := r.Acquire(context.Background(), page*3%256*FrameSize, 1)
		if err != nil {
			t.Fatal(err)
		}
		pin.Release()
	}
	if n := p.stats.misses.Load(); n != misses {
		t.Fatalf("%d misses", n)
	}
	if n := p.gather.turn.Load(); n > misses/gatherReady/4 {
		t.Errorf("it has gathered reads %d times", n)
	}
}

// What is read ahead waits for demands, but not for all that come as long as they come:
// somebody may have come to wait for it.
func TestReadsAheadAreNotPassedForEver(t *testing.T) {
	var q loadQueue
	behind := &load{kind: ahead}
	q.push(behind)
	for range 2 * passMost {
		q.push(&load{kind: demand})
	}
	for n := 0; ; n++ {
		l := q.first()
		q.pop(l)
		q.push(&load{kind: demand}) // they go on coming
		if l == behind {
			if n != passMost {
				t.Errorf("it goes after %d demands, want %d", n, passMost)
			}
			break
		}
		if n > 4*passMost {
			t.Fatal("it never goes")
		}
	}
	if l := q.first(); l.kind != demand || q.passed != 0 {
		t.Errorf("then comes kind %d, %d passed", l.kind, q.passed)
	}
	for q.n.Load() > 0 {
		q.pop(q.first())
	}
	if n := q.demand.Load(); n != 0 {
		t.Errorf("%d demands are counted in an empty queue", n)
	}
}
