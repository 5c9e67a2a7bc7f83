//go:build linux

package pager

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
)

// A file with commits beside it: refused where it would be passed over, read
// through the journal where it is only read, recovered where it is Atomic; a
// journal of another file is refused (J6).
func TestForeignJournal(t *testing.T) {
	needProtection(t)
	dir := t.TempDir()
	name := filepath.Join(dir, "data")
	old := bytes.Repeat([]byte{1}, 8*FrameSize+100)
	if err := os.WriteFile(name, old, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPager(t, Options{Budget: 64 * FrameSize})
	open := func(name string, o RegionOptions, readOnly bool) (*Region, error) {
		s, err := store.OpenFile(name, store.FileOptions{ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		return p.Map(s, o)
	}
	ctx := context.Background()
	r, err := open(name, RegionOptions{Durability: Atomic, MaxSize: 20 * FrameSize, Journal: JournalOptions{Interval: -1}}, false)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, r, 2, 2)
	if err := r.Resize(ctx, 12*FrameSize); err != nil {
		t.Fatal(err)
	}
	fill(t, r, 11, 3)
	if err := r.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	fill(t, r, 4, 9) // not committed
	want := append(bytes.Clone(old), make([]byte, 4*FrameSize-100)...)
	copy(want[2*FrameSize:], bytes.Repeat([]byte{2}, FrameSize))
	copy(want[11*FrameSize:], bytes.Repeat([]byte{3}, FrameSize))
	// While it is mapped nobody else may have it.
	if _, err := open(name, RegionOptions{}, true); !errors.Is(err, ErrBusy) {
		t.Errorf("read-only Map beside the writer: %v", err)
	}
	// A crash: the files as they are, under other names with the same inodes'
	// contents. (The journal knows the inode: Adopt.)
	crashed := filepath.Join(dir, "crashed")
	copyFile(t, name, crashed)
	copyFile(t, name+".journal", crashed+".journal")
	if b, err := os.ReadFile(crashed); err != nil || !bytes.Equal(b, old) {
		t.Errorf("the file has changed before a checkpoint: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, want) {
		t.Errorf("the file after Close is not what was committed: %v", err)
	}
	if _, err := os.Stat(name + ".journal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is still there after Close: %v", err)
	}

	before, _ := os.ReadFile(crashed + ".journal")
	for what, o := range map[string]RegionOptions{
		"InPlace": {}, "Private": {Private: true},
		"Atomic, another inode":      {Durability: Atomic},
		"read-only, another inode":   {ReadOnly: true},
		"Atomic, another page size":  {Durability: Atomic, PageSize: 2 * FrameSize, Journal: JournalOptions{Adopt: true}},
		"Atomic, by another name":    {Durability: Atomic, Journal: JournalOptions{ID: "x"}},
		"read-only, another page":    {ReadOnly: true, PageSize: 2 * FrameSize, Journal: JournalOptions{Adopt: true}},
		"read-only, by another name": {ReadOnly: true, Journal: JournalOptions{ID: "x"}},
	} {
		if r, err := open(crashed, o, o.ReadOnly || o.Private); !errors.Is(err, ErrJournal) {
			t.Errorf("%s: %v", what, err)
			if err == nil {
				r.Close()
			}
		}
	}
	if after, _ := os.ReadFile(crashed + ".journal"); !bytes.Equal(before, after) {
		t.Error("a journal that was refused has changed")
	}
	// Read through the journal, raw and otherwise; nothing is written.
	r, err = open(crashed, RegionOptions{ReadOnly: true, Journal: JournalOptions{Adopt: true}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkBytes(r, want); err != nil {
		t.Errorf("overlay: %v", err)
	}
	if r.Raw() == nil && !bytes.Equal(r.Bytes(), want) {
		t.Error("overlay: Bytes differ")
	}
	if err := r.Commit(ctx); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Commit of a read-only region: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(crashed); !bytes.Equal(b, old) {
		t.Error("a read-only Map has changed the file")
	}
	// And recovered.
	r, err = open(crashed, RegionOptions{Durability: Atomic, Journal: JournalOptions{Adopt: true}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkBytes(r, want); err != nil {
		t.Errorf("recovered: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	// Now it is an ordinary file again.
	if r, err = open(crashed, RegionOptions{}, false); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
