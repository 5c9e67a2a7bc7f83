package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
)

// The ways of writing. Every block is overwritten with what it holds already:
// the work is the same for the device, and the file stays one that proves
// itself.

func openPagerWrites(s rowSpec, file *os.File) (*way, error) {
	p, err := pager.New(pager.Options{Budget: s.Budget})
	if err != nil {
		return nil, err
	}
	st, err := store.NewFile(file, store.FileOptions{})
	if err != nil {
		return nil, err
	}
	r, err := p.Map(st, pager.RegionOptions{})
	if err != nil {
		return nil, err
	}
	w := &way{misses: func() int64 { return p.Stats().Writebacks }, prefill: r.ReadAt, keeps: s.Budget}
	ctx := context.Background()
	w.read = func(int) readFunc {
		buf := make([]byte, blockSize)
		if s.Row.Way == wayWriteAt {
			return func(off int64) error {
				stamp.Fill(buf, off, 0)
				_, err := r.WriteAt(buf, off)
				return err
			}
		}
		return func(off int64) error {
			pin, err := r.AcquireWrite(ctx, off, blockSize)
			if err == nil {
				stamp.Fill(pin.Bytes(), off, 0)
				pin.Release()
			}
			return err
		}
	}
	return w, nil
}

func openPwrite(s rowSpec, file *os.File) (*way, error) {
	fd, err := reopen(file, unix.O_RDWR|unix.O_DIRECT)
	if err != nil {
		return nil, err
	}
	bufs, err := blockBuffers(s.Row.Goroutines)
	if err != nil {
		return nil, err
	}
	return &way{read: func(i int) readFunc {
		buf := bufs[i*blockSize:][:blockSize]
		return func(off int64) error {
			stamp.Fill(buf, off, 0)
			for {
				_, err := unix.Pwrite(fd, buf, off)
				if err != unix.EINTR {
					return err
				}
			}
		}
	}}, nil
}
