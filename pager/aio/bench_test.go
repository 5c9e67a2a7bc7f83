//go:build linux

package aio

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	benchSize = 256 << 20
	benchPage = 4096
)

// benchFile is a file of real blocks, outside the page cache, open for direct
// I/O.
func benchFile(b *testing.B) int {
	name := filepath.Join(b.TempDir(), "data")
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_DIRECT, 0o600)
	if err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() { unix.Close(fd) })
	buf := buffer(b, 4<<20)
	copy(buf, pattern(len(buf), 1))
	for off := int64(0); off < benchSize; off += int64(len(buf)) {
		if _, err := unix.Pwrite(fd, buf, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := unix.Fsync(fd); err != nil {
		b.Fatal(err)
	}
	return fd
}

// usage is what the process has used: CPU time, and times a thread was
// switched away from.
func usage() (cpu time.Duration, switches int64) {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), u.Nvcsw + u.Nivcsw
}

// measure runs f and reports IOPS, CPU time and context switches of an op.
func measure(b *testing.B, f func()) {
	runtime.GC()
	cpu, switches := usage()
	b.ReportAllocs()
	b.ResetTimer()
	f()
	b.StopTimer()
	cpu2, switches2 := usage()
	n := float64(b.N)
	b.ReportMetric(n/b.Elapsed().Seconds(), "iops")
	b.ReportMetric(float64((cpu2-cpu).Nanoseconds())/1e3/n, "cpu-µs/op")
	b.ReportMetric(float64(switches2-switches)/n, "switches/op")
}

func randomPage() int64 { return rand.Int64N(benchSize/benchPage) * benchPage }

// BenchmarkRandomRead: one goroutine keeps QD direct 4 KiB reads under way;
// pread is the bare system call.
func BenchmarkRandomRead(b *testing.B) {
	fd := benchFile(b)
	b.Run("qd=1/pread", func(b *testing.B) {
		buf := buffer(b, benchPage)
		measure(b, func() {
			for range b.N {
				if _, err := unix.Pread(fd, buf, randomPage()); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	for _, qd := range []int{1, 16, 64} {
		buf := buffer(b, qd*benchPage)
		for _, k := range benchEngines(fd, buf) {
			b.Run(fmt.Sprintf("qd=%d/%s", qd, k.name), func(b *testing.B) {
				e := mustOpen(b, k.open, 64)
				ctx := context.Background()
				started, finished := 0, 0
				ops := make([]*Op, qd)
				for i := range ops {
					list := ops[i : i+1]
					ops[i] = &Op{FD: fd, Off: randomPage(), Buf: buf[i*benchPage:][:benchPage], Done: func(op *Op) {
						if op.Err != nil || op.N != benchPage {
							b.Errorf("%d bytes, %v", op.N, op.Err)
						}
						finished++
						if started < b.N {
							started++
							op.Off = randomPage()
							e.Submit(list)
						}
					}}
				}
				measure(b, func() {
					first := min(qd, b.N)
					started = first
					e.Submit(ops[:first])
					for finished < b.N {
						if e.Reap(8) == 0 {
							e.Wait(ctx)
						}
					}
				})
			})
		}
	}
}

// BenchmarkRequesters: the way of a pager. Each of the goroutines submits its
// own read and parks; another one reaps.
func BenchmarkRequesters(b *testing.B) {
	fd := benchFile(b)
	for _, goroutines := range []int{1, 64} {
		buf := buffer(b, goroutines*benchPage)
		for _, k := range benchEngines(fd, buf) {
			b.Run(fmt.Sprintf("goroutines=%d/%s", goroutines, k.name), func(b *testing.B) {
				e := mustOpen(b, k.open, 64)
				var wg sync.WaitGroup
				stop, reaper := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(reaper)
					for {
						select {
						case <-stop:
							return
						default:
						}
						if e.Reap(8) == 0 {
							e.Wait(context.Background())
						}
					}
				}()
				measure(b, func() {
					for g := range goroutines {
						wg.Add(1)
						go func() {
							defer wg.Done()
							done := make(chan struct{}, 1)
							op := &Op{FD: fd, Buf: buf[g*benchPage:][:benchPage], Done: func(*Op) { done <- struct{}{} }}
							list := []*Op{op}
							for i := g; i < b.N; i += goroutines {
								op.Off = randomPage()
								e.Submit(list)
								<-done
							}
						}()
					}
					wg.Wait()
				})
				close(stop)
				e.Submit([]*Op{{FD: fd, Done: func(*Op) {}}}) // ends the last Wait
				<-reaper
			})
		}
	}
}

// BenchmarkOverhead: what an engine adds to a read that has no device in it,
// 8 at a time; pread is the bare system call.
func BenchmarkOverhead(b *testing.B) {
	fd, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
	if err != nil {
		b.Skip(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, pattern(benchPage, 1), 0); err != nil {
		b.Fatal(err)
	}
	buf := buffer(b, 8*benchPage)
	b.Run("pread", func(b *testing.B) {
		measure(b, func() {
			for range b.N {
				if _, err := unix.Pread(fd, buf[:benchPage], 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	for _, k := range engines {
		b.Run(k.name, func(b *testing.B) {
			e := mustOpen(b, k.open, 64)
			done := 0
			ops := make([]*Op, 8)
			for i := range ops {
				ops[i] = &Op{FD: fd, Buf: buf[i*benchPage:][:benchPage], Done: func(*Op) { done++ }}
			}
			measure(b, func() {
				for left := b.N; left > 0; left -= len(ops) {
					done = 0
					e.Submit(ops)
					for done < len(ops) {
						if e.Reap(8) == 0 {
							e.Wait(context.Background())
						}
					}
				}
			})
		})
	}
}
