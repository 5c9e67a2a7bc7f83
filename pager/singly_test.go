//go:build linux

package pager

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// A page that was read ahead together with one that cannot be read is none the worse for
// it, also for who comes to it at the moment in which that read has failed.
func TestErrorsOfAReadAheadAreOfTheirPage(t *testing.T) {
	s := store.NewFaulty(store.NewMemory(4*FrameSize), store.FaultyOptions{})
	p, r := rawMap(t, Options{Budget: 64 * FrameSize}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None(), Retry: Retry{Times: -1}})
	defer p.Close()
	s.Inject(store.Fault{Ops: store.OnRead, Off: 2 * FrameSize, Len: FrameSize, Count: -1, Err: unix.EIO})
	defer s.Release()
	for range longer(3000) {
		s.HoldDone(store.OnRead)
		p.addJob(aheadJob{r: r, next: 1, end: 3})
		p.pumpNow()
		eventually(t, "both are being read", func() bool { return stateOf(r, 1) == stLoading && s.Counts().Held == 1 })
		var wg sync.WaitGroup
		failed := make(chan struct{})
		wg.Go(func() {
			<-failed
			if _, err := r.ReadAt(make([]byte, 1), FrameSize); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { <-failed; s.Release() })
		close(failed)
		wg.Wait()
		eventually(t, "the other is given up", func() bool { return stateOf(r, 2) == stMissing })
		if err := r.Advise(0, r.Len(), DontNeed); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
}
