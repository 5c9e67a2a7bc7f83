package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A made file holds exactly its stamps, and has a name only if it is kept.
func TestMakeFile(t *testing.T) {
	for _, size := range []int64{1, 4096, 4097, makeChunk, 3*makeChunk + 12345} {
		for _, keep := range []bool{false, true} {
			dir := t.TempDir()
			var most atomic.Int64
			f, err := makeFile(context.Background(), dir, size, keep, func(done int64) { most.Store(max(most.Load(), done)) })
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(io.NewSectionReader(f, 0, size+1))
			f.Close()
			if int64(len(got)) != size || err != nil {
				t.Fatalf("%d bytes: read %d, %v", size, len(got), err)
			}
			for off := int64(0); off < size; off += stamp.Block {
				if at := stamp.Check(got[off:min(off+stamp.Block, size)], off, 0); at != -1 {
					t.Fatalf("%d bytes: block at %d differs at %d", size, off, at)
				}
			}
			if most.Load() != size {
				t.Errorf("%d bytes: progress ended at %d", size, most.Load())
			}
			if kept := len(names(t, dir)) == 1; kept != keep {
				t.Errorf("keep %v, but the directory holds %v", keep, names(t, dir))
			}
		}
	}
}

// Nothing is left of a file that could not be finished.
func TestMakeFileInterrupted(t *testing.T) {
	for _, keep := range []bool{false, true} {
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(context.Background())
		_, err := makeFile(ctx, dir, 64<<20, keep, func(int64) { cancel() })
		if err == nil || !strings.Contains(err.Error(), "interrupted") {
			t.Errorf("keep %v: %v", keep, err)
		}
		if left := names(t, dir); len(left) != 0 {
			t.Errorf("keep %v: %v is left", keep, left)
		}
	}
}

func TestMakeFileWhereThereIsNoRoom(t *testing.T) {
	dir := t.TempDir()
	if _, err := makeFile(context.Background(), dir, 1<<55, true, func(int64) {}); err == nil {
		t.Fatal("32 PiB fit on the disk")
	}
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	if _, err := makeFile(context.Background(), filepath.Join(dir, "missing"), 4096, false, func(int64) {}); !os.IsNotExist(errRoot(err)) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// errRoot is the innermost error.
func errRoot(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok || u.Unwrap() == nil {
			return err
		}
		err = u.Unwrap()
	}
}
