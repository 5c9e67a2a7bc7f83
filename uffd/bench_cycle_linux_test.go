package uffd

import (
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BenchmarkCycle is what no pager over userfaultfd can do for less: a page is
// installed, its first byte is read, and 64 at a time are taken away, at random
// in 4 GiB of which 256 MiB are there. Under a hypervisor that keeps page tables
// of its own the page that was read may cost ten times as much as the one that
// was not; and so may the others, once the page table in which their entries are has
// been used for any page: hits=true reads one in 16 of those that are there, as
// random hits in such a budget do.
func BenchmarkCycle(b *testing.B) {
	const (
		pages = 4 << 30 / 4096
		room  = 256 << 20 / 4096
		batch = 64
	)
	for _, how := range []string{"read=false", "read=true", "hits=true"} {
		read, hits := how == "read=true", how == "hits=true"
		b.Run(how, func(b *testing.B) {
			u := open(b, APIWriteProtect)
			base, src := region(b, u, pages), memory(b, 1)
			fill(src, 1, 1)
			there := make([]bool, pages)
			queue := make([]uintptr, room)
			var vecs [batch]Range
			head, n, state, sum := 0, 0, uint64(1), byte(0)
			cycle := func() {
				page := uintptr(0)
				for page = range pages { // the next that is not there
					state ^= state << 13
					state ^= state >> 7
					state ^= state << 17
					if page = uintptr(state % pages); !there[page] {
						break
					}
				}
				if n == room {
					for i := range vecs {
						old := queue[(head+i)%room]
						there[old] = false
						vecs[i] = Range{base + old*pageSize, pageSize}
					}
					_, errno := RawZap(&vecs[0], batch)
					mustErrno(b, errno)
					head, n = (head+batch)%room, n-batch
				}
				_, errno := RawCopy(u.Fd(), base+page*pageSize, src, pageSize, CopyWP)
				mustErrno(b, errno)
				if read {
					sum += *at(base + page*pageSize)
				}
				there[page], queue[(head+n)%room] = true, page
				n++
				if hits && n%16 == 0 {
					sum += *at(base + queue[(head+int(state>>32)%n)%room]*pageSize)
				}
			}
			for range room {
				cycle()
			}
			before := processCPU()
			b.ResetTimer()
			for range b.N {
				cycle()
			}
			b.ReportMetric(float64(processCPU()-before)/float64(b.N), "cpu-ns/page")
			_ = sum
		})
	}
}

// BenchmarkCycleRuns is the same for a scan: neighbours are installed 64 at a
// time, read, and taken away as one range, 256 MiB behind. What is read is
// nothing, a byte of each page, or all of its cache lines.
func BenchmarkCycleRuns(b *testing.B) {
	const (
		pages = 1 << 30 / 4096
		room  = 256 << 20 / 4096
	)
	for _, run := range []uintptr{64, 256} {
		for _, step := range []uintptr{0, pageSize, 64} {
			b.Run(fmt.Sprintf("run=%dKiB/step=%d", run*pageSize>>10, step), func(b *testing.B) {
				u := open(b, APIWriteProtect)
				base, src := region(b, u, pages), memory(b, run)
				for i := range run {
					fill(src+i*pageSize, 1, byte(i+1))
				}
				sum := byte(0)
				cycle := func(i uintptr) {
					first := i * run
					if first >= room {
						old := Range{base + (first-room)%pages*pageSize, run * pageSize}
						_, errno := RawZap(&old, 1)
						mustErrno(b, errno)
					}
					addr := base + first%pages*pageSize
					_, errno := RawCopy(u.Fd(), addr, src, run*pageSize, CopyWP)
					mustErrno(b, errno)
					for off := uintptr(0); step != 0 && off < run*pageSize; off += step {
						sum += *at(addr + off)
					}
				}
				i := uintptr(0)
				for ; i < room/run; i++ {
					cycle(i)
				}
				before := processCPU()
				b.ResetTimer()
				n := (uintptr(b.N) + run - 1) / run
				for range n {
					cycle(i)
					i++
				}
				b.ReportMetric(float64(processCPU()-before)/float64(n*run), "cpu-ns/page")
				_ = sum
			})
		}
	}
}

// BenchmarkCycleHuge is the same with 2 MiB at a time, of which 64 are there: copied, or
// moved in from a buffer that may be a huge page and, when they go, back to it.
func BenchmarkCycleHuge(b *testing.B) {
	const (
		huge  = 2 << 20
		pages = 256
		room  = 64
	)
	for _, move := range []bool{false, true} {
		b.Run(fmt.Sprintf("move=%v", move), func(b *testing.B) {
			needs(b, FeatureMove)
			u := open(b, APIWriteProtect|APIMove)
			align := func(addr uintptr) uintptr { return (addr + huge - 1) &^ (huge - 1) }
			base := align(region(b, u, (pages+1)*huge/pageSize))
			src := align(memory(b, 2*huge/pageSize))
			buf := unsafe.Slice(at(src), huge)
			_ = unix.Madvise(buf, unix.MADV_HUGEPAGE)
			if err := u.Register(src, huge, RegisterWP); err != nil {
				b.Fatal(err)
			}
			all := func(done int64, errno uintptr) {
				if errno != 0 || done != huge {
					b.Helper()
					b.Fatal(done, unix.Errno(errno))
				}
			}
			sum := byte(0)
			cycle := func(i uintptr) {
				addr := base + i%pages*huge
				if i >= room {
					old := Range{base + (i-room)%pages*huge, huge}
					if move {
						all(RawMove(u.Fd(), src, old.Addr, huge, 0))
					} else {
						_, errno := RawZap(&old, 1)
						mustErrno(b, errno)
					}
				}
				for off := uintptr(0); off < huge && i < room; off += pageSize {
					buf[off] = 1 // once; afterwards it has memory
				}
				buf[0], buf[huge-1] = byte(i), byte(i) // all of it by the device, in real life
				if move {
					all(RawMove(u.Fd(), addr, src, huge, 0))
					mustErrno(b, RawWriteProtect(u.Fd(), addr, huge, ProtectWP))
				} else {
					all(RawCopy(u.Fd(), addr, src, huge, CopyWP))
				}
				for off := uintptr(0); off < huge; off += pageSize {
					sum += *at(addr + off)
				}
				if *at(addr) != byte(i) || *at(addr + huge - 1) != byte(i) {
					b.Fatal("it reads differently where it has come to")
				}
			}
			i := uintptr(0)
			for ; i < 2*room; i++ {
				cycle(i)
			}
			before := processCPU()
			b.ResetTimer()
			for range b.N {
				cycle(i)
				i++
			}
			b.ReportMetric(float64(processCPU()-before)/float64(b.N*huge/int(pageSize)), "cpu-ns/4KiB")
			_ = sum
		})
	}
}

// processCPU is the processor time of the process, in ns.
func processCPU() int64 {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}
