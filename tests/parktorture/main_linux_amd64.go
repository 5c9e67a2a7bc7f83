// Command parktorture parks goroutines in place, in every form of access, as
// hard as it can: many more goroutines than pages, a collector that never
// rests, stacks that grow right after they were parked, and whatever else the
// flags switch on. It says PASS and what it counted, or dies: with status 3
// and WRONG for a wrong value, or as the Go runtime dies.
//
// It proves something only together with its negative controls: built with
// -tags uffdpager_negative and run with UFFDPAGER_NEGATIVE set, it must fail.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"runtime/trace"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/uffdpager/uffdpager/coro"
)

var (
	duration   = flag.Duration("dur", 10*time.Second, "how long")
	goroutines = flag.Int("g", 500, "number of goroutines, at most 2048")
	size       = flag.Uint64("size", 1<<30, "bytes of the region")
	budget     = flag.Int("budget", 4096, "resident pages of the part that is only read")
	latency    = flag.Duration("latency", 0, "of a simulated read")
	mask       = flag.Int("ops", 1<<len(ops)-1, "bit mask of operations: "+opNames())
	collect    = flag.Bool("gc", true, "collect garbage all the time")
	percent    = flag.Int("gcpercent", 1, "GOGC")
	profile    = flag.Bool("profile", false, "CPU profile, stack dumps and goroutine profiles meanwhile")
	tracing    = flag.Bool("trace", false, "execution trace meanwhile")
	cthreads   = flag.Int("cthreads", 0, "number of threads of C's, and of goroutines in C, that read too (needs cgo)")
	maxBlocked = flag.Float64("max-blocked", 1, "fail if a larger share of the faults blocked a thread")
	mustPark   = flag.Bool("must-park", false, "fail if parking in place is not active")
)

func opNames() (s string) {
	for i, o := range ops {
		s += fmt.Sprintf("%d %s, ", 1<<i, o.name)
	}
	return s[:len(s)-2]
}

func main() {
	flag.Parse()
	active, why := coro.ParkStatus()
	fmt.Printf("%s GOMAXPROCS=%d park in place: %v %s\n", runtime.Version(), runtime.GOMAXPROCS(0), active, why)
	if !active && *mustPark {
		os.Exit(1)
	}
	r, err := newRegion(uintptr(*size), uintptr(*size)/8*7, *budget, *latency)
	if err != nil {
		fmt.Println("SKIP:", err)
		return
	}
	debug.SetGCPercent(*percent)
	var stop atomic.Bool
	var wg, extras sync.WaitGroup
	progress := make([]atomic.Uint64, *goroutines*8) // a cache line each
	for i := range *goroutines {
		w := &worker{r: r, id: uint64(i), rnd: rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano()))),
			counts: map[uint64]uint64{}, keys: map[string]int{}, seed: maphash.MakeSeed()}
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ; !stop.Load(); w.n++ {
				progress[w.id*8].Add(1)
				k := w.rnd.IntN(len(ops))
				if *mask>>k&1 != 0 {
					ops[k].run(w, w.rnd.Uint64N(uint64(r.writable)-65536)&^7)
				}
			}
		}()
	}
	background := func(f func()) {
		extras.Add(1)
		go func() {
			defer extras.Done()
			for !stop.Load() {
				f()
			}
		}()
	}
	waitC := func() {}
	if *cthreads != 0 {
		waitC = cThreads(r, *cthreads, &stop)
	}
	background(churn)
	if *collect {
		background(runtime.GC)
	}
	if *profile {
		pprof.StartCPUProfile(io.Discard)
		buf := make([]byte, 16<<20)
		background(func() {
			runtime.Stack(buf, true)
			pprof.Lookup("goroutine").WriteTo(new(bytes.Buffer), 1)
			time.Sleep(20 * time.Millisecond)
		})
	}
	if *tracing {
		background(func() {
			if trace.Start(io.Discard) == nil {
				time.Sleep(200 * time.Millisecond)
				trace.Stop()
			}
		})
	}
	urgent := make(chan os.Signal, 8) // the signal whose handler we borrow
	signal.Notify(urgent, syscall.SIGURG)
	go func() {
		for range urgent {
		}
	}()

	// Every goroutine must get on in every interval: a lost wake-up is one
	// that does not.
	interval := min(max(*duration/3, time.Second), 20*time.Second)
	last := make([]uint64, *goroutines)
	var total uint64
	for end := time.Now().Add(*duration); time.Now().Before(end); {
		time.Sleep(min(interval, time.Until(end)+time.Millisecond))
		total = 0
		stuck := 0
		for i := range last {
			n := progress[i*8].Load()
			if n == last[i] {
				stuck++
			}
			last[i] = n
			total += n
		}
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		s := coro.ReadStats()
		fmt.Printf("ops %d, parked %d, blocked %d, delivered %d, loaded %d, evicted %d, collections %d, without progress %d\n",
			total, s.Parked, s.Blocked, s.Delivered, r.loaded.Load(), r.evicted.Load(), ms.NumGC, stuck)
	}
	stop.Store(true)
	ended := make(chan struct{})
	go func() { wg.Wait(); extras.Wait(); waitC(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(60 * time.Second):
		buf := make([]byte, 64<<20)
		fmt.Printf("WRONG: goroutines do not end\n%s\n", buf[:runtime.Stack(buf, true)])
		os.Exit(3)
	}
	if *profile {
		pprof.StopCPUProfile()
	}
	s := coro.ReadStats()
	share := float64(s.Blocked) / float64(max(s.Blocked+s.Parked, 1))
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	for i, b := range s.BlockedBy {
		if i < 8 {
			fmt.Printf("  blocked %8d  %s: %v\n", b.Count, b.Func, b.Reason)
		}
	}
	verdict := "PASS"
	if share > *maxBlocked {
		verdict = "WRONG: too many threads blocked:"
	}
	fmt.Printf("%s ops %d, parked %d, blocked %d (%.4f), delivered %d, collections %d\n", verdict, total, s.Parked, s.Blocked, share, s.Delivered, ms.NumGC)
	if verdict != "PASS" {
		os.Exit(3)
	}
}

var garbage atomic.Pointer[node]

// churn makes garbage, and goroutines with stacks that grow.
func churn() {
	var l *node
	for i := range 1000 {
		l = &node{next: l, v: uint64(i)}
	}
	garbage.Store(l)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { defer wg.Done(); grow(300) }()
	wg.Wait()
	time.Sleep(50 * time.Microsecond)
}

//go:noinline
func grow(n int) int {
	var a [32]int
	a[n&31] = n
	if n == 0 {
		return 0
	}
	return grow(n-1) + a[n&31]
}
