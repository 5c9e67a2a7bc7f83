package model

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestCell runs one concurrent history in this very process, with whatever the
// process was built and started with: a cell of the matrix (tests/matrix), which
// sets UFFDPAGER_MATRIX to the I/O engine it wants. It says what was in force.
func TestCell(t *testing.T) {
	name := os.Getenv("UFFDPAGER_MATRIX")
	if name == "" {
		t.Skip("a cell of the matrix: go run ./tests/matrix")
	}
	engine, err := aio.ParseKind(name)
	if err != nil {
		t.Fatal(err)
	}
	seed := fixture.Seed(t)
	fixture.CollectGarbage(t)
	// A closure that is run again needs all its pages at once.
	sp := pages(4*kib, 500, 96, 128, "file", "memory", "cached", "reader")(nil, true)
	sp.engine = engine
	sp.regions = append(sp.regions, regionSpec{kind: "memory", page: 64 * kib, size: 20 * 64 * kib})
	// Private and Atomic regions need write-protection, and say so.
	private := regionSpec{kind: "file", page: 4 * kib, size: 300 * 4 * kib, private: true}
	if slices.Contains(strings.Split(os.Getenv("UFFDPAGER_FEATURES"), ","), "-wp") {
		refusesWithoutProtection(t)
	} else {
		sp.regions = append(sp.regions, private)
	}
	sp.least, sp.budget = 16*64*kib, 24*64*kib
	w, err := newWorld(t.TempDir(), sp, seed)
	if err != nil {
		t.Fatal(err)
	}
	s := w.pagers[0].Stats()
	t.Logf("CELL %s engine=%s procs=%d uid=%d raw=%v park=%q", runtime.Version(), w.pagers[0].Engine(), runtime.GOMAXPROCS(0), os.Getuid(),
		w.regions[0].Raw() == nil, s.Park)
	w.allowHold()
	w.run(t, 8, seed, 0, time.Now().Add(duration(time.Second, 20*time.Second)))
}

// refusesWithoutProtection: what cannot work without write-protection is
// refused by Map, whatever else the cell has.
func refusesWithoutProtection(t *testing.T) {
	t.Helper()
	p := fixture.Pager(t, pager.Options{Budget: 16 * 4 * kib})
	for _, o := range []pager.RegionOptions{{Private: true}, {Durability: pager.Atomic}} {
		s := fixture.OpenFile(t, fixture.File(t, 16*4*kib, 1), store.FileOptions{})
		if r, err := p.Map(s, o); !errors.Is(err, pager.ErrNotSupported) {
			t.Errorf("Map without write-protection, %+v: %v, want ErrNotSupported", o, err)
			if err == nil {
				r.Close()
			}
		}
	}
}
