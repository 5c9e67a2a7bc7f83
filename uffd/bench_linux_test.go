package uffd

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Costs per page of each primitive, in ns/page, for benchstat:
//
//	go test -run '^$' -bench . -count 10 ./uffd | tee new.txt
//
// What undoes the work of a round is not timed; it is always one call over the
// whole range, so that it stays short.

const benchPages = 1024

func perPage(b *testing.B, pages int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(pages), "ns/page")
}

func mustErrno(b *testing.B, errno uintptr) {
	if errno != 0 {
		b.Fatal(unix.Errno(errno))
	}
}

// round runs undo (untimed), then work on benchPages pages.
func round(b *testing.B, undo, work func()) {
	for b.Loop() {
		b.StopTimer()
		undo()
		b.StartTimer()
		work()
	}
	perPage(b, benchPages)
}

func zapAll(b *testing.B, addr uintptr) func() {
	r := Range{addr, benchPages * pageSize}
	return func() {
		_, errno := RawZap(&r, 1)
		mustErrno(b, errno)
	}
}

func copyAll(b *testing.B, u *FD, dst, src uintptr, mode uint64) func() {
	return func() {
		_, errno := RawCopy(u.Fd(), dst, src, benchPages*pageSize, mode)
		mustErrno(b, errno)
	}
}

func BenchmarkCopy(b *testing.B) {
	for _, wp := range []uint64{0, CopyWP} {
		for _, pages := range []uintptr{1, 4, 16, 64, 256} {
			b.Run(fmt.Sprintf("wp=%v/pages=%d", wp == CopyWP, pages), func(b *testing.B) {
				u := open(b, APIWriteProtect)
				dst, src := region(b, u, benchPages), memory(b, benchPages)
				fill(src, benchPages, 1)
				fd, n := u.Fd(), pages*pageSize
				round(b, zapAll(b, dst), func() {
					for at := uintptr(0); at < benchPages*pageSize; at += n {
						_, errno := RawCopy(fd, dst+at, src+at, n, wp)
						mustErrno(b, errno)
					}
				})
			})
		}
	}
}

// The ordinary form, which tells the scheduler and returns an error value.
func BenchmarkCopyMethod(b *testing.B) {
	u := open(b, APIWriteProtect)
	dst, src := region(b, u, benchPages), memory(b, benchPages)
	fill(src, benchPages, 1)
	b.ReportAllocs()
	round(b, zapAll(b, dst), func() {
		for at := uintptr(0); at < benchPages*pageSize; at += pageSize {
			if _, err := u.Copy(dst+at, src+at, pageSize, CopyWP); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkZeroPage(b *testing.B) {
	u := open(b, APIWriteProtect)
	dst := region(b, u, benchPages)
	round(b, zapAll(b, dst), func() {
		for at := uintptr(0); at < benchPages*pageSize; at += pageSize {
			_, errno := RawZeroPage(u.Fd(), dst+at, pageSize, 0)
			mustErrno(b, errno)
		}
	})
}

func BenchmarkPoison(b *testing.B) {
	needs(b, FeaturePoison)
	u := open(b, APIPoison)
	dst := region(b, u, benchPages)
	round(b, zapAll(b, dst), func() {
		for at := uintptr(0); at < benchPages*pageSize; at += pageSize {
			_, errno := RawPoison(u.Fd(), dst+at, pageSize, 0)
			mustErrno(b, errno)
		}
	})
}

// Every second page, so that nothing can be merged: what eviction looks like.
func BenchmarkZap(b *testing.B) {
	for _, way := range []string{"batch", "madvise"} {
		for _, vectors := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("way=%s/vectors=%d", way, vectors), func(b *testing.B) {
				PrepareZap()
				if way == "madvise" {
					defer setZapPidfd(int(int32(zapPidfd)))
					setZapPidfd(noPidfd)
				} else {
					needs(b, FeatureProcessMadvise)
				}
				addr := memory(b, 2*benchPages)
				vecs := make([]Range, benchPages)
				for i := range vecs {
					vecs[i] = Range{addr + 2*uintptr(i)*pageSize, pageSize}
				}
				round(b, func() { fill(addr, 2*benchPages, 1) }, func() {
					for i := 0; i < len(vecs); i += vectors {
						_, errno := RawZap(&vecs[i], vectors)
						mustErrno(b, errno)
					}
				})
			})
		}
	}
}

func BenchmarkMove(b *testing.B) {
	needs(b, FeatureMove)
	for _, pages := range []uintptr{1, 16, 512} {
		b.Run(fmt.Sprintf("pages=%d", pages), func(b *testing.B) {
			u := open(b, APIMove)
			dst, src := region(b, u, benchPages), memory(b, benchPages)
			n := pages * pageSize
			round(b, func() { zapAll(b, dst)(); fill(src, benchPages, 1) }, func() {
				for at := uintptr(0); at < benchPages*pageSize; at += n {
					_, errno := RawMove(u.Fd(), dst+at, src+at, n, 0)
					mustErrno(b, errno)
				}
			})
		})
	}
}

func BenchmarkWriteProtect(b *testing.B) {
	for _, protect := range []uint64{ProtectWP, 0} {
		for _, pages := range []uintptr{1, 16, 512} {
			b.Run(fmt.Sprintf("on=%v/pages=%d", protect == ProtectWP, pages), func(b *testing.B) {
				u := open(b, APIWriteProtect)
				dst, src := region(b, u, benchPages), memory(b, benchPages)
				fill(src, benchPages, 1)
				mode := CopyWP
				if protect == ProtectWP {
					mode = 0
				}
				install, zap := copyAll(b, u, dst, src, mode), zapAll(b, dst)
				n := pages * pageSize
				round(b, func() { zap(); install() }, func() {
					for at := uintptr(0); at < benchPages*pageSize; at += n {
						mustErrno(b, RawWriteProtect(u.Fd(), dst+at, n, protect))
					}
				})
			})
		}
	}
}

func BenchmarkPagemapScan(b *testing.B) {
	for _, every := range []uintptr{2, 64, 1024} {
		b.Run(fmt.Sprintf("one-in=%d", every), func(b *testing.B) {
			p := openPagemap(b)
			addr := memory(b, benchPages)
			for i := uintptr(0); i < benchPages; i += every {
				*at(addr + i*pageSize) = 1
			}
			runs := make([]PageRun, benchPages)
			s := Scan{Start: addr, End: addr + benchPages*pageSize, Mask: PagePresent, Return: PagePresent}
			for b.Loop() {
				if n, _, err := p.Scan(s, runs); err != nil || n != int(benchPages/every) {
					b.Fatal(n, err)
				}
			}
			perPage(b, benchPages)
		})
	}
}

// What mapping a region costs here: open, register, close.
func BenchmarkOpenRegisterClose(b *testing.B) {
	addr := memory(b, benchPages)
	for b.Loop() {
		u, err := Open(APISigbus, 0)
		if err != nil {
			b.Skip(err)
		}
		if err := u.Register(addr, benchPages*pageSize, RegisterMissing); err != nil {
			b.Fatal(err)
		}
		u.Close()
	}
}
