package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
)

// Written blocks are proved while the run lasts and once more in the file, past
// the pager, after Sync.
func TestRunWrites(t *testing.T) {
	for _, way := range []string{"bytes", "view", "acquire", "readat"} {
		t.Run(way, func(t *testing.T) {
			if way == "bytes" || way == "view" {
				needRaw(t)
			}
			r := mustRun(t, small("--access", way, "--write-ratio", "0.3", "--workload", "mixed")...)
			if r.Writes < smallOps*2/10 || r.Writes > smallOps*4/10 {
				t.Errorf("%d of %d ops wrote, at a ratio of 0.3", r.Writes, smallOps)
			}
			if r.SurvivedBytes == 0 || r.WrittenBytes < r.SurvivedBytes || r.Writebacks == 0 {
				t.Errorf("%d bytes written, %d written back in %d pages", r.SurvivedBytes, r.WrittenBytes, r.Writebacks)
			}
		})
	}
}

// FILE is written only with --allow-writes, and then only where the ops say so:
// every block is as it was, or whole and new, and the length stays.
func TestRunWritesToFile(t *testing.T) {
	const size = 1<<20 + 1000
	name := filepath.Join(t.TempDir(), "file")
	old := []byte(strings.Repeat("precious! ", size/10))
	if err := os.WriteFile(name, old, 0o644); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := runProgram(t, "run", name, "--write-ratio", "1", "--ops", "100"); status != exitUsage {
		t.Errorf("without --allow-writes: status %d", status)
	}
	if now, _ := os.ReadFile(name); string(now) != string(old) {
		t.Fatal("FILE was changed without --allow-writes")
	}
	r := mustRun(t, name, "--write-ratio", "0.5", "--allow-writes", "--ops", "200", "--budget", "64KiB", "--goroutines", "8", "--verify")
	now, err := os.ReadFile(name)
	if err != nil || len(now) != len(old) {
		t.Fatalf("%d bytes instead of %d, %v", len(now), len(old), err)
	}
	var changed int64
	for off := 0; off < len(now); off += stamp.Block {
		end := min(off+stamp.Block, len(now))
		if string(now[off:end]) == string(old[off:end]) {
			continue
		}
		version, ok := stamp.Version(now[off:end], int64(off))
		if !ok || stamp.Check(now[off:end], int64(off), version) != -1 {
			t.Fatalf("block at %d is neither as it was nor whole and new", off)
		}
		changed += int64(end - off)
	}
	if changed == 0 || changed != r.SurvivedBytes {
		t.Errorf("%d bytes changed, the report says %d", changed, r.SurvivedBytes)
	}
}
