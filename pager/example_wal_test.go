//go:build linux

package pager_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
)

// A database keeps in each page the number of the last log record that
// describes it. No page may reach the store before that record is durable.
func ExampleWriteback_BeforeWrite() {
	const pageSize = pager.FrameSize
	var durable atomic.Uint64          // records up to here are on disk
	flushLog := make(chan struct{}, 1) // somebody wants more of them there
	recordOf := func(page []byte) uint64 { return binary.LittleEndian.Uint64(page) }

	p, err := pager.New(pager.Options{Budget: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	r, err := p.Map(store.NewMemory(1<<20), pager.RegionOptions{Writeback: pager.Writeback{
		BeforeWrite: func(run pager.PageRun) bool {
			for data := run.Data; len(data) > 0; data = data[pageSize:] {
				if recordOf(data) > durable.Load() {
					select {
					case flushLog <- struct{}{}: // set the log going, do not wait for it
					default:
					}
					return false
				}
			}
			return true
		},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}

	// A change: the log record first, then the page that carries its number.
	const record = 7
	pin, err := r.AcquireWrite(context.Background(), 3*pageSize, pageSize)
	if err != nil {
		fmt.Println(err)
		return
	}
	binary.LittleEndian.PutUint64(pin.Bytes(), record)
	pin.Release()

	go func() { // the log's own writer
		<-flushLog
		fmt.Println("log flushed")
		durable.Store(record)
	}()
	if err := r.Sync(context.Background()); err != nil {
		fmt.Println(err)
	}
	fmt.Println("page written, log durable up to", durable.Load())
	// Output:
	// log flushed
	// page written, log durable up to 7
}
