package thirdparty

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const (
	budget     = 1 << 20
	minSize    = 16 * budget
	goroutines = 1000

	// dataEnv tells a child where its parent has put the file.
	dataEnv = "UFFDPAGER_THIRDPARTY_DATA"
)

// question asks a library something that rng decides, and returns its answer.
// It may be asked by many goroutines at once, but gets no rng twice.
type question func(rng *rand.Rand) ([]uint64, error)

// source opens a file of the library over memory.
type source func(seed uint64, mem []byte) (question, error)

// sameAnswers builds a file once and runs, with one and with two Ps, each in a
// process of its own, a thousand goroutines that ask it n questions each: over
// a region and over a plain copy.
func sameAnswers(t *testing.T, n int, build func(seed uint64, f *os.File) error, open source) {
	seed := fixture.Seed(t)
	path := os.Getenv(dataEnv)
	if path == "" {
		path = written(t, func(f *os.File) error { return build(seed, f) })
	}
	if fixture.Torture() {
		n *= 50
	}
	for _, procs := range []int{1, 2} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			deadline := 90 * time.Second
			if fixture.Torture() {
				deadline = 30 * time.Minute
			}
			if child.Isolate(t, child.Options{Procs: procs, Deadline: deadline, Env: []string{dataEnv + "=" + path}}) {
				return
			}
			compare(t, seed, path, n, open)
		})
	}
}

// written is the path of a new file with what build puts into it.
func written(t *testing.T, build func(f *os.File) error) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "data")
	if err != nil {
		t.Fatal(err)
	}
	if err := build(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func compare(t *testing.T, seed uint64, path string, n int, open source) {
	copied, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(copied) < minSize {
		t.Fatalf("the file has %d bytes: too few to press on a budget of %d", len(copied), budget)
	}
	plain, err := open(seed, copied)
	if err != nil {
		t.Fatal("over plain memory: ", err)
	}

	p := fixture.Pager(t, pager.Options{Budget: budget})
	r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true}), pager.RegionOptions{ReadOnly: true})
	fixture.NeedRaw(t, r)
	paged, err := open(seed, r.Bytes())
	if err != nil {
		t.Fatal("over the region: ", err)
	}

	began := time.Now()
	errs := make(chan error, goroutines)
	var wg sync.WaitGroup
	for i := range uint64(goroutines) {
		wg.Go(func() {
			for k := range uint64(n) {
				// One seed for each question: what one side answers must not
				// shift what the other is asked next.
				stream := i<<32 | k
				got, err := paged(rand.New(rand.NewPCG(seed, stream)))
				if err != nil {
					errs <- fmt.Errorf("goroutine %d, question %d, over the region: %w", i, k, err)
					return
				}
				want, err := plain(rand.New(rand.NewPCG(seed, stream)))
				if err != nil {
					errs <- fmt.Errorf("goroutine %d, question %d, over plain memory: %w", i, k, err)
					return
				}
				if !slices.Equal(got, want) {
					errs <- fmt.Errorf("goroutine %d, question %d: %s", i, k, difference(got, want))
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	close(errs)
	failed := 0
	for err := range errs {
		if failed++; failed <= 5 {
			t.Error(err)
		}
	}
	if failed != 0 {
		t.Fatalf("%d of %d goroutines failed", failed, goroutines)
	}

	s := p.Stats()
	t.Logf("%d goroutines, %d questions each, %d bytes: %v, %d threads now\n%v",
		goroutines, n, len(copied), took.Round(time.Millisecond), fixture.Threads(t), s)
	if s.PeakResident > budget {
		t.Errorf("%d bytes were resident under a budget of %d", s.PeakResident, budget)
	}
	if s.ReadBytes < int64(len(copied)) {
		t.Errorf("only %d bytes of a file of %d were read: the region was not under pressure", s.ReadBytes, len(copied))
	}
	if f := s.Faults; f.Faults == 0 {
		t.Error("no fault was seen: the library has not read from the region")
	} else {
		t.Logf("%d faults: %d parked, %d blocked their thread%s", f.Faults, f.Parked, f.Blocked, top(s))
	}
}

// top lists what could not be parked, most frequent first.
func top(s pager.Stats) string {
	var b strings.Builder
	for _, l := range s.Faults.BlockedBy[:min(8, len(s.Faults.BlockedBy))] {
		fmt.Fprintf(&b, "\n\t%8d  %v: %s", l.Count, l.Reason, l.Func)
	}
	return b.String()
}

// difference says where two answers part.
func difference(got, want []uint64) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("value %d of the answer is %d over the region, %d over plain memory", i, got[i], want[i])
		}
	}
	return fmt.Sprintf("the answer has %d values over the region, %d over plain memory", len(got), len(want))
}
