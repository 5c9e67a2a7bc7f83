package liveness

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestCloseWithWaiters closes a region (or the pager with it) on which a
// thousand goroutines wait for a device that has stopped. Close ends every
// wait; it may itself wait for the device.
func TestCloseWithWaiters(t *testing.T) {
	for _, way := range append(explicit[:len(explicit):len(explicit)], raw...) {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/pager=%v", way.name, whole), func(t *testing.T) {
				if child.Isolate(t, child.Options{Procs: 2}) {
					return
				}
				const waiters = 1000
				p, err := pager.New(pager.Options{Budget: 2 * waiters * page})
				if err != nil {
					t.Fatal(err)
				}
				isRaw := way.name == "Bytes" || way.name == "View"
				s := store.NewFaulty(fixture.Memory(t, waiters*page, 1), store.FaultyOptions{Kernel: isRaw})
				r, err := p.Map(s, quiet)
				if err != nil {
					t.Fatal(err)
				}
				if isRaw {
					fixture.NeedRaw(t, r)
					if m := p.Stats().ParkMode; m == coro.Block || m == coro.Restart {
						t.Skipf("raw access does not wait for this store in this mode (%v)", m)
					}
				}
				s.Hold(store.OnRead)
				errs := make(chan error, waiters)
				for i := range int64(waiters) {
					go func() { errs <- way.read(context.Background(), r, i*page) }()
				}
				fixture.Eventually(t, "all wait", func() bool { return p.Stats().Misses == waiters })
				closed := make(chan error, 1)
				go func() {
					if whole {
						closed <- p.Close()
					} else {
						closed <- r.Close()
					}
				}()
				select {
				case err := <-closed:
					closed <- err
				case <-time.After(50 * time.Millisecond):
				}
				s.Release()
				ended := 0
				for range waiters {
					switch err := <-errs; {
					case errors.Is(err, pager.ErrClosed):
						ended++
					case err != nil:
						t.Fatalf("a waiter was told %v", err)
					}
				}
				if err := <-closed; err != nil {
					t.Errorf("Close: %v", err)
				}
				t.Logf("%d of %d waits ended with ErrClosed", ended, waiters)
				if way.name != "Bytes" { // see tests/hostile for memory kept from before
					if err := way.read(context.Background(), r, 0); !errors.Is(err, pager.ErrClosed) {
						t.Errorf("%s after Close: %v, want ErrClosed", way.name, err)
					}
				}
				if err := p.Close(); err != nil {
					t.Errorf("Pager.Close: %v", err)
				}
			})
		}
	}
}

// TestCloseWaitsForPins: memory that somebody has pinned stays until Release.
func TestCloseWaitsForPins(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	r, err := p.Map(fixture.Memory(t, 100*page, 1), quiet)
	if err != nil {
		t.Fatal(err)
	}
	pin, err := r.Acquire(context.Background(), 3*page, 2*page)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- r.Close() }()
	fixture.Eventually(t, "new work is refused", func() bool {
		p, err := r.Acquire(context.Background(), 3*page, page)
		if err == nil {
			p.Release()
		}
		return errors.Is(err, pager.ErrClosed)
	})
	if err := fixture.Check(pin.Bytes(), 3*page, 1); err != nil {
		t.Error(err)
	}
	select {
	case err := <-closed:
		t.Fatalf("Close returned (%v) while a page was pinned", err)
	case <-time.After(20 * time.Millisecond):
	}
	pin.Release()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}

// TestCloseWaitsForView: a closure that runs sees its memory to the end.
func TestCloseWaitsForView(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	r, err := p.Map(fixture.Memory(t, 100*page, 1), quiet)
	if err != nil {
		t.Fatal(err)
	}
	fixture.NeedRaw(t, r)
	in, out := make(chan struct{}), make(chan struct{})
	viewed := make(chan error, 1)
	go func() {
		viewed <- r.View(context.Background(), func(mem []byte) error {
			close(in)
			<-out
			return fixture.Check(mem, 0, 1)
		})
	}()
	<-in
	closed := make(chan error, 1)
	go func() { closed <- r.Close() }()
	fixture.Eventually(t, "new work is refused", func() bool {
		_, err := r.ReadAt(make([]byte, 1), 0)
		return errors.Is(err, pager.ErrClosed)
	})
	close(out)
	if err := <-viewed; err != nil && !errors.Is(err, pager.ErrClosed) {
		t.Errorf("the View that Close found running: %v", err)
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}
