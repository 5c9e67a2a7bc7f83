package uffd

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"
)

// BenchmarkCycleScans is what no pager over userfaultfd can do for less where many scans
// go on at once: in turn each scan has its next 64 pages installed with one call, and a
// byte of each read; the windows behind, so many of different scans together, are taken away
// with another. 128 MiB are there. One thread does it or two, each with half of the scans.
// ns/page is by the clock, cpu-ns/page the processor time of all threads.
func BenchmarkCycleScans(b *testing.B) {
	const (
		run   = 64
		pages = 1 << 30 / 4096
		room  = 128 << 20 / 4096
	)
	for _, c := range []struct {
		threads, scans int
		away           int // windows that leave with one call
	}{{1, 1, 1}, {1, 64, 1}, {1, 64, 4}, {2, 2, 1}, {2, 64, 1}, {2, 64, 4}} {
		b.Run(fmt.Sprintf("threads=%d/scans=%d/away=%d", c.threads, c.scans, c.away), func(b *testing.B) {
			if c.threads > runtime.NumCPU() {
				b.Skip("not so many cores")
			}
			u := open(b, APIWriteProtect)
			base, src := region(b, u, pages), memory(b, run)
			fill(src, run, 1)
			part := uintptr(pages / c.scans)
			behind := uintptr(room / c.scans / run) // windows
			// window is the address of the i-th window of a scan.
			window := func(scan, i uintptr) uintptr {
				return base + (scan*part+i*run%part)*pageSize
			}
			// scan does its share of windows, from the from-th of each scan.
			scan := func(thread, from, windows uintptr) {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				var old []Range
				sum := byte(0)
				for i := from; i < from+windows; i++ {
					for s := thread; s < uintptr(c.scans); s += uintptr(c.threads) {
						if i >= behind {
							if old = append(old, Range{window(s, i-behind), run * pageSize}); len(old) == c.away {
								_, errno := RawZap(&old[0], len(old))
								mustErrno(b, errno)
								old = old[:0]
							}
						}
						addr := window(s, i)
						_, errno := RawCopy(u.Fd(), addr, src, run*pageSize, CopyWP)
						mustErrno(b, errno)
						for off := uintptr(0); off < run*pageSize; off += pageSize {
							sum += *at(addr + off)
						}
					}
				}
				if len(old) > 0 {
					_, errno := RawZap(&old[0], len(old))
					mustErrno(b, errno)
				}
				_ = sum
			}
			all := func(from, windows uintptr) {
				var wg sync.WaitGroup
				for t := range uintptr(c.threads) {
					wg.Go(func() { scan(t, from, windows) })
				}
				wg.Wait()
			}
			all(0, behind)
			n := max(uintptr(b.N)/run/uintptr(c.scans), 1)
			before, began := processCPU(), time.Now()
			b.ResetTimer()
			all(behind, n)
			did := float64(n * run * uintptr(c.scans))
			b.ReportMetric(float64(time.Since(began))/did, "ns/page")
			b.ReportMetric(float64(processCPU()-before)/did, "cpu-ns/page")
			b.ReportMetric(0, "ns/op")
		})
	}
}
