package liveness

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const (
	pressBudget = 16 << 20
	pressLimit  = pressBudget + 32<<20 // what the test binary, its heap and the pager's overhead need
	pressPages  = 64 << 20 / page      // of the file: far more than the budget
	pressSteps  = 800                  // each worker's; ten times as many in the long form
)

// TestMemoryPressure works under a limit of memory that leaves little beside the
// budget, while others fill the rest with page cache, clean and dirty, and with
// garbage: the kernel reclaims all the time and the collector runs. Everybody
// must get on, what was written must be there, and nobody must be killed.
func TestMemoryPressure(t *testing.T) {
	if !child.In(t) {
		group := fixture.NewMemoryGroup(t, pressLimit)
		res := child.Run(t, child.Options{Env: []string{group.Env()}, Procs: 2, Deadline: 4 * time.Minute})
		met, killed := group.Events(t)
		if res.Err != nil || killed != 0 {
			t.Fatalf("%v; the limit was met %d times, %d processes were killed\n%s", res.Err, met, killed, res.Output)
		}
		if met == 0 {
			t.Error("there was no pressure: the limit was never met")
		}
		t.Logf("the limit was met %d times", met)
		if testing.Verbose() {
			t.Log(res.Output)
		}
		return
	}
	dir := t.TempDir()
	data := fixture.FileIn(t, dir, pressPages*page, 3)
	other := fixture.FileIn(t, dir, 2*pressLimit, 4)
	fixture.JoinMemoryGroup(t)

	p := fixture.Pager(t, pager.Options{Budget: pressBudget})
	r := fixture.Map(t, p, fixture.OpenFile(t, data, store.FileOptions{}), pager.RegionOptions{})
	fixture.NeedRaw(t, r)
	fixture.NeedWrite(t)

	var stop atomic.Bool
	var beside, work sync.WaitGroup
	beside.Go(func() { fillPageCache(t, other, filepath.Join(dir, "dirty"), &stop) })
	beside.Go(func() { makeGarbage(&stop) })
	model := make([]uint32, pressPages) // what was written last; each page has one writer
	steps := pressSteps
	if fixture.Torture() {
		steps *= 10
	}
	const workers = 8
	for w := range workers {
		work.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for i := range steps {
				if err := pressStep(r, model, rng, w, i, workers); err != nil {
					t.Errorf("worker %d, step %d: %v", w, i, err)
					return
				}
			}
		})
	}
	work.Wait()
	stop.Store(true)
	beside.Wait()
	st := p.Stats()
	if st.Evictions == 0 {
		t.Error("the budget was never full")
	}
	if st.PeakResident > pressBudget {
		t.Errorf("%d bytes were resident of a budget of %d", st.PeakResident, pressBudget)
	}
	t.Logf("%d reads, %d pages written, %d evictions; resident set %d KiB", st.Reads, st.Writebacks, st.Evictions, fixture.Status(t, "VmRSS"))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [4]byte
	for i, want := range model {
		if want == 0 {
			continue
		}
		if _, err := f.ReadAt(b[:], int64(i)*page); err != nil || binary.NativeEndian.Uint32(b[:]) != want {
			t.Fatalf("page %d of the file has %d, want %d (%v)", i, binary.NativeEndian.Uint32(b[:]), want, err)
		}
	}
}

// pressStep reads or writes one page in one of the ways there are.
func pressStep(r *pager.Region, model []uint32, rng *rand.Rand, w, step, workers int) error {
	ctx := context.Background()
	i := rng.IntN(pressPages/workers)*workers + w
	off := int64(i) * page
	check := func(b []byte) error {
		got, want := binary.NativeEndian.Uint32(b), model[i]
		if want == 0 {
			return fixture.Check(b[:4], off, 3)
		}
		if got != want {
			return fmt.Errorf("page %d has %d, want %d", i, got, want)
		}
		return nil
	}
	v := uint32(w)<<24 | uint32(step) + 1
	switch rng.IntN(6) {
	case 0:
		return check(r.Bytes()[off:])
	case 1:
		var b [4]byte
		if _, err := r.ReadAt(b[:], off); err != nil {
			return err
		}
		return check(b[:])
	case 2:
		pin, err := r.Acquire(ctx, off, 4)
		if err != nil {
			return err
		}
		defer pin.Release()
		return check(pin.Bytes())
	case 3:
		binary.NativeEndian.PutUint32(r.Bytes()[off:], v)
	case 4:
		if _, err := r.WriteAt(binary.NativeEndian.AppendUint32(nil, v), off); err != nil {
			return err
		}
	case 5:
		pin, err := r.AcquireWrite(ctx, off, 4)
		if err != nil {
			return err
		}
		binary.NativeEndian.PutUint32(pin.Bytes(), v)
		pin.Release()
		if step%64 == 0 {
			model[i] = v
			return r.Sync(ctx)
		}
	}
	model[i] = v
	return nil
}

// fillPageCache reads a file that is larger than the limit through the page
// cache, again and again, and writes another one.
func fillPageCache(t *testing.T, read, write string, stop *atomic.Bool) {
	in, err := os.Open(read)
	if err != nil {
		t.Error(err)
		return
	}
	defer in.Close()
	out, err := os.Create(write)
	if err != nil {
		t.Error(err)
		return
	}
	defer out.Close()
	buf := make([]byte, 256<<10)
	for n := int64(0); !stop.Load(); n++ {
		if _, err := io.ReadFull(in, buf); err != nil {
			if _, err := in.Seek(0, io.SeekStart); err != nil {
				t.Error(err)
				return
			}
			continue
		}
		if _, err := out.WriteAt(buf, n%128*int64(len(buf))); err != nil {
			t.Error(err)
			return
		}
	}
}

// makeGarbage keeps a few MiB alive and replaces them all the time.
func makeGarbage(stop *atomic.Bool) {
	var live [64][]byte
	for i := 0; !stop.Load(); i++ {
		live[i%len(live)] = make([]byte, 64<<10)
		if i%len(live) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}
