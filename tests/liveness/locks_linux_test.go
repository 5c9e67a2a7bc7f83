package liveness

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/eventfd"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// rig is a region over a store that can be held.
func rig(t *testing.T, budget, pages int64) (*pager.Pager, *pager.Region, *store.Faulty) {
	t.Helper()
	p := fixture.Pager(t, pager.Options{Budget: budget * page})
	s := store.NewFaulty(fixture.Memory(t, pages*page, 1), store.FaultyOptions{})
	r := fixture.Map(t, p, s, quiet)
	t.Cleanup(s.Release)
	return p, r, s
}

func newEventfd(t *testing.T) eventfd.FD {
	t.Helper()
	efd, err := eventfd.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = efd.Close() })
	return efd
}

// TestLocksCostNoGoroutine: 100,000 locks wait without a goroutine or a thread
// each.
func TestLocksCostNoGoroutine(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 2, Deadline: 90 * time.Second}) {
		return
	}
	const locks, pages = 100000, 4000
	p, r, s := rig(t, 3*pages, pages)
	efd := newEventfd(t)
	s.Hold(store.OnRead)
	goroutines, threads := runtime.NumGoroutine(), fixture.Threads(t)
	list := make([]*pager.Lock, locks)
	for i := range list {
		fd := -1
		if i%100 == 0 { // each takes a descriptor
			fd = efd.FD()
		}
		var err error
		if list[i], err = r.LockEventfd(int64(i%pages)*page, page, fd); err != nil {
			t.Fatalf("lock %d: %v", i, err)
		}
	}
	if n := runtime.NumGoroutine(); n > goroutines+20 {
		t.Errorf("%d goroutines for %d locks", n-goroutines, locks)
	}
	if n := fixture.Threads(t); n >= 20 {
		t.Errorf("%d threads (%d before) for %d locks", n, threads, locks)
	}
	for i, l := range list {
		select {
		case <-l.Done():
			t.Fatalf("lock %d is done: %v", i, l.Err())
		default:
		}
	}
	s.Release()
	for i, l := range list {
		if err := l.Wait(context.Background()); err != nil {
			t.Fatalf("lock %d: %v", i, err)
		}
	}
	if n := efd.Value(); n != locks/100 {
		t.Errorf("the eventfd counts %d, want one for each of %d locks", n, locks/100)
	}
	if n := p.Stats().Pinned; n != pages*page {
		t.Errorf("%d bytes pinned, want %d", n, pages*page)
	}
	for _, l := range list {
		l.Unlock()
	}
	if n := p.Stats().Pinned; n != 0 {
		t.Errorf("%d bytes pinned after Unlock", n)
	}
}

// TestLockThroughEpoll: the descriptor in an epoll set says when the pages are
// there.
func TestLockThroughEpoll(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	_, r, s := rig(t, 256, 100)
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ep)
	s.Hold(store.OnRead)
	const n = 50
	locks := map[int32]*pager.Lock{}
	for i := range int64(n) {
		efd := newEventfd(t)
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, efd.FD(), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(efd)}); err != nil {
			t.Fatal(err)
		}
		l, err := r.LockEventfd(2*i*page, 2*page, efd.FD())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Unlock()
		locks[int32(efd)] = l
	}
	events := make([]unix.EpollEvent, n)
	if k, err := unix.EpollWait(ep, events, 10); k != 0 || err != nil && err != unix.EINTR {
		t.Fatalf("%d eventfds were signalled before anything was read (%v)", k, err)
	}
	go s.Release() // elsewhere, so that what it signals is seen as soon as it is signalled
	for len(locks) > 0 {
		k, err := unix.EpollWait(ep, events, 10000)
		if err == unix.EINTR {
			continue
		}
		if k == 0 || err != nil {
			t.Fatalf("%d locks were never signalled (%v)", len(locks), err)
		}
		for _, e := range events[:k] {
			if v := eventfd.FromFD(int(e.Fd)).Value(); v != 1 {
				t.Errorf("signalled %d times", v)
			}
			l, ok := locks[e.Fd]
			if !ok {
				t.Fatal("signalled again")
			}
			select {
			case <-l.Done():
			default:
				t.Error("signalled, and Done is open")
			}
			if err := l.Err(); err != nil {
				t.Error(err)
			}
			delete(locks, e.Fd)
		}
	}
}

// TestLockThroughAwait: goroutines wait for the descriptor, not for the lock.
func TestLockThroughAwait(t *testing.T) {
	if child.Isolate(t, child.Options{Procs: 1}) {
		return
	}
	_, r, s := rig(t, 1024, 300)
	s.Hold(store.OnRead)
	errs := make(chan error, 300)
	for i := range int64(300) {
		efd := newEventfd(t)
		go func() {
			l, err := r.LockEventfd(i*page, page, efd.FD())
			if err != nil {
				errs <- err
				return
			}
			defer l.Unlock()
			if n, err := coro.Await(context.Background(), efd.FD()); err != nil || n != 1 {
				errs <- errors.Join(errors.New("Await"), err)
				return
			}
			errs <- l.Err()
		}()
	}
	fixture.Eventually(t, "all reads wait", func() bool { return s.Counts().Held > 0 })
	s.Release()
	for range 300 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// TestLockBeyondTheBudget cannot ever be granted.
func TestLockBeyondTheBudget(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	p, r, _ := rig(t, 64, 1000)
	efd := newEventfd(t)
	for _, n := range []int64{p.Stats().Pinnable + page, 100 * page, 1000 * page} {
		l, err := r.LockEventfd(0, n, efd.FD())
		if err == nil {
			err = l.Wait(context.Background())
			l.Unlock()
		}
		if !errors.Is(err, pager.ErrBudget) {
			t.Errorf("LockEventfd of %d bytes under a budget of %d: %v, want ErrBudget", n, 64*page, err)
		}
	}
	if n := p.Stats().Pinned; n != 0 {
		t.Errorf("%d bytes pinned", n)
	}
}

// TestLockOfAFailingRead: the error is in Err, the eventfd is signalled, and
// the next lock tries again.
func TestLockOfAFailingRead(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	p, r, s := rig(t, 64, 100)
	s.Inject(store.Fault{Ops: store.OnRead, Off: 5 * page, Len: page, Err: unix.EIO})
	efd := newEventfd(t)
	l, err := r.LockEventfd(4*page, 3*page, efd.FD())
	if err != nil {
		t.Fatal(err)
	}
	if err := efd.Wait(); err != nil {
		t.Fatal(err)
	}
	var fault *pager.FaultError
	if err := l.Err(); !errors.Is(err, unix.EIO) || !errors.As(err, &fault) {
		t.Errorf("Err is %v, want a FaultError with EIO", err)
	} else if fault.Offset != 5*page {
		t.Errorf("the fault names offset %d, want %d", fault.Offset, 5*page)
	}
	if err := l.Wait(context.Background()); !errors.Is(err, unix.EIO) {
		t.Errorf("Wait says %v", err)
	}
	l.Unlock()
	s.Clear()
	l, err = r.LockEventfd(4*page, 3*page, -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Wait(context.Background()); err != nil {
		t.Errorf("after the fault has gone: %v", err)
	}
	l.Unlock()
	if n := p.Stats().Pinned; n != 0 {
		t.Errorf("%d bytes pinned", n)
	}
}

// TestUnlockBeforeDone gives up: nothing stays pinned, and nothing is
// signalled through a descriptor that is another file's by then.
func TestUnlockBeforeDone(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	p, r, s := rig(t, 256, 100)
	s.Hold(store.OnRead)
	var locks []*pager.Lock
	for i := range int64(100) {
		efd, err := eventfd.New()
		if err != nil {
			t.Fatal(err)
		}
		l, err := r.LockEventfd(i*page, page, efd.FD())
		if err != nil {
			t.Fatal(err)
		}
		// The caller may close his own at once: it was duplicated.
		if err := efd.Close(); err != nil {
			t.Fatal(err)
		}
		locks = append(locks, l)
	}
	bystander := newEventfd(t) // takes a number that was closed
	for _, l := range locks[:50] {
		l.Unlock()
	}
	s.Release()
	for i, l := range locks[50:] {
		if err := l.Wait(context.Background()); err != nil {
			t.Fatalf("lock %d: %v", i, err)
		}
	}
	if v := bystander.Value(); v != 0 {
		t.Errorf("a descriptor of somebody else's was signalled %d times", v)
	}
	if n := p.Stats().Pinned; n != 50*page {
		t.Errorf("%d bytes pinned, want %d", n, 50*page)
	}
	for _, l := range locks[50:] {
		l.Unlock()
	}
	// Unlock twice is harmless.
	locks[0].Unlock()
	locks[99].Unlock()
	fixture.Eventually(t, "nothing is pinned", func() bool { return p.Stats().Pinned == 0 })
	before := fixture.Descriptors(t)
	for range 100 {
		l, err := r.LockEventfd(0, page, bystander.FD())
		if err != nil {
			t.Fatal(err)
		}
		l.Unlock()
	}
	fixture.Eventually(t, "the duplicates are closed", func() bool { return fixture.Descriptors(t) <= before })
}
