//go:build linux

package pager_test

import (
	"context"
	"fmt"
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

// BenchmarkFlatGoroutines has misses by 64 to 100,000 goroutines, b.N together.
// Those of Bytes are parked in place, all of them at times.
func BenchmarkFlatGoroutines(b *testing.B) {
	kept := keptStore{benchStore(benchMisses)}
	for _, way := range []string{"Acquire", "ReadAt", "Bytes"} {
		for _, crowd := range []int{64, 1_000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("%s/goroutines=%d", way, crowd), func(b *testing.B) {
				p, r := benchMap(b, kept, benchBudget, pager.RegionOptions{ReadOnly: true})
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

// benchTogether has crowd goroutines make b.N calls together, each of the function that it
// gets from newOp. All are there, with the stacks that they need, before anything is measured.
func benchTogether(b *testing.B, p *pager.Pager, crowd int, newOp func(i uint64) (op func() uint64)) {
	var left atomic.Int64
	var here, done sync.WaitGroup
	begin := make(chan struct{})
	for i := range crowd {
		here.Add(1)
		done.Go(func() {
			op := newOp(uint64(i))
			sum := op()
			here.Done()
			<-begin
			for left.Add(-1) >= 0 {
				sum += op()
			}
			benchSink.Add(sum)
		})
	}
	here.Wait()
	left.Store(int64(b.N))
	b.ReportAllocs()
	price := benchPrice(b, p)
	close(begin)
	done.Wait()
	price()
}

// BenchmarkFlatFloor is what Go takes for so many goroutines with no pager: each
// waits on a channel of its own until another one has copied its page from the
// same store to one of as many frames, in the order in which they asked. What a
// miss costs more with 100,000 goroutines here it costs more in any pager that
// parks them.
func BenchmarkFlatFloor(b *testing.B) {
	const atOnce = 32
	kept := benchStore(benchMisses)
	type request struct {
		off   int64
		frame []byte
		done  chan struct{}
	}
	for _, crowd := range []int{64, 1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("goroutines=%d", crowd), func(b *testing.B) {
			requests := make(chan *request, crowd)
			frames := make([]byte, benchBudget)
			var server sync.WaitGroup
			server.Go(func() {
				batch := make([]*request, 0, atOnce)
				for at, more := 0, true; more; {
					batch = batch[:0]
					r, ok := <-requests
					for more = ok; ok; {
						r.frame = frames[at : at+benchPage]
						at = (at + benchPage) % benchBudget
						op := aio.Op{Buf: r.frame, Off: r.off, Done: func(*aio.Op) {}}
						kept.Start(nil, []*aio.Op{&op})
						if batch = append(batch, r); len(batch) == atOnce {
							break
						}
						select {
						case r, ok = <-requests:
						default:
							ok = false
						}
					}
					for _, r := range batch {
						r.done <- struct{}{}
					}
				}
			})
			benchTogether(b, nil, crowd, func(i uint64) func() uint64 {
				at := newOffsets(i+1, benchMisses)
				r := request{done: make(chan struct{}, 1)}
				return func() uint64 {
					var buf [64]byte
					r.off = at.next() &^ (benchPage - 1)
					requests <- &r
					<-r.done
					copy(buf[:], r.frame)
					return uint64(buf[0])
				}
			})
			close(requests)
			server.Wait()
		})
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
