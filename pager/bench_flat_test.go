//go:build linux

package pager_test

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Flatness: what a miss costs must depend neither on how many goroutines there
// are nor on how large the region is. cpu-ns/miss is to be compared:
//
//	go test -run '^$' -bench Flat -benchtime 200000x -count 5 ./pager

// BenchmarkFlatGoroutines has misses by 64 to 100,000 goroutines, each of which is
// parked meanwhile, b.N together. (100,000 in raw memory hold all frames of so small a
// budget, and hardly get on: docs/lab-notes.md.)
func BenchmarkFlatGoroutines(b *testing.B) {
	kept := benchStore(benchMisses)
	for _, way := range []string{"Acquire", "ReadAt", "Bytes"} {
		for _, crowd := range []int{64, 1_000, 10_000, 100_000} {
			if way == "Bytes" && crowd > 10_000 {
				continue
			}
			b.Run(fmt.Sprintf("%s/goroutines=%d", way, crowd), func(b *testing.B) {
				p, r := benchMap(b, later(b, kept), benchBudget, pager.RegionOptions{ReadOnly: true})
				if way == "Bytes" {
					needRaw(b, r)
				}
				benchFill(b, r)
				benchTogether(b, p, crowd, func(i uint64) func() uint64 {
					at := newOffsets(i+1, benchMisses)
					return func() uint64 {
						var buf [64]byte
						return touchPage(b, way, r, at.next(), buf[:])
					}
				})
			})
		}
	}
}

// BenchmarkFlatFloor is what Go takes for so many goroutines with no pager: each
// waits on a channel of its own until its page has been copied from the same store
// to one of as many frames, in the order in which they asked. What a miss costs
// more with 100,000 goroutines here it costs more in any pager that parks them.
func BenchmarkFlatFloor(b *testing.B) {
	kept := benchStore(benchMisses)
	type request struct {
		op   aio.Op
		done chan struct{}
	}
	for _, crowd := range []int{64, 1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("goroutines=%d", crowd), func(b *testing.B) {
			s := later(b, kept)
			frames := make([]byte, benchBudget)
			var frame atomic.Int64
			benchTogether(b, nil, crowd, func(i uint64) func() uint64 {
				at := newOffsets(i+1, benchMisses)
				r := request{done: make(chan struct{}, 1)}
				r.op.Done = func(*aio.Op) { r.done <- struct{}{} }
				return func() uint64 {
					var buf [64]byte
					f := frame.Add(benchPage) % benchBudget
					r.op.Buf, r.op.Off = frames[f:f+benchPage], at.next()&^(benchPage-1)
					s.Start(nil, []*aio.Op{&r.op})
					<-r.done
					copy(buf[:], r.op.Buf)
					return uint64(buf[0])
				}
			})
		})
	}
}

// benchTogether has crowd goroutines make b.N calls together, each of the function that it
// gets from newOp. Before that and after it they make more: that a goroutine begins and
// ends, and that its stack grows, is not what a call costs.
func benchTogether(b *testing.B, p *pager.Pager, crowd int, newOp func(i uint64) (op func() uint64)) {
	var left atomic.Int64
	left.Store(math.MaxInt64)
	var here, done sync.WaitGroup
	price := func() {}
	for i := range crowd {
		here.Add(1)
		done.Go(func() {
			op := newOp(uint64(i))
			sum := op() + op()
			here.Done()
			n := left.Add(-1)
			for ; n > 0; n = left.Add(-1) {
				sum += op()
			}
			if n == 0 {
				price()
			}
			benchSink.Add(sum)
		})
	}
	here.Wait()
	b.ReportAllocs()
	price = benchPrice(b, p)
	left.Store(int64(b.N))
	done.Wait()
}

// laterStore answers as a device does: later, from elsewhere, some together. So who
// waits is parked. (From a store that has all done when Start returns 64 goroutines
// can read for as long as the scheduler lets each of them run, and 100,000, which are in each
// other's way, cannot.)
type laterStore struct {
	keptStore
	ops chan *aio.Op
}

const laterTogether = 32

func later(b *testing.B, s store.Store) laterStore {
	l := laterStore{keptStore{s}, make(chan *aio.Op, 4096)}
	var served sync.WaitGroup
	served.Go(l.serve)
	b.Cleanup(func() { close(l.ops); served.Wait() })
	return l
}

func (l laterStore) Start(_ aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		l.ops <- op
	}
}

func (l laterStore) serve() {
	var together [laterTogether]*aio.Op
	for op := range l.ops {
		list := append(together[:0], op)
	more:
		for len(list) < laterTogether {
			select {
			case op, ok := <-l.ops:
				if !ok {
					break more
				}
				list = append(list, op)
			default:
				break more
			}
		}
		l.keptStore.Start(nil, list)
		runtime.Gosched() // as a reaper lets those run whom it has told
	}
}

func touchPage(b *testing.B, way string, r *pager.Region, off int64, buf []byte) uint64 {
	switch way {
	case "Bytes":
		return uint64(r.Bytes()[off])
	case "ReadAt":
		if _, err := r.ReadAt(buf, off); err != nil {
			b.Error(err)
		}
		return uint64(buf[0])
	}
	pin, err := r.Acquire(context.Background(), off, benchPage)
	if err != nil {
		b.Error(err)
		return 0
	}
	defer pin.Release()
	return uint64(pin.Bytes()[0])
}

// BenchmarkFlatRegion has the same misses in regions of 1 GiB to 1 TiB: in 128
// parts of 2 MiB that are spread evenly over the region.
func BenchmarkFlatRegion(b *testing.B) {
	const (
		part  = 2 << 20
		parts = benchMisses / part
	)
	for _, gib := range []int64{1, 16, 128, 1024} {
		b.Run(fmt.Sprintf("GiB=%d", gib), func(b *testing.B) {
			size := gib << 30
			p, r := benchMap(b, emptyStore(size), benchBudget, pager.RegionOptions{ReadOnly: true})
			at := newOffsets(1, benchMisses)
			where := func() int64 {
				off := at.next()
				return off/part*(size/parts) + off%part
			}
			for range 2 * benchBudget / benchPage {
				touchPage(b, "Acquire", r, where(), nil)
			}
			b.ReportAllocs()
			price := benchPrice(b, p)
			for b.Loop() {
				touchPage(b, "Acquire", r, where(), nil)
			}
			price()
		})
	}
}

// emptyStore is a store of so many bytes, all of them zero.
type emptyStore int64

func (s emptyStore) Size() int64                { return int64(s) }
func (emptyStore) BlockSize() int               { return 1 }
func (emptyStore) Writable() bool               { return false }
func (emptyStore) String() string               { return "nothing" }
func (emptyStore) Kernel() (store.Kernel, bool) { return store.Kernel{FD: -1}, false }
func (emptyStore) Truncate(int64) error         { return store.ErrReadOnly }
func (emptyStore) Discard(int64, int64) error   { return store.ErrReadOnly }
func (emptyStore) Close() error                 { return nil }
func (emptyStore) Start(_ aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		clear(op.Buf)
		op.N = len(op.Buf)
		op.Done(op)
	}
}
