package coro_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
)

// signal stands for the I/O that ends some time: LockEventfd, SyncEventfd, a
// thread of a C library.
func signal(efd int, n uint64) {
	unix.Write(efd, binary.NativeEndian.AppendUint64(nil, n))
}

func ExampleAwait() {
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		log.Fatal(err)
	}
	defer unix.Close(efd)

	go signal(efd, 2)
	n, err := coro.Await(context.Background(), efd) // this goroutine waits, its thread does not
	fmt.Println(n, err)
	// Output: 2 <nil>
}

// Requests as coroutines: each starts its I/O, waits for its own eventfd, and
// goes on where it was, all on one goroutine and without locks.
func ExampleLoop() {
	loop := coro.NewLoop()
	answers := 0 // touched by coroutines of one loop only
	for request := range 3 {
		loop.Go(func(t *coro.Task) error {
			efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(efd)
			fmt.Println("request", request, "starts its I/O")
			go signal(efd, 1)
			if _, err := t.Await(efd); err != nil {
				return err
			}
			answers++
			return nil
		})
	}
	err := loop.Run(context.Background())
	fmt.Println(answers, "answers,", err)
	// Output:
	// request 0 starts its I/O
	// request 1 starts its I/O
	// request 2 starts its I/O
	// 3 answers, <nil>
}

// A loop that lives on what other goroutines give it, and its clean end.
func ExampleLoop_Serve() {
	loop := coro.NewLoop()
	done := make(chan error)
	go func() { done <- loop.Serve(context.Background()) }()

	sum := 0
	for i := range 10 {
		loop.Go(func(t *coro.Task) error {
			sum += i
			return t.Yield()
		})
	}
	loop.Close() // nothing new; what was accepted is finished
	fmt.Println(<-done, sum)
	// Output: <nil> 45
}
