package coro

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// One operation of the three switch benchmarks is there and back: from who
// hands out the turns to who takes it, and back again.

func BenchmarkSwitchIterPull(b *testing.B) {
	for _, n := range []int{1, 100, 10000} {
		b.Run(fmt.Sprintf("coroutines=%d", n), func(b *testing.B) {
			nexts := make([]func() (struct{}, bool), n)
			for i := range nexts {
				next, stop := iter.Pull(func(yield func(struct{}) bool) {
					for yield(struct{}{}) {
					}
				})
				defer stop()
				nexts[i] = next
			}
			i := 0
			for b.Loop() {
				nexts[i]()
				if i++; i == n {
					i = 0
				}
			}
		})
	}
}

func BenchmarkSwitchLoop(b *testing.B) {
	for _, n := range []int{1, 100, 10000} {
		b.Run(fmt.Sprintf("coroutines=%d", n), func(b *testing.B) {
			loop := NewLoop()
			left := b.N
			for range n {
				loop.Go(func(t *Task) error {
					for ; left > 0; left-- {
						t.Yield()
					}
					return nil
				})
			}
			loop.Run(context.Background())
		})
	}
}

func BenchmarkSwitchChannel(b *testing.B) {
	there, back := make(chan struct{}), make(chan struct{})
	go func() {
		for range there {
			back <- struct{}{}
		}
	}()
	defer close(there)
	for b.Loop() {
		there <- struct{}{}
		<-back
	}
}

// One operation of the signal benchmarks: signal somebody who waits, and wait
// oneself for the answer: two signals, two wake-ups.

func benchSignal(fd int, one []byte) { unix.Write(fd, one) }

func BenchmarkSignalLoop(b *testing.B) {
	there, back := efdNew(b, 0), efdNew(b, 0)
	one := binary.NativeEndian.AppendUint64(nil, 1)
	loop := NewLoop()
	loop.Go(func(t *Task) error {
		for range b.N {
			t.Await(there)
			benchSignal(back, one)
		}
		return nil
	})
	loop.Go(func(t *Task) error {
		for range b.N {
			benchSignal(there, one)
			t.Await(back)
		}
		return nil
	})
	b.ReportAllocs()
	loop.Run(context.Background())
}

func BenchmarkSignalAwait(b *testing.B) {
	there, back := efdNew(b, 0), efdNew(b, 0)
	one := binary.NativeEndian.AppendUint64(nil, 1)
	b.ReportAllocs()
	go func() {
		for range b.N {
			Await(context.Background(), there)
			benchSignal(back, one)
		}
	}()
	for range b.N {
		benchSignal(there, one)
		Await(context.Background(), back)
	}
}

// The yardstick: the eventfd itself in the netpoller, which Await cannot do
// with an eventfd that is not its own.
func BenchmarkSignalNetpoll(b *testing.B) {
	open := func() *os.File {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			b.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "eventfd")
	}
	there, back := open(), open()
	defer there.Close()
	defer back.Close()
	one := binary.NativeEndian.AppendUint64(nil, 1)
	go func() {
		buf := make([]byte, 8)
		for range b.N {
			there.Read(buf)
			back.Write(one)
		}
	}()
	buf := make([]byte, 8)
	for range b.N {
		there.Write(one)
		back.Read(buf)
	}
}

// BenchmarkAwaitReady is a wait that does not wait.
func BenchmarkAwaitReady(b *testing.B) {
	fd := efdNew(b, 0)
	one := binary.NativeEndian.AppendUint64(nil, 1)
	b.Run("write+Await", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			benchSignal(fd, one)
			Await(context.Background(), fd)
		}
	})
	b.Run("write+read", func(b *testing.B) {
		buf := make([]byte, 8)
		for b.Loop() {
			benchSignal(fd, one)
			unix.Read(fd, buf)
		}
	})
}

func BenchmarkLoopPost(b *testing.B) {
	loop := NewLoop()
	done := make(chan struct{})
	go func() { loop.Serve(context.Background()); close(done) }()
	for b.Loop() {
		loop.Post(func() {})
	}
	loop.Close()
	<-done
}

func BenchmarkLoopGo(b *testing.B) {
	loop := NewLoop()
	loop.Go(func(t *Task) error {
		for range b.N {
			t.Go(func(*Task) error { return nil })
			t.Yield()
		}
		return nil
	})
	b.ReportAllocs()
	loop.Run(context.Background())
}
