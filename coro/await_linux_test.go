package coro

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAwaitTakesTheCounter(t *testing.T) {
	efdDeadline(t)
	for _, flags := range []int{0, unix.EFD_NONBLOCK} {
		fd := efdNew(t, flags)
		efdSignal(t, fd, 3)
		efdSignal(t, fd, 4)
		if v, err := Await(context.Background(), fd); v != 7 || err != nil {
			t.Errorf("flags %#x, counter 7: Await = %d, %v", flags, v, err)
		}
		out := make(chan efdResult)
		efdAwait(context.Background(), fd, 0, out)
		efdSignal(t, fd, 5)
		if r := <-out; r.value != 5 || r.err != nil {
			t.Errorf("flags %#x, signalled while waiting: Await = %d, %v", flags, r.value, r.err)
		}
		if left := efdLeft(t, fd); left != 0 {
			t.Errorf("flags %#x: %d left in the counter", flags, left)
		}
	}
}

func TestAwaitLeavesTheDescriptorAlone(t *testing.T) {
	efdDeadline(t)
	for _, flags := range []int{0, unix.EFD_NONBLOCK} {
		fd := efdNew(t, flags)
		state := func() [2]int {
			status, err1 := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			flags, err2 := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			return [2]int{status, flags}
		}
		before := state()
		out := make(chan efdResult)
		efdAwait(context.Background(), fd, 0, out)
		during := state()
		efdSignal(t, fd, 1)
		<-out
		if after := state(); before != during || before != after {
			t.Errorf("status and descriptor flags: before %#x, during %#x, after %#x", before, during, after)
		}
	}
}

func TestAwaitWakesTheOldestWaiterOnly(t *testing.T) {
	efdDeadline(t)
	fd := efdNew(t, 0)
	out := make(chan efdResult, 10)
	for who := range 10 {
		efdAwait(context.Background(), fd, who, out)
	}
	for who := range 10 {
		efdSignal(t, fd, uint64(100+who))
		if r := <-out; r.who != who || r.value != uint64(100+who) || r.err != nil {
			t.Errorf("signal %d woke waiter %d with %d, %v", who, r.who, r.value, r.err)
		}
		if n := efdWaiting(fd); n != 9-who {
			t.Errorf("after signal %d there are %d waiters", who, n)
		}
	}
}

func TestAwaitGivesASemaphoreToAsManyAsItCounts(t *testing.T) {
	efdDeadline(t)
	fd := efdNew(t, unix.EFD_SEMAPHORE)
	out := make(chan efdResult, 10)
	for who := range 10 {
		efdAwait(context.Background(), fd, who, out)
	}
	efdSignal(t, fd, 7)
	woken := map[int]bool{}
	for range 7 {
		r := <-out
		if r.value != 1 || r.err != nil {
			t.Errorf("waiter %d: %d, %v", r.who, r.value, r.err)
		}
		woken[r.who] = true
	}
	for who := range 7 {
		if !woken[who] {
			t.Errorf("waiter %d was passed over: %v", who, woken)
		}
	}
	if n := efdWaiting(fd); n != 3 {
		t.Errorf("%d wait on, want 3", n)
	}
	efdSignal(t, fd, 5)
	for range 3 {
		<-out
	}
	if left := efdLeft(t, fd); left != 2 {
		t.Errorf("counter left at %d, want 2", left)
	}
}

func TestAwaitCancelledTakesNothing(t *testing.T) {
	efdDeadline(t)
	fd := efdNew(t, 0)
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan efdResult)
	efdAwait(ctx, fd, 0, out)
	cancel()
	if r := <-out; r.err != context.Canceled {
		t.Errorf("cancelled while waiting: %v", r.err)
	}
	efdSignal(t, fd, 9)
	if _, err := Await(ctx, fd); err != context.Canceled {
		t.Errorf("cancelled before: %v", err)
	}
	if left := efdLeft(t, fd); left != 9 {
		t.Errorf("counter is %d, want 9", left)
	}
	// A waiter who leaves from the middle of the line takes nobody with it.
	ctx, cancel = context.WithCancel(context.Background())
	efdAwait(context.Background(), fd, 0, out)
	efdAwait(ctx, fd, 1, out)
	efdAwait(context.Background(), fd, 2, out)
	cancel()
	if r := <-out; r.who != 1 {
		t.Errorf("waiter %d ended instead of 1", r.who)
	}
	for _, who := range []int{0, 2} {
		efdSignal(t, fd, 1)
		if r := <-out; r.who != who || r.err != nil {
			t.Errorf("woke %d (%v), want %d", r.who, r.err, who)
		}
	}
}

func TestAwaitSignalAndCancelTogetherLoseNothing(t *testing.T) {
	efdDeadline(t)
	fd := efdNew(t, 0)
	out := make(chan efdResult)
	var taken, cancelled int
	for range 3000 {
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			v, err := Await(ctx, fd)
			out <- efdResult{0, v, err}
		}()
		go cancel()
		go efdSignal(t, fd, 1)
		switch r := <-out; {
		case r.err == nil && r.value == 1:
			taken++
		case r.err == context.Canceled:
			cancelled++
			if v, err := Await(context.Background(), fd); v != 1 || err != nil {
				t.Fatalf("cancelled, then the counter was %d, %v", v, err)
			}
		default:
			t.Fatalf("Await = %d, %v", r.value, r.err)
		}
	}
	t.Logf("%d signals won, %d cancellations", taken, cancelled)
}

// The answer has been given when the waiter chooses to give up.
func TestAwaitReturnsWhatWasTakenForIt(t *testing.T) {
	efdDeadline(t)
	fd := efdNew(t, 0)
	out := make(chan efdResult)
	for range 50 {
		ctx, cancel := context.WithCancel(context.Background())
		efdAwait(ctx, fd, 0, out)
		// Both come to the lock while it is held, the signal first, so that
		// most rounds end with the counter taken and the context ended.
		awaits.mu.Lock()
		efdSignal(t, fd, 1)
		time.Sleep(time.Millisecond)
		cancel()
		time.Sleep(time.Millisecond)
		awaits.mu.Unlock()
		r := <-out
		if left := efdLeft(t, fd); r.value+left != 1 || (r.err == nil) != (r.value == 1) {
			t.Fatalf("Await = %d, %v, and %d is left", r.value, r.err, left)
		}
	}
}

// Signals on an eventfd that nobody waits for any more wake nobody.
func TestEfdSetIsQuietWhenNobodyWaits(t *testing.T) {
	p, err := openEfdPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	var emitted []*efdWaiter
	set := newEfdSet(p, func(w *efdWaiter) { emitted = append(emitted, w) })
	fd := efdNew(t, 0)
	var ready [efdBatch]int32
	poll := func() int {
		n, err := p.poll(ready[:])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}

	w := &efdWaiter{}
	if err := set.add(w, int32(fd)); err != nil {
		t.Fatal(err)
	}
	if !set.cancel(w) || set.cancel(w) {
		t.Error("a wait is cancelled once")
	}
	efdSignal(t, fd, 1)
	if n := poll(); n != 0 {
		t.Errorf("%d events after the wait was cancelled", n)
	}

	if err := set.add(w, int32(fd)); err != nil { // readable already
		t.Fatal(err)
	}
	if n := poll(); n != 1 || int(ready[0]) != fd {
		t.Fatalf("%d events, want 1", n)
	}
	set.dispatch(ready[0])
	if len(emitted) != 1 || w.value != 1 || set.cancel(w) || len(set.sources) != 0 {
		t.Errorf("%d answers, value %d, %d sources", len(emitted), w.value, len(set.sources))
	}
	efdSignal(t, fd, 1)
	if n := poll(); n != 0 {
		t.Errorf("%d events after the wait was answered", n)
	}
	set.dispatch(int32(fd)) // a late event
	if left := efdLeft(t, fd); left != 1 {
		t.Errorf("a late event took the counter: %d left", left)
	}
}

func TestAwaitRefusesWhatIsNoEventfd(t *testing.T) {
	efdDeadline(t)
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	unix.Write(pipe[1], []byte("eight or more bytes"))
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	file.WriteString("eight or more bytes")
	file.Seek(0, 0)
	closed := efdNew(t, 0)
	unix.Close(closed)
	defer unix.Dup2(pipe[0], closed) // for the cleanup to close

	for _, c := range []struct {
		name string
		fd   int
		want unix.Errno
	}{
		{"-1", -1, unix.EBADF},
		{"beyond the range of descriptors", 1<<32 + 3, unix.EBADF},
		{"closed", closed, unix.EBADF},
		{"pipe", pipe[0], unix.EINVAL},
		{"write end of a pipe", pipe[1], unix.EBADF},
		{"file", int(file.Fd()), unix.EINVAL},
	} {
		_, err := Await(context.Background(), c.fd)
		var errno unix.Errno
		if !errors.As(err, &errno) || errno != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		} else if !strings.Contains(err.Error(), strconv.Itoa(c.fd)) {
			t.Errorf("%s: the error does not name the descriptor: %v", c.name, err)
		}
	}
	for name, fd := range map[string]int{"pipe": pipe[0], "file": int(file.Fd())} {
		buf := make([]byte, 100)
		n, _ := unix.Read(fd, buf)
		if string(buf[:n]) != "eight or more bytes" {
			t.Errorf("Await has eaten of the %s: %q is left", name, buf[:n])
		}
	}
}

// Somebody closes the descriptor under a wait, and the number is given to
// another eventfd: the wait must neither take that one's counter nor stand in
// its way.
func TestAwaitOnAClosedAndReusedNumber(t *testing.T) {
	efdDeadline(t)
	setup := func(t *testing.T) (fd, old int, out chan efdResult) {
		fd = efdNew(t, 0)
		old, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(old) })
		out = make(chan efdResult, 1)
		efdAwait(context.Background(), fd, 0, out)
		other := efdNew(t, 0)
		if err := unix.Dup3(other, fd, unix.O_CLOEXEC); err != nil { // closes fd and gives its number away
			t.Fatal(err)
		}
		return fd, old, out
	}
	t.Run("a duplicate is signalled", func(t *testing.T) {
		fd, old, out := setup(t)
		efdSignal(t, fd, 77)
		efdSignal(t, old, 1)
		if r := <-out; !errors.Is(r.err, unix.EBADF) {
			t.Errorf("Await = %d, %v; want EBADF", r.value, r.err)
		}
		if left := efdLeft(t, fd); left != 77 {
			t.Errorf("the eventfd that got the number counts %d, want 77", left)
		}
	})
	t.Run("the number is awaited again", func(t *testing.T) {
		fd, _, out := setup(t)
		again := make(chan efdResult, 1)
		go func() {
			v, err := Await(context.Background(), fd)
			again <- efdResult{1, v, err}
		}()
		if r := <-out; !errors.Is(r.err, unix.EBADF) {
			t.Errorf("old wait: %d, %v; want EBADF", r.value, r.err)
		}
		efdSignal(t, fd, 4)
		if r := <-again; r.value != 4 || r.err != nil {
			t.Errorf("new wait: %d, %v", r.value, r.err)
		}
	})
}

func TestAwaitCostsNoThreadAndNoGoroutine(t *testing.T) {
	efdDeadline(t)
	fds, each := 200, 50
	if efdTorture() {
		fds, each = 1000, 100
	}
	all := make([]int, fds)
	for i := range all {
		all[i] = efdNew(t, unix.EFD_SEMAPHORE)
	}
	threads, goroutines, descriptors := efdThreads(t), runtime.NumGoroutine(), efdDescriptors(t)
	var wg sync.WaitGroup
	for _, fd := range all {
		for range each {
			wg.Go(func() {
				if v, err := Await(context.Background(), fd); v != 1 || err != nil {
					t.Errorf("Await = %d, %v", v, err)
				}
			})
		}
	}
	for _, fd := range all {
		efdUntil(func() bool { return efdWaiting(fd) == each })
	}
	if n := runtime.NumGoroutine() - goroutines; n > fds*each+1 {
		t.Errorf("%d waits have brought %d goroutines", fds*each, n)
	}
	if n := efdThreads(t) - threads; n > 8 {
		t.Errorf("%d waits have brought %d threads", fds*each, n)
	}
	for _, fd := range all {
		efdSignal(t, fd, uint64(each))
	}
	wg.Wait()
	efdUntil(func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := efdDescriptors(t) - descriptors; n > 1 { // the epoll instance, if this was the first wait
		t.Errorf("%d descriptors are left", n)
	}
}

func TestAwaitGoroutineLeavesWithTheLastWaiter(t *testing.T) {
	efdDeadline(t)
	fd := efdNew(t, 0)
	out := make(chan efdResult)
	before := runtime.NumGoroutine()
	for i := range 300 {
		ctx, cancel := context.WithCancel(context.Background())
		efdAwait(ctx, fd, i, out)
		if i%3 == 0 {
			efdSignal(t, fd, 1)
		} else {
			cancel()
		}
		<-out
		if i%2 == 0 { // every other time the next wait may meet the goroutine on its way out
			efdUntil(func() bool { return runtime.NumGoroutine() <= before })
		}
		cancel()
	}
	efdUntil(func() bool { return runtime.NumGoroutine() <= before })
}

// Kernels before 5.8 have no RWF_NOWAIT for eventfds.
func TestPollEventfdReadsLikeReadEventfd(t *testing.T) {
	for name, read := range map[string]func(int32) (uint64, bool, error){"poll": pollEventfd, "nowait": readEventfd} {
		for _, flags := range []int{0, unix.EFD_NONBLOCK, unix.EFD_SEMAPHORE} {
			fd := efdNew(t, flags)
			if v, ok, err := read(int32(fd)); ok || err != nil {
				t.Errorf("%s, flags %#x, zero: %d, %t, %v", name, flags, v, ok, err)
			}
			efdSignal(t, fd, 6)
			want := uint64(6)
			if flags == unix.EFD_SEMAPHORE {
				want = 1
			}
			if v, ok, err := read(int32(fd)); v != want || !ok || err != nil {
				t.Errorf("%s, flags %#x: %d, %t, %v; want %d", name, flags, v, ok, err, want)
			}
		}
		if _, ok, err := read(1 << 30); ok || err != unix.EBADF {
			t.Errorf("%s, no descriptor: %t, %v", name, ok, err)
		}
	}
}
