package pager

import (
	"runtime"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// awakePager is a watchedPager on two Ps, where who waits awake does so for a minute,
// however long others take.
func awakePager(t *testing.T) (*Pager, *Region, *watchedStore) {
	t.Helper()
	procs := runtime.GOMAXPROCS(2)
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	p, r, s := watchedPager(t, Options{})
	p.awake.most.Store(int64(time.Minute))
	p.awake.slow.Store(int64(time.Minute))
	return p, r, s
}

// Who has the only read under way waits awake, and the parker does for who is parked.
func TestTheOnlyReadIsWaitedForAwake(t *testing.T) {
	for name, access := range map[string]func(r *Region, off int64) error{
		"ReadAt": func(r *Region, off int64) error { _, err := r.ReadAt(make([]byte, 8), off); return err },
		"Bytes":  func(r *Region, off int64) error { loaded.Add(uint64(r.Bytes()[off])); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			p, r, _ := awakePager(t)
			defer p.Close()
			if name == "Bytes" && (r.Raw() != nil || p.Stats().ParkMode != coro.InPlace) {
				t.Skip("nobody is parked in place")
			}
			for i := range int64(100) {
				if err := access(r, i*3%256*FrameSize); err != nil {
					t.Fatal(err)
				}
			}
			if n := p.awake.looked.Load(); n < 50 {
				t.Errorf("%d of 100 reads were waited for awake", n)
			}
		})
	}
}

// Where the device takes longer than that reads are soon waited for asleep.
func TestASlowDeviceIsWaitedForAsleep(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	const reads = 300
	s := store.NewFaulty(store.NewMemory(reads*FrameSize), store.FaultyOptions{Latency: 4 * awakeMost})
	p, r := rawMap(t, Options{Budget: 2 * reads * FrameSize}, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	defer p.Close()
	var b [8]byte
	for i := range int64(reads) {
		if _, err := r.ReadAt(b[:], i*FrameSize); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.awake.looked.Load(); n == 0 || n > 20 {
		t.Errorf("%d of %d reads were waited for awake", n, reads)
	}
}

// Who waits awake is told that the region closes, although his read has not ended.
func TestCloseWhileSomebodyWaitsAwake(t *testing.T) {
	p, r, s := awakePager(t)
	closeTells(t, p, s, keptBackAt(r, s, func() bool { return p.awake.looked.Load() != 0 }))
}

// The parker starts the read of who is parked next, although it waits for another's.
func TestTheParkerWaitsAwakeForNobodyElse(t *testing.T) {
	p, r, s := awakePager(t)
	defer p.Close()
	if r.Raw() != nil || p.Stats().ParkMode != coro.InPlace {
		t.Skip("nobody is parked in place")
	}
	s.hold = true
	done := make(chan error, 2)
	for page := range int64(2) {
		go func() { loaded.Add(uint64(r.Bytes()[page*FrameSize])); done <- nil }()
		for begun := time.Now(); s.keptBack() <= int(page); time.Sleep(time.Millisecond) {
			if time.Since(begun) > 10*time.Second {
				t.Errorf("read %d has not begun", page)
				break
			}
		}
	}
	s.let()
	within10s(t, "the first access", done)
	within10s(t, "the second access", done)
}
