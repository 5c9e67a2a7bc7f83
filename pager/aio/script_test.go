//go:build linux

package aio

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// script is a backend that does what a test tells it: how much of a batch it
// takes, and how each entry ends.
type script struct {
	mu     sync.Mutex
	accept func(n int) (int, syscall.Errno) // of n entries
	finish func(op *Op) (res int64, now bool)
	wake   waker

	ops      []*Op // by slot
	accepted []*Op // in order
	held     []int32
	done     []completion
	closed   bool
}

// parkedWaker tells when somebody has looked, found nothing, and parks.
type parkedWaker struct {
	*chanWaker
	parked chan struct{}
}

func (w parkedWaker) wait(ok func() bool) {
	for !ok() {
		select {
		case w.parked <- struct{}{}:
		default:
		}
		<-w.ch
	}
}

func scripted(depth int, s *script) *engine {
	w := parkedWaker{newChanWaker(), make(chan struct{}, 1)}
	e := newEngine(LinuxAIO, depth, w)
	s.wake, s.ops = w, make([]*Op, depth)
	e.back = s
	return e
}

func (s *script) prepare(slot int32, op *Op) { s.ops[slot] = op }

func (s *script) submit(b batch) (int, syscall.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, errno := int(b.n-b.from), syscall.Errno(0)
	if s.accept != nil {
		n, errno = s.accept(n)
	}
	for _, slot := range b.slots[b.from : int(b.from)+n] {
		op := s.ops[slot]
		s.accepted = append(s.accepted, op)
		res, now := int64(len(op.Buf)-op.N), true
		if s.finish != nil {
			res, now = s.finish(op)
		}
		if now {
			s.done = append(s.done, completion{slot, res})
			s.wake.kick()
		} else {
			s.held = append(s.held, slot)
		}
	}
	return n, errno
}

func (s *script) take(cs []completion) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := copy(cs, s.done)
	s.done = s.done[n:]
	return n
}

func (s *script) pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.done)
}

func (s *script) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slot := range s.held {
		s.done = append(s.done, completion{slot, -int64(syscall.ECANCELED)})
	}
	s.held = nil
	s.wake.kick()
}

func (s *script) close() error {
	s.closed = true
	return nil
}

// However little the kernel takes at a time, what it takes is in the order of
// submission.
func TestBacklogKeepsOrder(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := &script{accept: func(n int) (int, syscall.Errno) {
			switch r.IntN(5) {
			case 0:
				return 0, syscall.EAGAIN
			case 1:
				return 0, syscall.EINTR
			case 2:
				return r.IntN(n + 1), 0 // (0, no error) included
			case 3:
				return r.IntN(n), syscall.EAGAIN
			}
			return n, 0
		}}
		e := scripted(1+r.IntN(40), s)
		var ops []*Op
		finished := 0
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		for len(ops) < 300 || finished < len(ops) {
			if len(ops) < 300 && r.IntN(2) == 0 {
				from := len(ops)
				for range 1 + r.IntN(60) {
					ops = append(ops, &Op{Off: int64(len(ops)), Buf: make([]byte, 1), Done: func(*Op) { finished++ }})
				}
				e.Submit(ops[from:])
			} else if e.Reap(1+r.IntN(20)) == 0 && e.InFlight() > 0 {
				if err := e.Wait(ctx); err != nil {
					t.Fatalf("seed %d: %v with %d in flight", seed, err, e.InFlight())
				}
			}
		}
		for i, op := range s.accepted {
			if op.Off != int64(i) {
				t.Fatalf("seed %d: the kernel got op %d in place %d", seed, op.Off, i)
			}
		}
		if len(s.accepted) != len(ops) || finished != len(ops) {
			t.Fatalf("seed %d: %d ops, %d accepted, %d done", seed, len(ops), len(s.accepted), finished)
		}
		cancel()
		if e.Close(); !s.closed {
			t.Fatal("Close left the ring open")
		}
	}
}

// EAGAIN with nothing under way: no completion will ever wake who waits.
func TestWaitOutlivesRefusal(t *testing.T) {
	refusals := 0
	s := &script{accept: func(n int) (int, syscall.Errno) {
		if refusals < 20 {
			refusals++
			return 0, syscall.EAGAIN
		}
		return n, 0
	}}
	e := scripted(4, s)
	waits := make(chan error, 1)
	go func() { waits <- e.Wait(context.Background()) }()
	<-e.wake.(parkedWaker).parked
	op := &Op{Buf: make([]byte, 1)}
	ran := false
	op.Done = func(*Op) { ran = true }
	e.Submit([]*Op{op})
	select {
	case err := <-waits:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(deadline):
		t.Fatal("Wait sleeps on")
	}
	reapUntil(t, e, func() bool { return ran })
	if op.Err != nil || refusals != 20 {
		t.Errorf("%v after %d refusals", op.Err, refusals)
	}
	e.Close()
}

// Whoever waits learns of ops that end without a completion of the kernel.
func TestWaitEndsWithARefusedOp(t *testing.T) {
	e := scripted(4, &script{accept: func(int) (int, syscall.Errno) { return 0, syscall.EBADF }})
	waits := make(chan error, 1)
	go func() { waits <- e.Wait(context.Background()) }()
	<-e.wake.(parkedWaker).parked
	op := &Op{Buf: make([]byte, 1), Done: func(*Op) {}}
	e.Submit([]*Op{op})
	select {
	case err := <-waits:
		if err != nil || e.Reap(8) != 1 || op.Err != syscall.EBADF {
			t.Errorf("%v, then %v", err, op.Err)
		}
	case <-time.After(deadline):
		t.Fatal("Wait sleeps on")
	}
	e.Close()
}

// An op the kernel never took and the engine holds back ends at Close.
func TestCloseEndsTheBacklog(t *testing.T) {
	s := &script{finish: func(op *Op) (int64, bool) { return 0, false }}
	e := scripted(2, s)
	var errs []error
	var ops []*Op
	for range 5 {
		ops = append(ops, &Op{Buf: make([]byte, 1), Done: func(op *Op) { errs = append(errs, op.Err) }})
	}
	e.Submit(ops)
	if n := e.InFlight(); n != 5 || len(s.accepted) != 2 {
		t.Fatalf("%d in flight, %d with the kernel", n, len(s.accepted))
	}
	e.Close()
	if fmt.Sprint(errs) != fmt.Sprint([]error{ErrClosed, ErrClosed, ErrClosed, ErrClosed, ErrClosed}) {
		t.Error(errs)
	}
}

// Results of any length and interruptions: each op goes on where it stopped.
func TestShortTransfersAreContinued(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const size = 10000
	continued := 0
	s := &script{finish: func(op *Op) (int64, bool) {
		buf, off := op.rest()
		if len(buf) != size-op.N || off != op.Off+int64(op.N) {
			t.Errorf("asks for %d bytes at %d after %d", len(buf), off, op.N)
		}
		switch r.IntN(4) {
		case 0:
			return -int64(syscall.EINTR), true
		case 1:
			return -int64(syscall.ECANCELED), true // nobody cancelled it
		}
		continued++
		return 1 + r.Int64N(int64(len(buf))), true
	}}
	e := scripted(3, s)
	var ops []*Op
	for i := range 100 {
		ops = append(ops, &Op{Code: Code(i % 2), Off: int64(i), Buf: make([]byte, size)})
	}
	run(t, e, ops...)
	for i, op := range ops {
		if op.N != size || op.Err != nil {
			t.Errorf("op %d: %d, %v", i, op.N, op.Err)
		}
	}
	if continued <= len(ops) {
		t.Error("nothing was short")
	}
	e.Close()
}

func TestRefusedOpLeavesTheOthersAlone(t *testing.T) {
	calls := 0
	s := &script{accept: func(n int) (int, syscall.Errno) {
		switch calls++; calls {
		case 1:
			return 3, 0
		case 2:
			return 0, syscall.EBADF
		}
		return n, 0
	}}
	e := scripted(8, s)
	var ops []*Op
	for range 8 {
		ops = append(ops, &Op{Buf: make([]byte, 1)})
	}
	run(t, e, ops...)
	for i, op := range ops {
		if want := i == 3; (op.Err == syscall.EBADF) != want || !want && op.N != 1 {
			t.Errorf("op %d: %d, %v", i, op.N, op.Err)
		}
	}
	e.Close()
}

// What the kernel will not do asynchronously, a thread does: here all of it.
func TestHelperDoesWhatTheKernelRefuses(t *testing.T) {
	fd := file(t, make([]byte, 4096), false)
	e := scripted(4, &script{accept: func(int) (int, syscall.Errno) { return 0, syscall.EINVAL }})
	buf := buffer(t, 8192)
	copy(buf, pattern(4096, 13))
	var writes []*Op
	for i := range 32 {
		writes = append(writes, &Op{Code: Write, FD: fd, Off: int64(i) * 128, Buf: buf[i*128:][:128]})
	}
	run(t, e, writes...)
	flush := &Op{Code: Flush, FD: fd}
	read := &Op{FD: fd, Buf: buf[4096:]}
	run(t, e, flush, read)
	if flush.Err != nil || read.Err != nil || read.N != 4096 || string(buf[:4096]) != string(buf[4096:]) {
		t.Errorf("%v, %d, %v", flush.Err, read.N, read.Err)
	}
	bad := &Op{FD: fd, Off: -1, Buf: buf[:1]}
	run(t, e, bad)
	if bad.Err != unix.EINVAL {
		t.Errorf("what is truly invalid: %v", bad.Err)
	}
	e.Close()
}

// The kernel did the part that it had in memory: a thread does the rest, and
// nobody asks the kernel again and again.
func TestHelperDoesWhatWouldBlock(t *testing.T) {
	content := pattern(4096, 18)
	fd := file(t, content, false)
	for _, refusal := range []syscall.Errno{syscall.EAGAIN, syscall.EOPNOTSUPP} {
		asked := 0
		s := &script{finish: func(op *Op) (int64, bool) {
			if asked++; op.N == 0 {
				return int64(copy(op.Buf[:1000], content)), true
			}
			return -int64(refusal), true
		}}
		e := scripted(4, s)
		op := &Op{FD: fd, Buf: buffer(t, 4096), Buffered: true}
		run(t, e, op)
		if op.N != 4096 || op.Err != nil || string(op.Buf) != string(content) || asked != 2 {
			t.Errorf("%v: %d, %v, kernel asked %d times", refusal, op.N, op.Err, asked)
		}
		// Without Buffered, the error is the caller's.
		op = &Op{FD: fd, Buf: buffer(t, 4096)}
		run(t, e, op)
		if op.N != 1000 || op.Err != refusal {
			t.Errorf("%v: %d, %v", refusal, op.N, op.Err)
		}
		e.Close()
	}
}

// An entry that io_uring_enter did not take is not left in the ring, where the
// next call would find it.
func TestIOURingTakesBackWhatWasRefused(t *testing.T) {
	eng := mustOpen(t, func(d int) (Engine, error) { return Open(Options{Kind: IOURing, Depth: d}) }, 4)
	u := eng.(*engine).back.(*uring)
	content := pattern(4096, 19)
	fd := file(t, content, false)
	ring := u.fd
	u.fd = -1
	refused := []*Op{{FD: fd, Buf: buffer(t, 1)}, {FD: fd, Buf: buffer(t, 1)}}
	run(t, eng, refused...)
	u.fd = ring
	for _, op := range refused {
		if op.Err != unix.EBADF || op.Buf[0] != 0 {
			t.Errorf("%d, %v", op.N, op.Err)
		}
	}
	op := &Op{FD: fd, Buf: buffer(t, 4096)}
	run(t, eng, op)
	if op.N != 4096 || op.Err != nil || string(op.Buf) != string(content) {
		t.Errorf("%d, %v", op.N, op.Err)
	}
	if refused[0].Buf[0] != 0 || refused[1].Buf[0] != 0 {
		t.Error("a refused read was made after all")
	}
}
