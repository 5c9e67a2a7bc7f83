//go:build linux

package aio

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkReadScattered: one read of so many bytes into one buffer, as package pager reads
// runs of pages, and into frames of 4 KiB that are anywhere in a pool (preadv), by four
// threads, in order: what a scan does.
func BenchmarkReadScattered(b *testing.B) {
	const pool, threads = 16 << 20, 4
	fd := benchFile(b)
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20} {
		for _, scattered := range []bool{false, true} {
			name := fmt.Sprintf("size=%dKiB/contiguous", size>>10)
			if scattered {
				name = fmt.Sprintf("size=%dKiB/scattered", size>>10)
			}
			b.Run(name, func(b *testing.B) {
				mem := buffer(b, threads*pool)
				clear(mem)
				var next atomic.Int64
				b.SetBytes(int64(size))
				measure(b, func() {
					var wg sync.WaitGroup
					for i := range threads {
						wg.Go(func() {
							mine := mem[i*pool:][:pool]
							frames := rand.Perm(pool / benchPage)
							iov := make([][]byte, 0, size/benchPage)
							for at := 0; ; at += size {
								k := next.Add(1) - 1
								if k >= int64(b.N) {
									return
								}
								at %= pool
								iov = iov[:0]
								if scattered {
									for _, f := range frames[at/benchPage:][:size/benchPage] {
										iov = append(iov, mine[f*benchPage:][:benchPage])
									}
								} else {
									iov = append(iov, mine[at:][:size])
								}
								if n, err := unix.Preadv(fd, iov, k*int64(size)%benchSize); err != nil || n != size {
									b.Error(n, err)
									return
								}
							}
						})
					}
					wg.Wait()
				})
			})
		}
	}
}
