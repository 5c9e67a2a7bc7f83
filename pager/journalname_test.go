//go:build linux

package pager

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/uffdpager/uffdpager/pager/journal"
	"github.com/uffdpager/uffdpager/pager/store"
)

// A file has one journal, whatever it is called and wherever the process is: what is
// committed under one name is there under another.
func TestAFileHasOneJournal(t *testing.T) {
	needProtection(t)
	p := newPager(t, Options{Budget: 64 * FrameSize})
	dir := t.TempDir()
	name := filepath.Join(dir, "data")
	link := filepath.Join(dir, "elsewhere", "link")
	if err := errors.Join(os.WriteFile(name, make([]byte, 8*FrameSize), 0o600), os.Mkdir(filepath.Dir(link), 0o700), os.Symlink("../data", link)); err != nil {
		t.Fatal(err)
	}
	open := func(name string, o RegionOptions) (*Region, error) {
		s, err := store.OpenFile(name, store.FileOptions{ReadOnly: o.ReadOnly})
		if err != nil {
			t.Fatal(err)
		}
		t.Chdir(t.TempDir()) // between both
		return p.Map(s, o)
	}
	t.Chdir(dir)
	for i, first := range []string{name, link, "data", "elsewhere/link"} {
		r, err := open(first, RegionOptions{Durability: Atomic, Journal: JournalOptions{Interval: -1}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(name + ".journal"); err != nil {
			t.Fatalf("%s: %v", first, err)
		}
		fill(t, r, 2, byte(i+1))
		if err := r.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		for _, second := range []string{name, link} { // as if it were another process
			if _, err := open(second, RegionOptions{ReadOnly: true}); !errors.Is(err, ErrBusy) {
				t.Errorf("%s beside %s: %v", second, first, err)
			}
		}
		// Somebody else's file of that name stays, and that ours is gone is no error.
		if i%2 == 0 {
			if err := os.Rename(name+".journal", name+".moved"); err != nil {
				t.Fatal(err)
			}
			if i == 2 {
				if err := os.WriteFile(name+".journal", []byte("another"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: %v", first, err)
		}
		if b, err := os.ReadFile(name + ".journal"); (err == nil) != (i == 2) || i == 2 && string(b) != "another" {
			t.Errorf("%s: after Close %q, %v", first, b, err)
		}
		os.Remove(name + ".journal")
		t.Chdir(dir)
	}
}

// A file that has the name of a journal by chance keeps nobody from mapping the
// file beside it, but by an Atomic region, and is not touched by that either.
func TestNameOfAJournalByChance(t *testing.T) {
	needProtection(t)
	p := newPager(t, Options{Budget: 16 * FrameSize})
	for what, content := range map[string][]byte{
		"nothing":    nil,
		"a word":     []byte("hello"),
		"a document": bytes.Repeat([]byte("not a journal at all\n"), 4096),
	} {
		dir := t.TempDir()
		name := filepath.Join(dir, "data")
		if err := errors.Join(os.WriteFile(name, make([]byte, 3*FrameSize), 0o600), os.WriteFile(name+".journal", content, 0o600)); err != nil {
			t.Fatal(err)
		}
		open := func(o RegionOptions, readOnly bool) error {
			s, err := store.OpenFile(name, store.FileOptions{ReadOnly: readOnly})
			if err != nil {
				t.Fatal(err)
			}
			r, err := p.Map(s, o)
			if err != nil {
				return err
			}
			return r.Close()
		}
		if err := errors.Join(open(RegionOptions{}, false), open(RegionOptions{}, true), open(RegionOptions{Private: true}, true)); err != nil {
			t.Errorf("Map beside %s: %v", what, err)
		}
		switch err := open(RegionOptions{Durability: Atomic}, false); {
		case content == nil && err != nil, content != nil && err == nil:
			t.Errorf("an Atomic Map beside %s: %v", what, err)
		case len(content) > 8192 && (!errors.Is(err, ErrJournal) || !errors.Is(err, journal.ErrNoJournal) || !errors.Is(err, journal.ErrForeign)):
			t.Errorf("an Atomic Map beside %s: %v", what, err)
		}
		if b, err := os.ReadFile(name + ".journal"); content != nil && !bytes.Equal(b, content) {
			t.Errorf("%s has changed: %v", what, err)
		}
	}
}

// A Map that is refused leaves no journal that it has made, and every commit that it has
// found: in the store, or, if it was to be read only, in the journal.
func TestARefusedMapLeavesNoJournal(t *testing.T) {
	needProtection(t)
	p := newPager(t, Options{Budget: 64 * FrameSize})
	const size = 8 * FrameSize
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := func(o RegionOptions) {
		t.Helper()
		s, err := store.OpenFile(name, store.FileOptions{ReadOnly: o.ReadOnly})
		if err != nil {
			t.Fatal(err)
		}
		o.Durability, o.MaxSize = Atomic, size-FrameSize
		if r, err := p.Map(s, o); err == nil {
			r.Close()
			t.Fatal("Map took a MaxSize that is less than the size")
		}
	}
	there := func() bool {
		_, err := os.Lstat(name + ".journal")
		return err == nil
	}
	refused(RegionOptions{})
	if there() {
		t.Error("a refused Map has left a journal")
	}
	// Where the program says where it is, one that was there stays, and no other.
	path := JournalOptions{Path: name + ".journal"}
	refused(RegionOptions{Journal: path})
	if there() {
		t.Error("a refused Map has left a journal where it was told to make it")
	}
	if err := os.WriteFile(path.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(RegionOptions{Journal: path})
	if !there() {
		t.Error("a refused Map has removed a file that it has not made")
	}
	os.Remove(path.Path)
	// The journal is made and cannot be written to.
	q, err := New(Options{Budget: 64 * FrameSize})
	if err == nil {
		err = q.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []JournalOptions{{}, path} {
		for _, early := range []bool{true, false} { // or Close comes between
			q.closed.Store(early)
			s, err := store.OpenFile(name, store.FileOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err = q.Map(s, RegionOptions{Durability: Atomic, Journal: o}); err == nil || early && !errors.Is(err, ErrClosed) {
				t.Errorf("Map after Close: %v", err)
			}
			if there() {
				t.Error("a Map that cannot write its journal has left it")
				os.Remove(path.Path)
			}
		}
	}
	q.closed.Store(true)

	// A journal with a commit in it, as a crash leaves it.
	s, err := store.OpenFile(name, store.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Map(s, RegionOptions{Durability: Atomic, Journal: JournalOptions{Interval: -1}})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, r, 3, 7)
	if err := r.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name + ".journal")
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(name, make([]byte, size), 0o600), os.WriteFile(name+".journal", b, 0o600)); err != nil {
		t.Fatal(err)
	}
	refused(RegionOptions{ReadOnly: true})
	if !there() {
		t.Fatal("a Map for reading that was refused has removed a journal with a commit in it")
	}
	refused(RegionOptions{})
	if there() {
		t.Error("a refused Map has left a journal that it has replayed")
	}
	if b, err = os.ReadFile(name); err != nil || b[3*FrameSize] != 7 {
		t.Errorf("the commit is not in the store: %v, %v", b[3*FrameSize], err)
	}
}
