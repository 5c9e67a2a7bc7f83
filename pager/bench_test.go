//go:build linux

package pager_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// Benchmarks of every primitive on the hot paths, over a store in memory, so
// that no device hides what the pager itself costs. Each has beside it, in the
// same run, what it is to be compared with:
//
//	go test -run '^$' -bench . -count 10 ./pager | tee new.txt && benchstat new.txt
//
// GOMAXPROCS is part of the names, not of -cpu, because the pager's own threads
// follow it.

const (
	benchPage   = pager.FrameSize
	benchSmall  = 1 << 20 // regions that are resident as a whole
	benchHits   = 16 << 20
	benchLarge  = 256 << 20
	benchMisses = 256 << 20
	benchBudget = 16 << 20 // of benchMisses: one access in 16 is a hit
	benchNamed  = 16       // pages that are named together
	benchCrowd  = 32       // goroutines for each P, where goroutines wait
)

// benchRegion maps size bytes of memory under a budget.
func benchRegion(b *testing.B, size, budget int64, o pager.RegionOptions) (*pager.Pager, *pager.Region) {
	b.Helper()
	return benchMap(b, benchStore(size), budget, o)
}

// benchMap maps a store under a budget.
func benchMap(b *testing.B, s store.Store, budget int64, o pager.RegionOptions) (*pager.Pager, *pager.Region) {
	b.Helper()
	p, err := pager.New(pager.Options{Budget: budget})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	if o.Prefetch == nil {
		o.Prefetch = prefetch.None()
	}
	r, err := p.Map(s, o)
	if err != nil {
		b.Fatal(err)
	}
	return p, r
}

// benchStore is memory in which no page is all zeros: those could share one frame,
// and one cache line.
func benchStore(size int64) store.Store {
	s := store.NewMemory(size)
	k, ok := s.Kernel()
	if !ok {
		panic("a store in memory has no memory")
	}
	for off := 8; off < len(k.Mem); off += benchPage {
		k.Mem[off] = 1
	}
	return s
}

// keptStore is one store for every run of a benchmark: filling it takes longer
// than most runs.
type keptStore struct{ store.Store }

func (keptStore) Close() error { return nil }

// benchPrice reports, from the call of the function it returns back to its own,
// the processor time of the process for each op, which a busy machine disturbs
// far less than ns/op, and how many of the ops missed.
func benchPrice(b *testing.B, p *pager.Pager) (report func()) {
	missed := func() (n int64) {
		if p != nil {
			s := p.Stats()
			n = s.Misses + s.Joined
		}
		return n
	}
	misses, cpu := missed(), benchCPU()
	b.ResetTimer()
	return func() {
		b.StopTimer()
		spent := benchCPU() - cpu
		b.ReportMetric(float64(spent)/float64(b.N), "cpu-ns/op")
		if n := missed() - misses; n > 0 {
			b.ReportMetric(float64(n)/float64(b.N), "misses/op")
			b.ReportMetric(float64(spent)/float64(n), "cpu-ns/miss")
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "misses/s")
		}
	}
}

// benchCPU is the processor time of the process, in ns.
func benchCPU() int64 {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// benchResident is a region every page of which is resident, mapped and touched,
// in random order: then neither the TLB nor the page tables are better ordered than
// in a program that has been running for a while.
func benchResident(b *testing.B, size int64) *pager.Region {
	b.Helper()
	_, r := benchRegion(b, size, size+size/8+(1<<20), pager.RegionOptions{ReadOnly: true})
	var buf [8]byte
	for _, page := range rand.New(rand.NewPCG(1, 1)).Perm(int(size / benchPage)) {
		off := int64(page) * benchPage
		pin, err := r.Acquire(context.Background(), off, 1) // ReadAt alone would not have it mapped
		if err != nil {
			b.Fatal(err)
		}
		pin.Release()
		if _, err := r.ReadAt(buf[:], off); err != nil {
			b.Fatal(err)
		}
	}
	benchIsResident(b, r, size)
	if n := benchMapped(r, size); n != size {
		b.Fatalf("%d of %d bytes are mapped", n, size)
	}
	return r
}

// benchUnmapped is a region every page of which is resident up to size, and none is
// mapped: nobody but ReadAt has come, and so often before that the pager knows it.
func benchUnmapped(b *testing.B, size int64) *pager.Region {
	b.Helper()
	const before = 1024 * benchPage
	_, r := benchRegion(b, size+before, size+before+size/8+(1<<20), pager.RegionOptions{ReadOnly: true})
	var buf [8]byte
	read := func(off int64) {
		if _, err := r.ReadAt(buf[:], off); err != nil {
			b.Fatal(err)
		}
	}
	for off := int64(0); off < before; off += benchPage {
		read(size + off)
	}
	for _, page := range rand.New(rand.NewPCG(1, 1)).Perm(int(size / benchPage)) {
		read(int64(page) * benchPage)
	}
	benchIsResident(b, r, size)
	if n := benchMapped(r, size); n != 0 {
		b.Skipf("%d of %d bytes are mapped", n, size)
	}
	return r
}

func benchIsResident(b *testing.B, r *pager.Region, size int64) {
	b.Helper()
	if have, _ := r.Residency(0, size); have != size {
		b.Fatalf("%d of %d bytes are resident", have, size)
	}
}

// benchMapped is how many of the first size bytes have an entry in the page table.
func benchMapped(r *pager.Region, size int64) (mapped int64) {
	vec := make([]byte, size/benchPage)
	unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(r.Bytes()))), uintptr(size), uintptr(unsafe.Pointer(&vec[0])))
	for _, v := range vec {
		mapped += int64(v&1) * benchPage
	}
	return mapped
}

// onProcs runs a benchmark on 1 and 2 Ps. f must not have sub-benchmarks of its
// own: the testing package sets GOMAXPROCS again for each.
func onProcs(b *testing.B, f func(b *testing.B)) {
	for _, n := range []int{1, 2} {
		b.Run(fmt.Sprintf("procs=%d", n), func(b *testing.B) {
			if n > runtime.NumCPU() {
				b.Skipf("%d processors here", runtime.NumCPU())
			}
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n))
			f(b)
		})
	}
}

// offsets is a cheap generator of page offsets: what is measured is tens of
// nanoseconds.
type offsets struct{ state, pages uint64 }

func newOffsets(seed uint64, size int64) offsets {
	return offsets{seed*0x9e3779b97f4a7c15 + 1, uint64(size / benchPage)}
}

func (o *offsets) next() int64 {
	o.state ^= o.state << 13
	o.state ^= o.state >> 7
	o.state ^= o.state << 17
	return int64((o.state >> 32) * o.pages >> 32 * benchPage)
}

var benchSeed atomic.Uint64

func BenchmarkAcquireHit(b *testing.B) {
	ctx := context.Background()
	b.Run("generator", func(b *testing.B) { // what the loop itself costs
		at := newOffsets(1, benchHits)
		var sum int64
		price := benchPrice(b, nil)
		for b.Loop() {
			sum += at.next()
		}
		price()
		benchSink.Store(uint64(sum))
	})
	b.Run("one", func(b *testing.B) {
		r := benchResident(b, benchHits)
		at := newOffsets(1, benchHits)
		b.ReportAllocs()
		price := benchPrice(b, nil)
		for b.Loop() {
			pin, err := r.Acquire(ctx, at.next(), 64)
			if err != nil {
				b.Fatal(err)
			}
			pin.Release()
		}
		price()
	})
	for _, same := range []bool{false, true} {
		name := map[bool]string{false: "distinct", true: "same"}[same]
		b.Run(name, func(b *testing.B) {
			onProcs(b, func(b *testing.B) {
				r := benchResident(b, benchHits)
				var part atomic.Int64
				price := benchPrice(b, nil)
				b.RunParallel(func(pb *testing.PB) {
					// Each goroutine has pages of its own, whose words share
					// no cache line with another's.
					half := int64(benchHits / 2)
					from := (part.Add(1) - 1) % 2 * half
					at := newOffsets(uint64(from)+1, half)
					for pb.Next() {
						off := from + at.next()
						if same {
							off = 0
						}
						pin, err := r.Acquire(ctx, off, 64)
						if err != nil {
							b.Error(err)
							return
						}
						pin.Release()
					}
				})
				price()
			})
		})
	}
}

var benchSink atomic.Uint64

// BenchmarkReadAtHit copies from pages at random: of what the processor's second cache
// holds, and of much more. The three ways are to be compared within one size.
func BenchmarkReadAtHit(b *testing.B) {
	for _, size := range []int64{benchSmall, benchHits, benchLarge} {
		for _, n := range []int{64, benchPage} {
			for _, way := range []string{"mapped", "unmapped", "copy"} {
				b.Run(fmt.Sprintf("MiB=%d/n=%d/%s", size>>20, n, way), func(b *testing.B) {
					buf, at := make([]byte, n), newOffsets(1, size)
					if way == "copy" {
						mem := benchAnonymous(b, int(size))
						b.SetBytes(int64(n))
						price := benchPrice(b, nil)
						for b.Loop() {
							copy(buf, mem[at.next():])
						}
						price()
						return
					}
					resident := benchResident
					if way == "unmapped" {
						resident = benchUnmapped
					}
					r := resident(b, size)
					b.SetBytes(int64(n))
					b.ReportAllocs()
					price := benchPrice(b, nil)
					for b.Loop() {
						if _, err := r.ReadAt(buf, at.next()); err != nil {
							b.Fatal(err)
						}
					}
					price()
				})
			}
		}
	}
}

// benchAnonymous is ordinary memory whose pages came in the same order as those
// of benchResident. Huge pages are off: a region has pages of 4 KiB.
func benchAnonymous(b *testing.B, size int) []byte {
	b.Helper()
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Munmap(mem) })
	unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	for _, page := range rand.New(rand.NewPCG(1, 1)).Perm(size / benchPage) {
		mem[page*benchPage] = 0
		mem[page*benchPage+8] = 1
	}
	return mem
}

func BenchmarkViewHit(b *testing.B) {
	at := newOffsets(1, benchHits)
	var sum uint64
	touch := func(mem []byte) error {
		sum += binary.LittleEndian.Uint64(mem[at.next():])
		return nil
	}
	b.Run("View", func(b *testing.B) {
		r := benchResident(b, benchHits)
		needRaw(b, r)
		ctx := context.Background()
		b.ReportAllocs()
		price := benchPrice(b, nil)
		for b.Loop() {
			if err := r.View(ctx, touch); err != nil {
				b.Fatal(err)
			}
		}
		price()
	})
	b.Run("closure", func(b *testing.B) {
		mem := benchAnonymous(b, benchHits)
		price := benchPrice(b, nil)
		for b.Loop() {
			touch(mem)
		}
		price()
	})
	benchSink.Store(sum)
}

// BenchmarkBytesHit follows a chain through memory, so that loads cannot
// overlap: what it measures is the page walk.
func BenchmarkBytesHit(b *testing.B) {
	const size = 64 << 20
	chase := func(b *testing.B, mem []byte) {
		at := newOffsets(1, size)
		var last uint64
		price := benchPrice(b, nil)
		for b.Loop() {
			at.state ^= last // 0: the memory holds zeros, which the processor cannot know
			last = binary.LittleEndian.Uint64(mem[at.next():])
		}
		price()
		benchSink.Store(last)
	}
	b.Run("Bytes", func(b *testing.B) {
		r := benchResident(b, size)
		needRaw(b, r)
		chase(b, r.Bytes())
	})
	b.Run("anonymous", func(b *testing.B) { chase(b, benchAnonymous(b, size)) })
}

func needRaw(b *testing.B, r *pager.Region) {
	b.Helper()
	if err := r.Raw(); err != nil {
		b.Skip(err)
	}
}

// BenchmarkMiss: 15 of 16 accesses find no page, have one leave and one come.
// The metric misses/op says how many did.
func BenchmarkMiss(b *testing.B) {
	ctx := context.Background()
	touch := map[string]func(r *pager.Region, off int64, buf []byte) error{
		"Acquire": func(r *pager.Region, off int64, _ []byte) error {
			pin, err := r.Acquire(ctx, off, benchPage)
			if err == nil {
				pin.Release()
			}
			return err
		},
		"ReadAt": func(r *pager.Region, off int64, buf []byte) error {
			_, err := r.ReadAt(buf, off)
			return err
		},
		"Bytes": func(r *pager.Region, off int64, buf []byte) error {
			buf[0] = r.Bytes()[off]
			return nil
		},
		"View": func(r *pager.Region, off int64, buf []byte) error {
			return r.View(ctx, func(mem []byte) error {
				buf[0] = mem[off]
				return nil
			})
		},
		"AcquireV": func(r *pager.Region, off int64, _ []byte) error { // pages that are far from each other
			var rs [benchNamed]pager.Range
			var pins [benchNamed]pager.Pin
			for i := range rs {
				rs[i] = pager.Range{Off: (off + int64(i)*benchMisses/benchNamed) % benchMisses, Len: benchPage}
			}
			err := r.AcquireV(ctx, rs[:], pins[:])
			if err == nil {
				for _, pin := range pins {
					pin.Release()
				}
			}
			return err
		},
	}
	kept := keptStore{benchStore(benchMisses)}
	for _, way := range []string{"Acquire", "ReadAt", "Bytes", "View", "AcquireV"} {
		for _, crowd := range []int{1, benchCrowd} {
			b.Run(fmt.Sprintf("%s/crowd=%d", way, crowd), func(b *testing.B) { // goroutines for each P
				onProcs(b, func(b *testing.B) {
					p, r := benchMap(b, kept, benchBudget, pager.RegionOptions{ReadOnly: true})
					if way == "Bytes" || way == "View" {
						needRaw(b, r)
					}
					do := touch[way]
					benchFill(b, r)
					b.ReportAllocs()
					b.SetParallelism(crowd)
					price := benchPrice(b, p)
					b.RunParallel(func(pb *testing.PB) {
						at, buf := newOffsets(benchSeed.Add(1), benchMisses), make([]byte, benchPage)
						for pb.Next() {
							if err := do(r, at.next(), buf); err != nil {
								b.Error(err)
								return
							}
						}
					})
					price()
				})
			})
		}
	}
}

// benchFill fills the budget, so that whoever comes next must make room.
func benchFill(b *testing.B, r *pager.Region) {
	b.Helper()
	var buf [1]byte
	for off := int64(0); off < 2*benchBudget; off += benchPage {
		if _, err := r.ReadAt(buf[:], off); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWriteAt overwrites whole pages: nothing is read, everything is
// written back.
func BenchmarkWriteAt(b *testing.B) {
	b.Run("miss", func(b *testing.B) {
		onProcs(b, func(b *testing.B) {
			p, r := benchRegion(b, benchMisses, benchBudget, pager.RegionOptions{})
			b.SetBytes(benchPage)
			b.ReportAllocs()
			b.SetParallelism(benchCrowd)
			price := benchPrice(b, p)
			b.RunParallel(func(pb *testing.PB) {
				at, buf := newOffsets(benchSeed.Add(1), benchMisses), make([]byte, benchPage)
				for pb.Next() {
					if _, err := r.WriteAt(buf, at.next()); err != nil {
						b.Error(err)
						return
					}
				}
			})
			price()
		})
	})
	b.Run("hit", func(b *testing.B) { // dirty already
		_, r := benchRegion(b, benchHits, 4*benchHits, pager.RegionOptions{Writeback: pager.Writeback{DirtyShare: 1, Age: -1}})
		at, buf := newOffsets(1, benchHits), make([]byte, benchPage)
		for off := int64(0); off < benchHits; off += benchPage {
			if _, err := r.WriteAt(buf, off); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(benchPage)
		b.ReportAllocs()
		price := benchPrice(b, nil)
		for b.Loop() {
			if _, err := r.WriteAt(buf, at.next()); err != nil {
				b.Fatal(err)
			}
		}
		price()
	})
	b.Run("copy", func(b *testing.B) {
		mem := benchAnonymous(b, benchHits)
		at, buf := newOffsets(1, benchHits), make([]byte, benchPage)
		b.SetBytes(benchPage)
		price := benchPrice(b, nil)
		for b.Loop() {
			copy(mem[at.next():], buf)
		}
		price()
	})
}

// BenchmarkPrefetchResident: the price of naming 16 pages that are there
// already, for each of them.
func BenchmarkPrefetchResident(b *testing.B) {
	r := benchResident(b, benchHits)
	at, offs := newOffsets(1, benchHits), make([]int64, benchNamed)
	b.ReportAllocs()
	price := benchPrice(b, nil)
	for b.Loop() {
		for i := range offs {
			offs[i] = at.next()
		}
		r.Prefetch(offs, 64)
	}
	price()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchNamed, "ns/entry")
}
