package pager

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// fetches counts what fetchSlowly does; past slowFetches it is slow no more.
var fetches uint32

const slowFetches = 400

// fetchSlowly takes a millisecond, as a large page does. It runs in the signal handler.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fetchSlowly(d *desc, page uint64, mem unsafe.Pointer) (src unsafe.Pointer, n, errno uintptr) {
	if bare.Add32(&fetches, 1) < slowFetches {
		bare.FutexWait(&napWord, 0, 1_000_000)
	}
	return fetchPage(d, page, mem)
}

// Two threads that fault on the same page at the same time read it once, or twice: when
// every P is blocked each takes pages over from ordinary owners at once, but not
// from the other, who would do the same.
func TestServersDoNotTakeOverFromEachOther(t *testing.T) {
	const pages = 64
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	noCollections(t)
	p, r := rawMap(t, Options{Budget: 128 * FrameSize, Park: coro.Block}, store.NewMemory(pages*FrameSize), RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	if r.Raw() != nil {
		t.Skip(r.Raw())
	}
	fetchVia = fetchSlowly
	defer func() { fetchVia = fetchPage }()
	bare.Store32(&fetches, 0)
	mem := r.Bytes()
	var wg sync.WaitGroup
	var there, sum atomic.Int32
	for range 2 {
		wg.Go(func() {
			for page := range pages {
				for there.Add(1); there.Load() < int32(2*page+2); {
					runtime.Gosched()
				}
				sum.Add(int32(mem[page*FrameSize]))
			}
		})
	}
	wg.Wait()
	if n := bare.Load32(&fetches); n < pages || n > 2*pages {
		t.Errorf("%d pages were read %d times", pages, n)
	}
}
