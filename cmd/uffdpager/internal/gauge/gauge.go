// Package gauge measures the process and the machine a run happens on: memory,
// page tables, threads, processor time, limits, and how well a ticker ticks.
// Where there is no /proc, what comes from it is absent.
package gauge

import (
	"errors"
	"time"
)

// ErrNotSupported (Is errors.ErrUnsupported) says that this system does not
// tell.
var ErrNotSupported error = unsupported{}

type unsupported struct{}

func (unsupported) Error() string        { return "gauge: this system does not tell" }
func (unsupported) Is(target error) bool { return target == errors.ErrUnsupported }

// Process is what /proc/self/status says, see proc(5). Sizes in bytes.
type Process struct {
	RSS        int64 // VmRSS: resident memory, the page tables not included
	RSSPeak    int64 // VmHWM: the highest RSS since the start or ResetPeak
	PageTables int64 // VmPTE
	Locked     int64 // VmLck: memory locked by mlock and mlockall
	Threads    int64
	Seccomp    int64 // 0 none, 1 strict, 2 filter
}

// Machine is what limits the memory of the process. Sizes in bytes; 0: none or
// unknown.
type Machine struct {
	Memory    int64 // MemTotal
	Available int64 // MemAvailable
	SwapTotal int64
	SwapFree  int64
}

// Ticker counts how often a goroutine that wants to run every period does.
type Ticker struct {
	stop  chan struct{}
	fired chan int64
	began time.Time
}

// StartTicker begins to tick.
func StartTicker(period time.Duration) *Ticker {
	t := &Ticker{stop: make(chan struct{}), fired: make(chan int64), began: time.Now()}
	go func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		var n int64
		for {
			select {
			case <-tick.C:
				n++
			case <-t.stop:
				t.fired <- n
				return
			}
		}
	}()
	return t
}

// Stop ends the ticking. It returns how often the goroutine ran, and for how
// long it was allowed to.
func (t *Ticker) Stop() (fired int64, during time.Duration) {
	during = time.Since(t.began)
	close(t.stop)
	return <-t.fired, during
}
