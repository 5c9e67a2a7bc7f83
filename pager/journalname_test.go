//go:build linux

package pager

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/uffdpager/uffdpager/pager/journal"
	"github.com/uffdpager/uffdpager/pager/store"
)

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
