package coro

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A raw fault in a coroutine stops the loop, not for ever and not unnoticed:
// every access is right, also while the collector stops the world, and the
// trap has counted it.
func TestRawFaultsInCoroutines(t *testing.T) {
	if !inChild(t, 60*time.Second) {
		return
	}
	mem := mini(t)
	for _, procs := range []int{1, 2, 8} {
		runtime.GOMAXPROCS(procs)
		stop := gcLoop()
		const n = 40
		before := ReadStats()
		loop := NewLoop()
		fd := efdNew(t, unix.EFD_SEMAPHORE)
		for i := range n {
			loop.Go(func(task *Task) error {
				if _, err := task.Await(fd); err != nil {
					return err
				}
				if done, err := everyday(mem, i*everydayPages); err != nil || done != everydayPages {
					t.Errorf("GOMAXPROCS %d: after %d accesses: %v", procs, done, err)
				}
				efdSignal(t, fd, 1)
				return task.Yield()
			})
		}
		efdSignal(t, fd, 1)
		if err := loop.Run(context.Background()); err != nil {
			t.Errorf("GOMAXPROCS %d: Run = %v", procs, err)
		}
		stop()
		after := ReadStats()
		if d := after.Faults - before.Faults; d < n*everydayPages {
			t.Errorf("GOMAXPROCS %d: %d faults counted, want at least %d", procs, d, n*everydayPages)
		}
		if after.Blocked+after.Parked == before.Blocked+before.Parked {
			t.Errorf("GOMAXPROCS %d: nobody counted as parked or blocked", procs)
		}
		miniReset(0, n*everydayPages)
	}
}

// A page that cannot be read is a panic of the coroutine that asks for that,
// and Run's error knows the address.
func TestFailedPageInACoroutineIsAnErrorWithItsAddress(t *testing.T) {
	efdDeadline(t)
	mem := mini(t)
	miniState[7] = miniFail
	loop := NewLoop()
	loop.Go(func(*Task) error {
		debug.SetPanicOnFault(true) // of this coroutine only
		touch(mem, 7*miniPage+5)
		return nil
	})
	err := loop.Run(context.Background())
	var fault interface {
		error
		Addr() uintptr
	}
	if !errors.As(err, &fault) || fault.Addr() != miniLo+7*miniPage+5 || !strings.Contains(err.Error(), "touch") {
		t.Errorf("Run = %v", err)
	}
}
