package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
)

// makeChunk is how much of a data file is stamped and written at a time.
const makeChunk = 1 << 20

// makeFile makes a stamped file of size bytes. Unless keep is set it has no
// name any more when makeFile returns, so that nothing is left of it however
// the program ends. dir "" is the directory for temporary files, or the current
// one where that is kept in memory. progress is called with the bytes written
// so far.
//
// The file is not in the page cache afterwards, where that can be had.
func makeFile(ctx context.Context, dir string, size int64, keep bool, progress func(done int64)) (*os.File, error) {
	if dir == "" {
		if dir = os.TempDir(); inMemory(dir) {
			dir = "."
		}
	}
	f, err := os.CreateTemp(dir, "uffdpager-*.data")
	if err != nil {
		return nil, fmt.Errorf("making a data file: %w", err)
	}
	remove := func() error { return os.Remove(f.Name()) }
	if keep {
		if abs, err := filepath.Abs(f.Name()); err == nil {
			remove = func() error { return os.Remove(abs) }
		}
	} else if err := remove(); err == nil {
		remove = func() error { return nil }
	} // else it goes when it is closed, as on systems that do not remove open files
	if err = reserve(f, size); err == nil {
		err = stampFile(ctx, f, size, progress)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		remove()
		if errors.Is(err, context.Canceled) {
			return nil, errors.New("interrupted while the data file was being made; it is removed")
		}
		return nil, fmt.Errorf("making a data file of %s in %s: %w", humanBytes(size), dir, err)
	}
	dropCache(f)
	return f, nil
}

// stampFile writes version 0 of every block, from as many goroutines as there
// are processors.
func stampFile(ctx context.Context, f *os.File, size int64, progress func(done int64)) error {
	var next, done atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			buf := make([]byte, min(makeChunk, size))
			for failed.Load() == nil {
				off := next.Add(makeChunk) - makeChunk
				if off >= size {
					return
				}
				b := buf[:min(makeChunk, size-off)]
				stamp.FillRange(b, off)
				_, err := f.WriteAt(b, off)
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				progress(done.Add(int64(len(b))))
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// isStamped says whether a file carries stamps: its first, last and some blocks
// in between do.
func isStamped(f *os.File, size int64) bool {
	n := blocks(size)
	var buf [stamp.Block]byte
	for _, b := range []int64{0, n / 3, n / 2, 2 * n / 3, n - 1} {
		off := b * stamp.Block
		p := buf[:min(stamp.Block, size-off)]
		if _, err := f.ReadAt(p, off); err != nil {
			return false
		}
		version, ok := stamp.Version(p, off)
		if len(p) < 8 {
			continue // too short to tell
		}
		if !ok || stamp.Check(p, off, version) != -1 {
			return false
		}
	}
	return size >= 8
}
