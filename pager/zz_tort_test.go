//go:build linux

package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager/store"
)

func TestZZTorture(t *testing.T) {
	needProtection(t)
	seed := uint64(time.Now().UnixNano())
	end := time.Now().Add(60 * time.Second)
	for n := seed; time.Now().Before(end) && !t.Failed(); n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) { zzTorture(t, n) })
	}
}

func zzTorture(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 5))
	pairs, writers := 512, 4
	budget := []int64{128, 600, 2048}[rnd.IntN(3)]
	p := newPager(t, Options{Budget: budget * FrameSize, StallLimit: 5 * time.Second})
	data, dataBytes := memoryStore(make([]byte, 2*pairs*FrameSize))
	var js store.Store
	var jBytes func() []byte
	if rnd.IntN(2) == 0 {
		name := filepath.Join(t.TempDir(), "j")
		f, err := store.OpenFile(name, store.FileOptions{Create: true, Size: 8192})
		if err != nil {
			t.Fatal(err)
		}
		js, jBytes = f, func() []byte { b, _ := os.ReadFile(name); return b }
	} else {
		js, jBytes = memoryStore(make([]byte, 8192))
	}
	fo := store.FaultyOptions{Seed: seed, Kernel: true, Check: true}
	if rnd.IntN(2) == 0 {
		fo.Latency, fo.Jitter, fo.Reorder = 20*time.Microsecond, 200*time.Microsecond, 4
	}
	journal := store.NewFaulty(js, fo)
	df := store.NewFaulty(data, fo)
	o := RegionOptions{
		Durability: Atomic,
		Journal:    JournalOptions{Store: journal, Limit: 16 << 20, Interval: 3 * time.Millisecond},
		Retry:      Retry{Times: -1},
	}
	r, err := p.Map(df, o)
	if err != nil {
		t.Fatal(err)
	}
	errno := []unix.Errno{unix.EIO, unix.ENOSPC, unix.EAGAIN}[rnd.IntN(3)]
	prob := []float64{0.001, 0.05, 0.3}[rnd.IntN(3)]
	faults := func() {
		journal.Inject(store.Fault{Ops: store.OnWrite, Prob: prob, Err: errno, Short: []int{0, 4096, 1 << 30}[rnd.IntN(3)]})
		df.Inject(store.Fault{Ops: store.OnWrite, Prob: prob, Err: errno})
		if rnd.IntN(3) == 0 {
			journal.Inject(store.Fault{Ops: store.OnTruncate, Prob: 0.5, Err: unix.ENOSPC})
		}
	}
	faults()
	ctx := context.Background()
	var wg sync.WaitGroup
	var stop atomic.Bool
	written := make([]atomic.Uint64, pairs)
	for w := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed+uint64(w), 9))
			for v := uint64(1); !stop.Load(); v++ {
				i := rnd.IntN(pairs/writers)*writers + w
				if err := putPair(ctx, r, i, v, int(v)%4); err != nil {
					if errors.Is(err, errno) || errors.Is(err, ErrBudget) {
						return
					}
					t.Errorf("pair %d: %v", i, err)
					return
				}
				written[i].Store(v)
				if v%256 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				c, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(3000))*time.Microsecond)
				r.Commit(c)
				cancel()
				time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
			}
		})
	}
	acked, failed := 0, 0
	last := make([]uint64, pairs)
	for round := 0; round < 40 && !t.Failed(); round++ {
		before := make([]uint64, pairs)
		for i := range before {
			before[i] = written[i].Load()
		}
		c, cancel := ctx, func() {}
		if round%2 == 0 {
			c, cancel = context.WithTimeout(ctx, 30*time.Second)
		}
		err := r.Commit(c)
		cancel()
		if err == nil {
			acked++
			last = before
		} else {
			failed++
			if !errors.Is(err, errno) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, ErrBudget) {
				var short = err.Error()
				t.Logf("commit: %v", short)
			}
			if errors.Is(err, ErrClosed) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("commit: %v", err)
			}
		}
		a := r.atomic
		a.turn <- struct{}{}
		a.cutting.Store(true)
		a.keep.Lock()
		d, j := dataBytes(), jBytes()
		a.keep.Unlock()
		a.cutting.Store(false)
		<-a.turn
		q, err := tryMapAtomic(p, d, j, RegionOptions{})
		if err != nil {
			t.Errorf("round %d: Map after the crash: %v", round, err)
			break
		}
		got := make([]byte, len(d))
		if _, err := q.ReadAt(got, 0); err != nil {
			t.Errorf("ReadAt: %v", err)
		}
		for i := range pairs {
			x, y := getPair(got, i)
			if x != y || x < last[i] {
				t.Errorf("round %d: pair %d is %d and %d, and %d was written before", round, i, x, y, last[i])
			}
		}
		if err := q.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if round == 20 {
			journal.Clear()
			df.Clear()
		}
		if round == 30 {
			faults()
		}
	}
	stop.Store(true)
	wg.Wait()
	journal.Clear()
	df.Clear()
	want := make([]byte, 2*pairs*FrameSize)
	if _, err := r.ReadAt(want, 0); err != nil {
		t.Error(err)
	}
	if err := r.Commit(ctx); err != nil {
		t.Errorf("last: %v", err)
	} else {
		if err := r.atomic.checkpoint(ctx); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(dataBytes(), want) {
			for i := range want {
				if dataBytes()[i] != want[i] {
					t.Errorf("page %d differs at the end", i/FrameSize)
					break
				}
			}
		}
		if n := load64(&r.d.slotsFree); n != int64(r.d.slotCount) {
			t.Errorf("%d of %d slots free", n, r.d.slotCount)
		}
		if load64(&r.d.slotsLoose) != 0 || load64(&r.d.slotsFilling) != 0 {
			t.Errorf("loose %d filling %d", load64(&r.d.slotsLoose), load64(&r.d.slotsFilling))
		}
	}
	if n := journal.Counts().Changed; n != 0 {
		t.Errorf("%d changed", n)
	}
	t.Logf("budget %d prob %v %v: %d acked, %d failed; last %v", budget, prob, errno, acked, failed, binary.LittleEndian.Uint64(want))
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
