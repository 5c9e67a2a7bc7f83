//go:build linux

package pager

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Nothing can be written any more, and as much is dirty as may be. Who asks for room
// is told why there is none.
func TestAFullDiskIsToldToWhoWaitsForRoom(t *testing.T) {
	_, r, s := mapMemory(t, 256, Options{Budget: 64 * FrameSize, StallLimit: 100 * time.Millisecond},
		store.FaultyOptions{}, RegionOptions{Retry: Retry{Times: -1}})
	defer r.Sync(context.Background()) // what Close is to find well again
	defer s.Clear()
	s.Inject(store.Fault{Ops: store.OnWrite, Err: unix.ENOSPC})
	var err error
	within(t, time.Minute, "WriteAt without room", func() {
		for page := int64(0); err == nil && page < 256; page++ {
			_, err = r.WriteAt([]byte{1}, page*FrameSize)
		}
	})
	if !errors.Is(err, ErrBudget) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v, want ErrBudget and ENOSPC", err)
	}
}

// A raw store waits, but not for longer than until its region is closed, also within
// an Update, for which Close waits.
func TestCloseEndsUpdatesOnAFullDisk(t *testing.T) {
	needProtection(t)
	p, err := New(Options{Budget: 64 * FrameSize, StallLimit: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := store.NewFaulty(store.NewMemory(1024*FrameSize), store.FaultyOptions{Kernel: true})
	r, err := p.Map(s, RegionOptions{Retry: Retry{Times: -1}})
	if err != nil {
		t.Fatal(err)
	}
	if st := p.Stats(); r.Raw() != nil || st.ParkMode != coro.InPlace {
		t.Skip(st.Park) // a thread that waits has its own way to the store
	}
	s.Inject(store.Fault{Ops: store.OnWrite, Err: unix.ENOSPC})
	const writers = 8
	var wg sync.WaitGroup
	for g := range writers {
		wg.Go(func() {
			err := r.Update(context.Background(), func(mem []byte) error {
				for page := g; page < 1024; page += writers {
					mem[page*FrameSize] = 1
				}
				return nil
			})
			var f *FaultError
			if !errors.As(err, &f) || !errors.Is(err, ErrBudget) {
				t.Errorf("Update: %v, want ErrBudget in a FaultError", err)
			}
		})
	}
	eventually(t, "stores wait for room, and writing fails", func() bool {
		return p.lineLen[lineCredits].Load() > 0 && p.Stats().WriteErrors > 10
	})
	within(t, 30*time.Second, "Close", func() {
		if err := r.Close(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("Close: %v", err)
		}
		wg.Wait()
	})
}
