package hostile

import (
	"bytes"
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

// TestAtomicHistoriesWithFaults: thousands of short histories of reads, writes
// and commits of an Atomic region whose store and journal fail as they like,
// against a model. An error is one that was injected; what was read is what the model
// has; a crash at any time leaves what was acknowledged last, or as a whole a
// commit that has failed since; Close leaves what was acknowledged last.
func TestAtomicHistoriesWithFaults(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	if child.Isolate(t, child.Options{Procs: 2, Deadline: historyDeadline()}) {
		return
	}
	n := historyCount(1000)
	small := fixture.Pager(t, pager.Options{Budget: 128 * page})
	wide := fixture.Pager(t, pager.Options{Budget: 2048 * page})
	var total atomicCounts
	for i := range n {
		p, pages := small, int64(0)
		if i%8 == 0 { // whose commits are several transfers
			p, pages = wide, 300
		}
		if err := faultyAtomicHistory(p, pages, seed+i, &total); err != nil {
			t.Fatalf("%s=%d: %v", fixture.SeedEnv, seed+i, err)
		}
	}
	if total.failed == 0 || total.sticky == 0 || total.commits == 0 || total.crashes == 0 || total.halves == 0 {
		t.Errorf("nothing much happened: %+v", total)
	}
	t.Logf("%d histories: %+v", n, total)
}

type atomicCounts struct {
	steps, commits, failed, crashes, sticky int
	halves                                  int // crashes between a commit that failed and the next
}

// crashed is what is in memory stores while nothing moves.
func crashed(fs [2]*store.Faulty, below [2]store.Store) (data, journal []byte) {
	const all = store.OnRead | store.OnWrite | store.OnFlush
	for _, f := range fs {
		f.Hold(all)
	}
	for _, f := range fs {
		for c := f.Counts(); c.InFlight > c.Held; c = f.Counts() {
			time.Sleep(10 * time.Microsecond)
		}
	}
	var b [2][]byte
	for i, s := range below {
		size := s.Size() // the journal may be growing
		k, _ := s.Kernel()
		b[i] = bytes.Clone(k.Mem[:min(size, int64(len(k.Mem)))])
	}
	for _, f := range fs {
		f.Release()
	}
	return b[0], b[1]
}

// faultyAtomicHistory is one of them, of at least so many pages.
func faultyAtomicHistory(p *pager.Pager, pages int64, seed uint64, total *atomicCounts) error {
	rnd := rand.New(rand.NewPCG(seed, 22))
	pages += int64(8 + rnd.IntN(52))
	size := pages * page
	below := [2]store.Store{store.NewMemory(size), store.NewMemory(8192)}
	var fs [2]*store.Faulty
	for i, s := range below {
		defer s.Close()
		fs[i] = store.NewFaulty(&keptStore{s}, store.FaultyOptions{Seed: seed + uint64(i), Check: true})
	}
	o := pager.RegionOptions{
		Durability: pager.Atomic,
		Prefetch:   prefetch.None(),
		Retry:      pager.Retry{Times: rnd.IntN(3) - 1, Pause: time.Microsecond, MaxPause: time.Microsecond},
		Writeback:  pager.Writeback{Age: time.Duration(rnd.IntN(3)) * time.Millisecond, DirtyShare: 0.1, NoSteal: rnd.IntN(3) == 0},
		Journal:    pager.JournalOptions{Store: fs[1], Limit: 16 << 20, Interval: []time.Duration{-1, time.Millisecond}[rnd.IntN(2)]},
	}
	r, err := p.Map(fs[0], o)
	if err != nil {
		return err
	}
	open := true
	defer func() {
		if open {
			_ = r.Close()
		}
	}()
	model := make([]byte, size)
	acked := bytes.Clone(model)
	var failed, left [][]byte // commits since then that failed, or were not waited for
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var injected []unix.Errno // ever
	flushFailed := false
	check := func(what string, err error) error {
		if err == nil || slices.ContainsFunc(injected, func(e unix.Errno) bool { return errors.Is(err, e) }) {
			return nil
		}
		return fmt.Errorf("%s: %w, which nobody has injected (%v)", what, err, injected)
	}
	commit := func() error {
		c, end := ctx, func() {}
		switch rnd.IntN(6) {
		case 0, 1:
			c = context.Background() // another way than for who may go
		case 2:
			c, end = context.WithTimeout(ctx, time.Duration(rnd.IntN(200))*time.Microsecond)
		}
		err := r.Commit(c)
		gone := c.Err()
		end()
		if err == nil {
			if flushFailed {
				return errors.New("Commit has forgotten that a flush failed")
			}
			acked, failed, left = bytes.Clone(model), nil, nil
			total.commits++
			return nil
		}
		if gone != nil && errors.Is(err, gone) {
			left = append(left, bytes.Clone(model))
			return nil
		}
		failed = append(failed, bytes.Clone(model))
		total.failed++
		var f *pager.FaultError
		if errors.As(err, &f) && f.Op == "flush" {
			flushFailed = true
			total.sticky++
		}
		return check("Commit", err)
	}
	crash := func() error {
		total.crashes++
		if len(failed) > 0 {
			total.halves++
		}
		data, journal := crashed(fs, below)
		o := pager.RegionOptions{Durability: pager.Atomic, Journal: pager.JournalOptions{Store: store.NewSlice(journal)}}
		again, err := p.Map(store.NewSlice(data), o)
		if err != nil {
			return err
		}
		got := make([]byte, again.Len())
		_, err = again.ReadAt(got, 0)
		if err = errors.Join(err, again.Close()); err != nil {
			return err
		}
		if slices.ContainsFunc(slices.Concat([][]byte{acked}, failed, left), func(b []byte) bool { return bytes.Equal(b, got) }) {
			return nil
		}
		return fmt.Errorf("after a crash there is neither what was acknowledged last nor one of %d commits since: %w", len(failed)+len(left), fixture.Compare(got, acked, 0))
	}
	step := func() error {
		off := rnd.Int64N(size)
		n := min(rnd.Int64N(max(3, pages/2)*page)+1, size-off)
		if rnd.IntN(3) == 0 { // whole pages
			off &^= page - 1
			n = min((n+page-1)&^(page-1), size-off)
		}
		b := make([]byte, n)
		switch rnd.IntN(10) {
		case 0, 1:
			fixture.Fill(b, off, rnd.Uint64())
			k, err := r.WriteAt(b, off)
			copy(model[off:], b[:k])
			return check("WriteAt", err)
		case 2:
			k, err := r.ReadAt(b, off)
			if e := fixture.Compare(b[:k], model[off:off+int64(k)], off); e != nil {
				return fmt.Errorf("ReadAt: %w", e)
			}
			return check("ReadAt", err)
		case 3:
			pin, err := r.AcquireWrite(ctx, off, min(n, 8*page))
			if err != nil {
				return check("AcquireWrite", err)
			}
			defer pin.Release()
			fixture.Fill(pin.Bytes(), off, rnd.Uint64())
			copy(model[off:], pin.Bytes())
			return nil
		case 4, 5:
			return commit()
		case 6, 7:
			errno := historyErrnos[rnd.IntN(len(historyErrnos))]
			injected = append(injected, errno)
			f := store.Fault{Ops: []store.Ops{store.OnRead, store.OnWrite, store.OnWrite, store.OnRead | store.OnWrite, store.OnTruncate, store.OnFlush}[rnd.IntN(6)],
				Err: errno, Count: int64(rnd.IntN(4)), Short: []int{0, 512, 4096, 1 << 30}[rnd.IntN(4)]}
			if rnd.IntN(2) == 0 {
				f.Prob = 0.3
			}
			fs[rnd.IntN(4)&1|rnd.IntN(2)].Inject(f) // the journal, as a rule
			return nil
		case 8:
			fs[0].Clear()
			fs[1].Clear()
			return nil
		default:
			return crash()
		}
	}
	for i := range 10 + rnd.IntN(40) {
		total.steps++
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("step %d: took too long", i)
		}
	}
	if err := crash(); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	for _, f := range fs {
		f.Clear()
		if c := f.Counts(); c.Changed > 0 {
			return fmt.Errorf("%d buffers changed on their way to %v", c.Changed, f)
		}
	}
	open = false
	if err := r.Close(); err != nil {
		// A flush had failed, of which nobody may have been told yet.
		return errors.Join(check("Close", err), crash())
	} else {
		k, _ := below[0].Kernel()
		if !slices.ContainsFunc(append(left, acked), func(b []byte) bool { return bytes.Equal(b, k.Mem[:size]) }) {
			return fmt.Errorf("the store after Close: %w", fixture.Compare(k.Mem[:size], acked, 0))
		}
	}
	return nil
}
