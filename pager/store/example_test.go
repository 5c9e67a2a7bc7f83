package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// do runs one op on a store that needs no engine.
func do(s store.Store, op *aio.Op) (int, error) {
	op.Done = func(*aio.Op) {}
	s.Start(nil, []*aio.Op{op})
	return op.N, op.Err
}

// A disk that fails the second write and then is well again.
func ExampleNewFaulty() {
	s := store.NewFaulty(store.NewMemory(1<<20), store.FaultyOptions{
		Faults: []store.Fault{{Ops: store.OnWrite, Nth: 2, Count: 1, Err: syscall.EIO}},
	})
	defer s.Close()
	for range 3 {
		_, err := do(s, &aio.Op{Code: aio.Write, Buf: make([]byte, 4096)})
		fmt.Println(err, errors.Is(err, syscall.EIO))
	}
	c := s.Counts()
	fmt.Println(c.Writes, "writes,", c.WriteBytes, "bytes,", c.Failed, "failed")
	// Output:
	// <nil> false
	// input/output error true
	// <nil> false
	// 3 writes, 8192 bytes, 1 failed
}

// What a loss of power may leave of two writes with a flush between them.
func ExampleRecording_Image() {
	r, err := store.NewRecording(store.NewMemoryOf(bytes.Repeat([]byte("."), 1024)), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	do(r, &aio.Op{Code: aio.Write, Off: 0, Buf: bytes.Repeat([]byte("a"), 512)})
	do(r, &aio.Op{Code: aio.Flush})
	do(r, &aio.Op{Code: aio.Write, Off: 512, Buf: bytes.Repeat([]byte("b"), 512)})
	now := r.Recorder().Now()
	for _, survives := range []store.Survives{nil, store.Everything} {
		img := r.Image(now, survives)
		fmt.Printf("%c%c\n", img[0], img[512])
	}
	// Output:
	// a.
	// ab
}
