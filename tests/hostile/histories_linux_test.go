package hostile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// TestHistoriesWithFaults: thousands of short histories of reads, writes, syncs
// and discards over a store that fails as it likes, against a model. An error
// is one that was injected, and errors.Is says so; what was read is what the
// model has; what was written stays until it can be; reads go on; a flush that
// failed is never forgotten; and nothing waits for ever.
func TestHistoriesWithFaults(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	if child.Isolate(t, child.Options{Procs: 2, Deadline: historyDeadline()}) {
		return
	}
	n := historyCount(3000)
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	var total historyCounts
	for i := range n {
		if err := faultyHistory(p, seed+i, &total); err != nil {
			t.Fatalf("%s=%d: %v", fixture.SeedEnv, seed+i, err)
		}
	}
	if total.errors == 0 || total.sticky == 0 || total.reads == 0 || total.synced == 0 {
		t.Errorf("nothing much happened: %+v", total)
	}
	t.Logf("%d histories: %+v", n, total)
}

// historyCount is how many histories there are.
func historyCount(short uint64) uint64 {
	if fixture.Torture() {
		return 50_000
	}
	return short
}

func historyDeadline() time.Duration {
	if fixture.Torture() {
		return 40 * time.Minute
	}
	return 4 * time.Minute
}

type historyCounts struct{ steps, errors, reads, synced, sticky, stayed int }

var historyErrnos = []unix.Errno{unix.EIO, unix.ENOSPC, unix.ENXIO, unix.ENODEV, unix.EDQUOT, unix.EREMOTEIO, unix.ETIMEDOUT, unix.EILSEQ}

// faultyHistory is one of them.
func faultyHistory(p *pager.Pager, seed uint64, total *historyCounts) error {
	rnd := rand.New(rand.NewPCG(seed, 21))
	pages := int64(8 + rnd.IntN(60))
	size := pages*page - int64(rnd.IntN(2)*rnd.IntN(page-1))
	below := store.NewMemory(size)
	kernel, _ := below.Kernel()
	s := store.NewFaulty(&keptStore{below}, store.FaultyOptions{Seed: seed})
	defer below.Close()
	r, err := p.Map(s, pager.RegionOptions{
		Prefetch: prefetch.None(),
		// Repeated at once, if at all: the histories are to be short.
		Retry:     pager.Retry{Times: 1, Pause: time.Microsecond, MaxPause: time.Microsecond},
		Writeback: pager.Writeback{Age: time.Duration(rnd.IntN(3)) * time.Millisecond, DirtyShare: 0.1},
	})
	if err != nil {
		return err
	}
	model := make([]byte, size)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var injected []unix.Errno // ever
	flushFailed := false
	check := func(what string, err error) error {
		if err == nil {
			return nil
		}
		total.errors++
		if !slices.ContainsFunc(injected, func(e unix.Errno) bool { return errors.Is(err, e) }) {
			return fmt.Errorf("%s: %w, which nobody has injected (%v)", what, err, injected)
		}
		return nil
	}
	same := func(what string, got []byte, off int64) error {
		if err := fixture.Compare(got, model[off:off+int64(len(got))], off); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		total.reads++
		return nil
	}
	sync := func() error {
		before := s.Counts().Failed
		err := r.Sync(ctx)
		if e := check("Sync", err); e != nil {
			return e
		}
		if flushFailed && err == nil {
			return errors.New("Sync has forgotten that a flush failed")
		}
		var f *pager.FaultError
		if errors.As(err, &f) && f.Op == "flush" && s.Counts().Failed > before {
			flushFailed = true
			total.sticky++
		}
		if err == nil {
			total.synced++
			if err := fixture.Compare(kernel.Mem[:size], model, 0); err != nil {
				return fmt.Errorf("the store after Sync: %w", err)
			}
		}
		return nil
	}
	step := func() error {
		off := rnd.Int64N(size)
		n := min(rnd.Int64N(3*page)+1, size-off)
		if rnd.IntN(3) == 0 { // whole pages
			off &^= page - 1
			n = min((n+page-1)&^(page-1), size-off)
		}
		b := make([]byte, n)
		switch rnd.IntN(9) {
		case 0, 1:
			fixture.Fill(b, off, rnd.Uint64())
			k, err := r.WriteAt(b, off)
			copy(model[off:], b[:k])
			if err == nil && k < len(b) {
				return errors.New("WriteAt: short without an error")
			}
			return check("WriteAt", err)
		case 2:
			k, err := r.ReadAt(b, off)
			if e := same("ReadAt", b[:k], off); e != nil {
				return e
			}
			return check("ReadAt", err)
		case 3:
			pin, err := r.Acquire(ctx, off, n)
			if err != nil {
				return check("Acquire", err)
			}
			defer pin.Release()
			return same("Acquire", pin.Bytes(), off)
		case 4:
			pin, err := r.AcquireWrite(ctx, off, n)
			if err != nil {
				return check("AcquireWrite", err)
			}
			defer pin.Release()
			fixture.Fill(pin.Bytes(), off, rnd.Uint64())
			copy(model[off:], pin.Bytes())
			return nil
		case 5:
			return sync()
		case 6:
			errno := historyErrnos[rnd.IntN(len(historyErrnos))]
			injected = append(injected, errno)
			f := store.Fault{Ops: []store.Ops{store.OnRead, store.OnWrite, store.OnRead | store.OnWrite, store.OnFlush}[rnd.IntN(4)],
				Err: errno, Count: int64(rnd.IntN(4)), Short: rnd.IntN(2) * 512}
			if f.Ops != store.OnFlush && rnd.IntN(2) == 0 {
				f.Off, f.Len = off&^(page-1), n
			}
			if rnd.IntN(3) == 0 {
				f.Prob = 0.3
			}
			s.Inject(f)
			return nil
		case 7:
			s.Clear()
			return nil
		default: // what is in memory can be read whatever the store does
			for pg := int64(0); pg < pages; pg++ {
				if pin, ok := r.TryAcquire(pg*page, 1); ok {
					at := pin.Bytes()[0]
					pin.Release()
					if at != model[pg*page] {
						return fmt.Errorf("page %d in memory: %d, want %d", pg, at, model[pg*page])
					}
				}
			}
			return nil
		}
	}
	steps := 10 + rnd.IntN(40)
	for i := range steps {
		total.steps++
		begun := time.Now()
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("step %d: took %v", i, time.Since(begun))
		}
	}
	// Well again: whatever could not be written is there, and gets there.
	s.Clear()
	b := make([]byte, size)
	for tries := 0; ; tries++ {
		_, err := r.ReadAt(b, 0)
		if err == nil {
			break
		}
		// A read that a failed write has left under way may have met its fault before.
		if e := check("ReadAt", err); e != nil || tries > 2 {
			return fmt.Errorf("at the end: %w", err)
		}
	}
	if err := same("at the end", b, 0); err != nil {
		return err
	}
	for tries := 0; ; tries++ {
		if err := sync(); err != nil {
			return err
		}
		err := r.Sync(ctx)
		if flushFailed {
			if err == nil {
				return errors.New("at the end: a failed flush is forgotten")
			}
			_ = r.Close()
			total.stayed++
			break
		}
		if err == nil {
			if err := r.Close(); err != nil {
				return fmt.Errorf("Close: %w", err)
			}
			break
		}
		if tries > 2 {
			return fmt.Errorf("at the end: Sync of a store that is well: %w", err)
		}
	}
	if err := fixture.Compare(kernel.Mem[:size], model, 0); err != nil {
		return fmt.Errorf("the store at the end: %w", err)
	}
	return nil
}

// keptStore is looked at after the region that owns it is closed.
type keptStore struct{ store.Store }

func (*keptStore) Close() error { return nil }
