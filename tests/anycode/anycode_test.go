package anycode

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const (
	page  = pager.FrameSize
	count = 256 // pages of the region
	size  = count * page
)

// each runs body for every kind of code: with one P, where whoever waits for a
// P waits for everybody, in a child for each; with more in one child for all.
func each(t *testing.T, body func(t *testing.T, c code, seed uint64)) {
	seed := fixture.Seed(t)
	for _, c := range codes {
		t.Run("procs=1/"+strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: 1, Deadline: 30 * time.Second}) {
				return
			}
			body(t, c, seed)
		})
	}
	for _, n := range []int{2, 8} {
		t.Run(fmt.Sprintf("procs=%d", n), func(t *testing.T) {
			if child.Isolate(t, child.Options{Procs: n, Deadline: 90 * time.Second}) {
				return
			}
			for _, c := range codes {
				t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) { body(t, c, seed) })
			}
		})
	}
}

func rounds(n int) int {
	if fixture.Torture() {
		return 50 * n
	}
	return n
}

// TestMissingPages runs the code over pages that are not there, from several
// goroutines, until ten times the budget has been read.
func TestMissingPages(t *testing.T) {
	each(t, func(t *testing.T, c code, seed uint64) {
		const budget = 16
		p := fixture.Pager(t, pager.Options{Budget: budget * page})
		path := fixture.File(t, size, seed)
		r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true}), pager.RegionOptions{Prefetch: prefetch.None()})
		fixture.NeedRaw(t, r)
		fixture.CollectGarbage(t)
		run(t, r, c, seed, 4, rounds(80))
		if s := p.Stats(); s.ReadBytes <= 10*budget*page {
			t.Errorf("the store was read %d bytes only under a budget of %d", s.ReadBytes, budget*page)
		}
	})
}

// run lets workers run the code at random places n times each.
func run(t *testing.T, r *pager.Region, c code, seed uint64, workers, n int) {
	t.Helper()
	model := make([]byte, size)
	fixture.Fill(model, 0, seed)
	mem := r.Bytes()
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for range n {
				const span = page + 777
				off := rng.IntN(size - span)
				if errs[i] = c.run(mem[off:off+span], model[off:off+span]); errs[i] != nil {
					errs[i] = fmt.Errorf("at %d: %w", off, errs[i])
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
}

// TestPagesUnderWay runs the code over two pages that the pager loads, drops,
// pins and loads again all the time: a fault meets every state a page has.
func TestPagesUnderWay(t *testing.T) {
	each(t, func(t *testing.T, c code, seed uint64) {
		p := fixture.Pager(t, pager.Options{Budget: 8 * page})
		path := fixture.File(t, size, seed)
		r := fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{ReadOnly: true}), pager.RegionOptions{Prefetch: prefetch.None()})
		fixture.NeedRaw(t, r)
		fixture.CollectGarbage(t)
		model := make([]byte, size)
		fixture.Fill(model, 0, seed)

		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var wg sync.WaitGroup
		defer wg.Wait()
		errs := make([]error, 4)
		meddle := func(i int, f func(rng *rand.Rand) error) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(100+i)))
				for ctx.Err() == nil && errs[i] == nil {
					errs[i] = f(rng)
				}
			})
		}
		// The pages under fire are 10 to 13; others press them out.
		at := func(rng *rand.Rand) int64 { return (10 + int64(rng.IntN(4))) * page }
		meddle(0, func(rng *rand.Rand) error {
			r.Prefetch([]int64{at(rng), at(rng)}, page)
			return r.Advise(at(rng), page, pager.DontNeed)
		})
		meddle(1, func(rng *rand.Rand) error {
			pin, err := r.Acquire(ctx, at(rng), 1)
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			pin.Release()
			return nil
		})
		meddle(2, func(rng *rand.Rand) error {
			_, err := r.ReadAt(make([]byte, 100), int64(rng.IntN(size-100)))
			return err
		})
		meddle(3, func(rng *rand.Rand) error {
			time.Sleep(100 * time.Microsecond)
			return r.Advise(10*page, 4*page, pager.DontNeed)
		})

		mem := r.Bytes()
		var first error
		end := time.Now().Add(time.Duration(rounds(1)) * 150 * time.Millisecond)
		rng := rand.New(rand.NewPCG(seed, 1))
		for n := 0; n < 20 || time.Now().Before(end); n++ {
			const span = page + 777
			off := 10*page + rng.IntN(4*page-span)
			if first = c.run(mem[off:off+span], model[off:off+span]); first != nil {
				first = fmt.Errorf("at %d: %w", off, first)
				break
			}
		}
		cancel()
		wg.Wait()
		if err := errors.Join(append(errs, first)...); err != nil {
			t.Fatalf("seed %d: %v\n%v", seed, err, p.Stats())
		}
	})
}

// TestGoCodeStore lets the code touch a region that only Go code can fill.
// What can be parked gets the right bytes; what cannot is told so at once, by
// a fault. Nothing hangs, and nobody sees zeros.
func TestGoCodeStore(t *testing.T) {
	seed := fixture.Seed(t)
	for _, park := range []string{"auto", "block"} {
		for _, c := range codes {
			switch c.name {
			case "fmt", "io", "defer and panic":
				continue // they catch the fault themselves, or have it in another goroutine
			case "channel":
				// The runtime copies under a lock of its own. A fault there
				// that is not served kills the process, as it does with mmap.
				continue
			}
			t.Run(park+"/"+strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
				if child.Isolate(t, child.Options{Procs: 1, Env: []string{"UFFDPAGER_PARK=" + park}, Deadline: 30 * time.Second}) {
					return
				}
				goCodeStore(t, c, seed, park)
			})
		}
	}
}

func goCodeStore(t *testing.T, c code, seed uint64, park string) {
	model := make([]byte, size)
	fixture.Fill(model, 0, seed)
	p := fixture.Pager(t, pager.Options{Budget: 16 * page})
	r := fixture.Map(t, p, store.FromReaderAt(strings.NewReader(string(model)), size), pager.RegionOptions{Prefetch: prefetch.None()})
	if err := r.Raw(); park == "block" && !errors.Is(err, pager.ErrCannotPark) {
		t.Errorf("Raw says %v of a region that only Go code fills, where nothing is parked", err)
	}
	fixture.CollectGarbage(t)
	mem := r.Bytes()
	rng := rand.New(rand.NewPCG(seed, 1))
	refused := 0
	for n := range 40 {
		const span = page + 777
		off := rng.IntN(size - span)
		err := pager.Guard(func() error { return c.run(mem[off:off+span], model[off:off+span]) })
		var fault *pager.FaultError
		switch {
		case err == nil && park == "block" && n == 0:
			t.Fatal("a page that nobody could fill was there")
		case err == nil:
		case errors.Is(err, pager.ErrCannotPark):
			refused++
			if !errors.As(err, &fault) || fault.Offset < int64(off)&^(page-1) || fault.Offset >= int64(off+span) {
				t.Fatalf("%v names no place in [%d, %d)", err, off, off+span)
			}
		default:
			t.Fatalf("seed %d, at %d: %v", seed, off, err)
		}
		// The other ways in are not concerned.
		buf := make([]byte, span)
		if _, err := r.ReadAt(buf, int64(off)); err != nil {
			t.Fatal(err)
		}
		if err := fixture.Compare(buf, model[off:off+span], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if park == "block" && refused == 0 {
		t.Error("never refused")
	}
	t.Logf("refused %d times of 40", refused)
}
