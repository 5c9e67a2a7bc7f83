package uffd

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkProtectScattered takes the write permission from 64 pages so far
// apart: each by itself, or all that lies between them in one go, most of which
// has been read and is protected already. busy: another core runs a thread of
// this process meanwhile, so that each call interrupts it to flush its
// translations. cpu-ns/page is the processor time of the calling thread for each
// of the 64.
func BenchmarkProtectScattered(b *testing.B) {
	const n = 64
	for _, gap := range []uintptr{1, 8, 32, 64, 100, 256, 512, 1024} {
		for _, busy := range []bool{false, true} {
			for _, span := range []bool{false, true} {
				b.Run(fmt.Sprintf("gap=%d/busy=%v/span=%v", gap, busy, span), func(b *testing.B) {
					if busy && runtime.NumCPU() < 2 {
						b.Skip("one core")
					}
					u := open(b, APIWriteProtect)
					pages := n * gap
					base, src := region(b, u, pages), memory(b, 1024)
					fill(src, 1024, 1)
					for i := uintptr(0); i < pages; i += 1024 {
						_, errno := RawCopy(u.Fd(), base+i*pageSize, src, min(1024, pages-i)*pageSize, CopyWP)
						mustErrno(b, errno)
					}
					sum := byte(0)
					for i := range pages {
						sum += *at(base + i*pageSize)
					}
					_ = sum
					runtime.LockOSThread()
					defer runtime.UnlockOSThread()
					if busy {
						var stop atomic.Bool
						defer stop.Store(true)
						started := make(chan struct{})
						go func() {
							for close(started); !stop.Load(); {
							}
						}()
						<-started
					}
					var spent int64
					for b.Loop() {
						for i := range uintptr(n) {
							mustErrno(b, RawWriteProtect(u.Fd(), base+i*gap*pageSize, pageSize, 0))
							*at(base + i*gap*pageSize) = 2
						}
						before := threadCPU()
						if span {
							mustErrno(b, RawWriteProtect(u.Fd(), base, ((n-1)*gap+1)*pageSize, ProtectWP))
						} else {
							for i := range uintptr(n) {
								mustErrno(b, RawWriteProtect(u.Fd(), base+i*gap*pageSize, pageSize, ProtectWP))
							}
						}
						spent += threadCPU() - before
					}
					b.ReportMetric(float64(spent)/float64(b.N)/n, "cpu-ns/page")
				})
			}
		}
	}
}

// BenchmarkProtectBySeveral takes the write permission from one page in 100 of
// 256 MiB, eleven with a call, by so many threads, each in a part of its own.
// ns/page is by the clock and cpu-ns/page the processor time of all threads, for
// each of the 655.
func BenchmarkProtectBySeveral(b *testing.B) {
	const gap, together, pages = 100, 11, 1 << 16
	u := open(b, APIWriteProtect)
	base, src := region(b, u, pages), memory(b, 1024)
	fill(src, 1024, 1)
	for i := uintptr(0); i < pages; i += 1024 {
		_, errno := RawCopy(u.Fd(), base+i*pageSize, src, 1024*pageSize, CopyWP)
		mustErrno(b, errno)
	}
	for _, threads := range []int{1, 2} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			if threads > runtime.NumCPU() {
				b.Skip("not so many cores")
			}
			var spent, wall time.Duration
			for b.Loop() {
				b.StopTimer()
				for i := uintptr(0); i < pages; i += gap {
					mustErrno(b, RawWriteProtect(u.Fd(), base+i*pageSize, pageSize, 0))
					*at(base + i*pageSize) = 2
				}
				b.StartTimer()
				began := time.Now()
				var cpu atomic.Int64
				var wg sync.WaitGroup
				for k := range uintptr(threads) {
					wg.Go(func() {
						runtime.LockOSThread()
						defer runtime.UnlockOSThread()
						before := threadCPU()
						part := pages / uintptr(threads)
						for i := (k*part + gap - 1) / gap * gap; i < (k+1)*part; i += together * gap {
							n := min(((together-1)*gap + 1), (k+1)*part-i)
							mustErrno(b, RawWriteProtect(u.Fd(), base+i*pageSize, n*pageSize, ProtectWP))
						}
						cpu.Add(threadCPU() - before)
					})
				}
				wg.Wait()
				wall += time.Since(began)
				spent += time.Duration(cpu.Load())
			}
			const dirty = (pages + gap - 1) / gap
			b.ReportMetric(float64(wall)/float64(b.N)/dirty, "ns/page")
			b.ReportMetric(float64(spent)/float64(b.N)/dirty, "cpu-ns/page")
		})
	}
}

// threadCPU is the processor time of the calling thread, in ns.
func threadCPU() int64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return t.Nano()
}
