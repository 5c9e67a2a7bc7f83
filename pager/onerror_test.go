//go:build linux

package pager

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// The first three reads fail. Fault makes the access an error, and the next
// access tries again; Wait makes the access wait for the read that succeeds.
func TestOnReadError(t *testing.T) {
	failing := func() store.Store {
		return store.NewFaulty(store.NewMemory(64*FrameSize), store.FaultyOptions{
			Kernel: true,
			Faults: []store.Fault{{Ops: store.OnRead, Count: 3, Err: unix.EIO}},
		})
	}
	p, r := rawMap(t, Options{Budget: 32 * FrameSize}, failing(), RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	if s := p.Stats(); s.ParkMode != coro.InPlace {
		t.Skipf("a blocked fault reads the kernel form of the store, where no errors are injected (park: %s)", s.Park)
	}
	errs := 0
	for range 10 {
		err := Guard(func() error { sink += r.Bytes()[5*FrameSize]; return nil })
		if err == nil {
			break
		}
		var f *FaultError
		if !errors.Is(err, unix.EIO) || !errors.As(err, &f) || f.Offset/FrameSize != 5 {
			t.Fatalf("not the error of the page: %v", err)
		}
		errs++
	}
	if errs != 3 {
		t.Errorf("%d errors, want 3", errs)
	}
	_, w := rawMap(t, Options{Budget: 32 * FrameSize}, failing(), RegionOptions{ReadOnly: true, Prefetch: prefetch.None(), OnReadError: Wait})
	if err := Guard(func() error { sink += w.Bytes()[5*FrameSize]; return nil }); err != nil {
		t.Errorf("OnReadError Wait: %v", err)
	}
}
