//go:build cgo

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"

	"github.com/loopholelabs/userfaultfd-go/pkg/mapper"
)

// havePeer says whether userfaultfd-go is built in: it needs cgo.
const havePeer = true

// openHandler maps the file with userfaultfd-go, as its examples do: one
// goroutine handles all faults of the process. It is given a GC-free ride: where
// a collection wants to stop the world while a thread is in a fault, and the
// handler is not running, nothing goes on.
func openHandler(s rowSpec, file *os.File) (*way, error) {
	mem, uffd, start, err := mapper.Register(int(s.Size))
	if err != nil {
		return nil, fmt.Errorf("userfaultfd-go: %w", err)
	}
	fd, err := bufferedFD(s, file)
	if err != nil {
		return nil, err
	}
	src := &countedReader{src: os.NewFile(uintptr(fd), "data")}
	var ended atomic.Pointer[error]
	go func() {
		err := mapper.Handle(uffd, start, src)
		ended.Store(&err)
		// Every fault from now on waits for ever, and with it its thread.
		fmt.Fprintf(os.Stderr, "userfaultfd-go: the handler ended after %d faults: %v\n", src.reads.Load(), err)
		os.Exit(exitFailed)
	}()
	return &way{
		read: func(int) readFunc {
			return func(off int64) error {
				// Faults of plain loads can be interrupted by the scheduler;
				// those of assembly cannot. takeBlock has loads only.
				err := takeBlock(mem[off:off+blockSize], off, s.Stamped)
				runtime.KeepAlive(file)
				return err
			}
		},
		misses: src.reads.Load,
	}, nil
}

// countedReader counts what the handler reads.
type countedReader struct {
	src   io.ReaderAt
	reads atomic.Int64
}

func (c *countedReader) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	return c.src.ReadAt(p, off)
}
