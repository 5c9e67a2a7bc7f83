package parkforms

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const page = pager.FrameSize

// The columns of the table.
const (
	parked  = "parked"
	blocked = "thread blocked"
	handler = "in the handler"
	failed  = ", then a fault"
	none    = "–"
	death   = "the process dies"
)

// wants are the three columns of a form.
func (f form) wants(go125 bool) (missing, protected, failing string) {
	missing, protected = parked, none
	if f.blocks || f.blocks5 && go125 {
		missing = blocked
	}
	if f.writes {
		protected = handler
	}
	failing = missing + failed
	if f.fatal {
		failing = death
	}
	return missing, protected, failing
}

// row is the form's line of the table, for the newest releases.
func (f form) row() string {
	missing, protected, failing := f.wants(false)
	note := ""
	if f.blocks5 {
		note = " (Go 1.25: " + blocked + ")"
	}
	return fmt.Sprintf("| %s | %s%s | %s | %s |", f.name, missing, note, protected, failing)
}

// TestTheTableOfTheDocs keeps the docs and this test the same.
func TestTheTableOfTheDocs(t *testing.T) {
	const doc = "../../docs/park-in-place.md"
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range forms {
		if !strings.Contains(string(text), f.row()+"\n") {
			t.Errorf("%s lacks the line\n%s", doc, f.row())
		}
	}
}

func TestForms(t *testing.T) {
	for _, procs := range []int{1, 2, 8} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: procs, Deadline: 90 * time.Second}) {
				return
			}
			const seed = 5
			n := int64(len(forms))
			path := fixture.File(t, 3*n*page, seed)
			p := fixture.Pager(t, pager.Options{Budget: 4 * n * page})
			r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{Private: true, Prefetch: prefetch.None()})
			fixture.NeedRaw(t, r)
			fixture.CollectGarbage(t)
			// The last third of the file goes away, so that it cannot be read.
			if err := unix.Truncate(path, 2*n*page); err != nil {
				t.Fatal(err)
			}
			inPlace := p.Stats().ParkMode == coro.InPlace
			if !inPlace {
				t.Log("parking is off: ", p.Stats().Park)
			}
			mem := r.Bytes()
			model := make([]byte, page)
			for i, f := range forms {
				missing, protected, failing := f.wants(strings.HasPrefix(runtime.Version(), "go1.25"))
				for column, want := range []string{missing, protected, failing} {
					off := (int64(column)*n + int64(i)) * page
					m := mem[off : off+page : off+page]
					switch want {
					case none, death:
						continue
					case handler: // it must be there, clean
						if _, err := r.ReadAt(make([]byte, 1), off); err != nil {
							t.Fatal(err)
						}
					}
					fixture.Fill(model, off, seed)
					before := coro.ReadStats()
					err := pager.Guard(func() error { return f.run(m, model) })
					after := coro.ReadStats()
					got := outcome(before, after)
					if err := check(err, got, want, off, m, model); err != nil {
						t.Errorf("%s: column %q: %v", f.name, want, err)
					}
					if inPlace && !race && got != want {
						t.Errorf("%s: %s, want %s: %+v", f.name, got, want, after.BlockedBy)
					}
				}
			}
		})
	}
}

// outcome is what became of the faults between two looks at the counters.
func outcome(before, after coro.Stats) string {
	s := "no fault"
	switch {
	case after.Blocked != before.Blocked:
		s = blocked
	case after.Parked != before.Parked:
		s = parked
	case after.Retried != before.Retried:
		s = handler
	}
	if after.Delivered != before.Delivered {
		s += failed
	}
	return s
}

// check looks at the form's result, and at the page after it.
func check(err error, got, want string, off int64, m, model []byte) error {
	if !strings.HasSuffix(want, failed) {
		if err != nil {
			return err
		}
		return fixture.Compare(m, model, off)
	}
	var fault *pager.FaultError
	if !errors.As(err, &fault) || !errors.Is(err, io.ErrUnexpectedEOF) || fault.Offset < off || fault.Offset >= off+page {
		return fmt.Errorf("not the error of the page at %d: %w", off, err)
	}
	return nil
}
