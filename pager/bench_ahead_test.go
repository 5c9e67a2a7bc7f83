//go:build linux

package pager_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// Benchmarks of reading ahead, over a file: direct I/O where its file system can.
// They read more of the device than of us, so each has its measure in the same
// run, in turns.

const (
	aheadSize   = 256 << 20
	aheadBudget = 32 << 20
)

// aheadFile is a file of aheadSize that is no hole.
func aheadFile(b *testing.B) string {
	b.Helper()
	name := filepath.Join(b.TempDir(), "ahead")
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	piece := make([]byte, 1<<20)
	for at := int64(0); at < aheadSize; at += int64(len(piece)) {
		for i := 0; i < len(piece); i += benchPage {
			piece[i] = byte(at>>20) | 1
		}
		if _, err := f.WriteAt(piece, at); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return name
}

// aheadRegion maps it.
func aheadRegion(b *testing.B, name string, budget int64, o pager.RegionOptions) (*pager.Pager, *pager.Region) {
	b.Helper()
	p, err := pager.New(pager.Options{Budget: budget})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	s, err := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	if err != nil {
		b.Fatal(err)
	}
	o.ReadOnly = true
	r, err := p.Map(s, o)
	if err != nil {
		b.Fatal(err)
	}
	return p, r
}

// BenchmarkMissesBesideBulk: what a bulk WillNeed of one half of the file does to
// misses in the other half, by 1 and 16 goroutines, once memory is full. Misses
// alone and beside it take turns of a few hundred; an op is one of either.
func BenchmarkMissesBesideBulk(b *testing.B) {
	name := aheadFile(b)
	for _, goroutines := range []int{1, 16} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			p, r := aheadRegion(b, name, aheadBudget, pager.RegionOptions{})
			const half = aheadSize / 2
			for at := int64(0); at < 2*aheadBudget; at += 1 << 20 { // memory is full
				if pin, err := r.Acquire(context.Background(), at, 1<<20); err == nil {
					pin.Release()
				}
			}
			var times [2][]time.Duration
			turn := func(kind, n int) {
				var all sync.WaitGroup
				var mu sync.Mutex
				for g := range goroutines {
					all.Go(func() {
						rng := rand.New(rand.NewPCG(uint64(g), uint64(len(times[kind])+kind)))
						own := make([]time.Duration, 0, n)
						for range n / goroutines {
							off := half + rng.Int64N(half/benchPage)*benchPage
							began := time.Now()
							pin, err := r.Acquire(context.Background(), off, benchPage)
							if err != nil {
								b.Error(err)
								return
							}
							own = append(own, time.Since(began))
							pin.Release()
						}
						mu.Lock()
						times[kind] = append(times[kind], own...)
						mu.Unlock()
					})
				}
				all.Wait()
			}
			const each = 400
			var bulk int64
			b.ResetTimer()
			for done := 0; done < b.N; done += 2 * each {
				turn(0, each)
				var stop atomic.Bool
				var beside sync.WaitGroup
				before := p.Stats().ReadBytes
				beside.Go(func() { needInBulk(r, half, &stop) })
				turn(1, each)
				stop.Store(true)
				beside.Wait()
				bulk += p.Stats().ReadBytes - before
			}
			b.StopTimer()
			var p50, p99 [2]float64
			for k := range times {
				slices.Sort(times[k])
				p50[k] = float64(times[k][len(times[k])/2]) / 1e3
				p99[k] = float64(times[k][len(times[k])*99/100]) / 1e3
			}
			b.ReportMetric(p50[0], "p50-alone-µs")
			b.ReportMetric(p50[1], "p50-beside-µs")
			b.ReportMetric(p99[0], "p99-alone-µs")
			b.ReportMetric(p99[1], "p99-beside-µs")
			b.ReportMetric(p99[1]/p99[0], "p99-times")
			b.ReportMetric(float64(bulk)/float64(len(times[1])), "bulk-B/op")
		})
	}
}

// needInBulk asks for pieces of [0, half), each when no more of the one before
// comes, and drops them, until told to stop.
func needInBulk(r *pager.Region, half int64, stop *atomic.Bool) {
	const piece = aheadBudget / 4
	for at := int64(0); !stop.Load(); at = (at + piece) % half {
		if r.Advise(at, piece, pager.WillNeed) != nil {
			return
		}
		for last := int64(-1); !stop.Load(); {
			have, _ := r.Residency(at, piece)
			if have == last {
				break
			}
			last = have
			time.Sleep(4 * time.Millisecond)
		}
		if r.Advise(at, piece, pager.DontNeed) != nil {
			return
		}
	}
}

// BenchmarkScan: one goroutine reads a file from front to back, every cache line
// of it, through Bytes, beside O_DIRECT pread of a MiB and mmap with
// MADV_SEQUENTIAL, in turns of 32 MiB. An op is a page of each.
func BenchmarkScan(b *testing.B) {
	name := aheadFile(b)
	_, r := aheadRegion(b, name, aheadBudget, pager.RegionOptions{})
	if err := r.Raw(); err != nil {
		b.Skip(err)
	}
	direct, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Skip("direct I/O: ", err)
	}
	defer unix.Close(direct)
	cached, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(cached)
	mapped, err := unix.Mmap(cached, 0, aheadSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(mapped)
	unix.Madvise(mapped, unix.MADV_SEQUENTIAL)
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(buf)
	var sum byte
	take := func(mem []byte) {
		for i := 0; i < len(mem); i += 64 {
			sum += mem[i]
		}
	}
	const turn = 32 << 20
	ways := []struct {
		name string
		scan func(at int)
	}{
		{"bytes", func(at int) { take(r.Bytes()[at : at+turn]) }},
		{"pread", func(at int) {
			for end := at + turn; at < end; at += len(buf) {
				if n, err := unix.Pread(direct, buf, int64(at)); err != nil || n != len(buf) {
					b.Fatal(n, err)
				}
				take(buf)
			}
		}},
		{"mmap", func(at int) { take(mapped[at : at+turn]) }},
	}
	var took [3]time.Duration
	var cpu [3]int64
	pages := 0
	b.ResetTimer()
	for at := 0; pages < b.N; at = (at + turn) % aheadSize {
		for i, w := range ways {
			unix.Madvise(mapped, unix.MADV_DONTNEED)
			unix.Fadvise(cached, 0, 0, unix.FADV_DONTNEED)
			began, before := time.Now(), benchCPU()
			w.scan(at)
			took[i] += time.Since(began)
			cpu[i] += benchCPU() - before
		}
		pages += turn / benchPage
	}
	b.StopTimer()
	for i, w := range ways {
		b.ReportMetric(float64(cpu[i])/float64(pages), w.name+"-cpu-ns/page")
		b.ReportMetric(took[1].Seconds()/took[i].Seconds(), w.name+"/pread")
	}
}

// BenchmarkPageBesideRuns: what one direct read of a page takes on the bare device
// while others read runs all the time, each in a thread of its own: what calmBulk
// and calmRun go by. The cases take turns; an op is a page in each of them.
func BenchmarkPageBesideRuns(b *testing.B) {
	fd, err := unix.Open(aheadFile(b), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Skip("direct I/O: ", err)
	}
	defer unix.Close(fd)
	buffer := func(n int) []byte {
		mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { unix.Munmap(mem) })
		return mem
	}
	const half = aheadSize / 2
	cases := []struct {
		runs, kib int
		took      []time.Duration
	}{{runs: 0}, {runs: 1, kib: 128}, {runs: 1, kib: 256}, {runs: 2, kib: 256}, {runs: 4, kib: 1024}}
	page, runs := buffer(benchPage), [4][]byte{}
	for i := range runs {
		runs[i] = buffer(1 << 20)
	}
	const turn = 200
	b.ResetTimer()
	for done := 0; done < b.N; done += turn {
		for k := range cases {
			c := &cases[k]
			var stop atomic.Bool
			var beside sync.WaitGroup
			for i := range c.runs {
				beside.Go(func() {
					buf := runs[i][:c.kib<<10]
					for at := i * half / 4; !stop.Load(); at = (at + len(buf)) % half {
						if n, err := unix.Pread(fd, buf, int64(at)); err != nil || n != len(buf) {
							b.Error(n, err)
							return
						}
					}
				})
			}
			for range turn {
				off := half + rand.Int64N(half/benchPage)*benchPage
				began := time.Now()
				if n, err := unix.Pread(fd, page, off); err != nil || n != benchPage {
					b.Fatal(n, err)
				}
				c.took = append(c.took, time.Since(began))
			}
			stop.Store(true)
			beside.Wait()
		}
	}
	b.StopTimer()
	for _, c := range cases {
		slices.Sort(c.took)
		name := "alone"
		if c.runs > 0 {
			name = fmt.Sprintf("%dx%dKiB", c.runs, c.kib)
		}
		b.ReportMetric(float64(c.took[len(c.took)/2])/1e3, "p50-"+name+"-µs")
		b.ReportMetric(float64(c.took[len(c.took)*99/100])/1e3, "p99-"+name+"-µs")
	}
}

// BenchmarkWillNeed: what is named in bulk and nothing else, in pieces of a quarter
// of the budget that are let go when they are there, beside direct preads of a MiB,
// four at a time. An op is a page of each.
func BenchmarkWillNeed(b *testing.B) {
	name := aheadFile(b)
	_, r := aheadRegion(b, name, aheadBudget, pager.RegionOptions{Prefetch: prefetch.None()})
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Skip("direct I/O: ", err)
	}
	defer unix.Close(fd)
	const piece = aheadBudget / 4
	buf, err := unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(buf)
	ways := [2]func(at int64){
		func(at int64) {
			if err := r.Advise(at, piece, pager.WillNeed); err != nil {
				b.Fatal(err)
			}
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
				if have, _ := r.Residency(at, piece); have == piece {
					break
				}
				if time.Now().After(end) {
					b.Fatal("not all of what was named has come")
				}
			}
			if err := r.Advise(at, piece, pager.DontNeed); err != nil {
				b.Fatal(err)
			}
		},
		func(at int64) {
			var all sync.WaitGroup
			for i := range int64(4) {
				all.Go(func() {
					for o := i << 20; o < piece; o += 4 << 20 {
						if n, err := unix.Pread(fd, buf[o:o+1<<20], at+o); err != nil || n != 1<<20 {
							b.Error(n, err)
						}
					}
				})
			}
			all.Wait()
		},
	}
	var took [2]time.Duration
	var cpu [2]int64
	pages := 0
	b.ResetTimer()
	for at := int64(0); pages < b.N; at = (at + piece) % aheadSize {
		for i, way := range ways {
			began, before := time.Now(), benchCPU()
			way(at)
			took[i] += time.Since(began)
			cpu[i] += benchCPU() - before
		}
		pages += piece / benchPage
	}
	b.StopTimer()
	for i, name := range []string{"willneed", "pread"} {
		b.ReportMetric(float64(pages)*benchPage/1e6/took[i].Seconds(), name+"-MB/s")
		b.ReportMetric(float64(cpu[i])/float64(pages), name+"-cpu-ns/page")
	}
}
