package pager

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// watchedStore shows on which goroutine each Done runs, and keeps reads back
// while it is told to.
type watchedStore struct {
	store.Store
	mu       sync.Mutex
	doneOn   map[string]int // by goroutine
	buffered bool
	hold     bool
	held     []func()
}

func (s *watchedStore) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		done := op.Done
		op.Done = func(op *aio.Op) {
			s.mu.Lock()
			s.doneOn[goroutine()]++
			s.buffered = s.buffered || op.Buffered
			s.mu.Unlock()
			op.Done = done
			done(op)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold {
		ops = slices.Clone(ops)
		s.held = append(s.held, func() { s.Store.Start(e, ops) })
		return
	}
	s.Store.Start(e, ops)
}

func (s *watchedStore) keptBack() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

func (s *watchedStore) let() {
	s.mu.Lock()
	held := s.held
	s.hold, s.held = false, nil
	s.mu.Unlock()
	for _, f := range held {
		f()
	}
}

// goroutine is the name of the calling goroutine: "goroutine 7".
func goroutine() string {
	b := make([]byte, 64)
	return string(bytes.Join(bytes.Fields(b[:runtime.Stack(b, false)])[:2], []byte(" ")))
}

func watchedPager(t *testing.T, o Options) (*Pager, *Region, *watchedStore) {
	t.Helper()
	name, _ := stampFile(t, 256*FrameSize)
	f, err := store.OpenFile(name, store.FileOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	s := &watchedStore{Store: f, doneOn: map[string]int{}}
	o.Budget, o.Engine = 32*FrameSize, aio.LinuxAIO
	p, r := rawMap(t, o, s, RegionOptions{ReadOnly: true, Prefetch: prefetch.None()})
	return p, r, s
}

// One goroutine that misses takes its completions from the ring itself.
func TestWhoMissesAloneReaps(t *testing.T) {
	p, r, s := watchedPager(t, Options{})
	defer p.Close()
	const misses = 200
	var b [8]byte
	for i := range int64(misses) {
		if _, err := r.ReadAt(b[:], i*3%256*FrameSize); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buffered {
		t.Skip("no direct I/O on the file system of temporary files: threads do the reads")
	}
	if n := s.doneOn[goroutine()]; n < misses*9/10 {
		t.Errorf("%d of %d reads ended on the goroutine they were for: %v", n, misses, s.doneOn)
	}
}

// aloneAt is a ReadAt of the first page that waits alone for a read that the
// store keeps back.
func aloneAt(p *Pager, r *Region, s *watchedStore) (read chan error) {
	p.awake.rest.Store(1 << 20) // at the Bell, not before it
	return keptBackAt(r, s, p.alone.taken.Load)
}

// keptBackAt is a ReadAt of the first page whose read the store keeps back, when it
// waits for it.
func keptBackAt(r *Region, s *watchedStore, waits func() bool) (read chan error) {
	s.mu.Lock()
	s.hold = true
	s.mu.Unlock()
	read = make(chan error, 1)
	go func() {
		var b [8]byte
		_, err := r.ReadAt(b[:], 0)
		read <- err
	}()
	for s.keptBack() == 0 || !waits() {
		time.Sleep(time.Millisecond)
	}
	return read
}

// closeTells closes p while a ReadAt waits for a read that s keeps back, and that is told.
func closeTells(t *testing.T, p *Pager, s *watchedStore, read chan error) {
	t.Helper()
	closed := make(chan error, 1)
	go func() { closed <- p.Close() }()
	if err := within10s(t, "ReadAt", read); !errors.Is(err, ErrClosed) {
		t.Errorf("ReadAt while the region closes: %v", err)
	}
	s.let()
	if err := within10s(t, "Close", closed); err != nil {
		t.Error(err)
	}
}

func within10s(t *testing.T, what string, c chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal(what + " does not end")
		return nil
	}
}

// Who waits alone is told that the region closes, although his read has not ended.
func TestCloseBeforeTheBell(t *testing.T) {
	p, r, s := watchedPager(t, Options{})
	closeTells(t, p, s, aloneAt(p, r, s))
}

// The fault server takes the page over and reads it. The read that rings the Bell
// is taken from the ring all the same, although nobody waits for it any more.
func TestTakenOverBeforeTheBell(t *testing.T) {
	p, r, s := watchedPager(t, Options{Park: coro.Block})
	defer p.Close()
	if err := r.Raw(); err != nil {
		t.Skip(err)
	}
	read := aloneAt(p, r, s)
	if r.Bytes()[0] == 0 {
		t.Error("the page has no stamp")
	}
	if err := within10s(t, "ReadAt", read); err != nil {
		t.Error(err)
	}
	if p.inflight.Load() != 1 || !p.alone.owed.Load() {
		t.Fatalf("%d reads under way, the Bell is owed: %v", p.inflight.Load(), p.alone.owed.Load())
	}
	s.let()
	for begun := time.Now(); p.inflight.Load() != 0 || p.alone.taken.Load(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			t.Fatal("nobody has taken its completion")
		}
	}
}
