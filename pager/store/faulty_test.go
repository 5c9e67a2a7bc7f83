package store

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// begin starts ops on s without an engine (the stores below are memory) and
// returns a function that says which are done.
func begin(s Store, ops ...*aio.Op) (done func() []int) {
	var mu sync.Mutex
	var order []int
	for i, op := range ops {
		op.Done = func(*aio.Op) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, i)
		}
	}
	s.Start(nil, ops)
	return func() []int {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(order)
	}
}

func rd(off int64, n int) *aio.Op { return &aio.Op{Code: aio.Read, Off: off, Buf: make([]byte, n)} }
func wr(off int64, n int, seed byte) *aio.Op {
	b := make([]byte, n)
	stamp(b, off, seed)
	return &aio.Op{Code: aio.Write, Off: off, Buf: b}
}

func bytesOf(t testing.TB, s Store) []byte {
	t.Helper()
	op := rd(0, int(s.Size()))
	begin(s, op)
	if op.Err != nil || op.N != len(op.Buf) {
		t.Fatalf("read all: N %d, %v", op.N, op.Err)
	}
	return op.Buf
}

func TestFaultsMeetWhatTheyAreWrittenFor(t *testing.T) {
	const eio, enospc = syscall.EIO, syscall.ENOSPC
	// Each script meets 8 writes of pages 0..7, 8 reads of them, 3 flushes.
	for _, c := range []struct {
		name                   string
		faults                 []Fault
		writes, reads, flushes string // E: the error, .: well
	}{
		{"none", nil, "........", "........", "..."},
		{"third write", []Fault{{Ops: OnWrite, Nth: 3, Count: 1, Err: eio}}, "..E.....", "........", "..."},
		{"third write and on", []Fault{{Ops: OnWrite, Nth: 3, Err: eio}}, "..EEEEEE", "........", "..."},
		{"writes 3 and 4", []Fault{{Ops: OnWrite, Nth: 3, Count: 2, Err: eio}}, "..EE....", "........", "..."},
		{"first two writes", []Fault{{Ops: OnWrite, Count: 2, Err: eio}}, "EE......", "........", "..."},
		{"all reads", []Fault{{Ops: OnRead, Err: eio}}, "........", "EEEEEEEE", "..."},
		{"second flush", []Fault{{Ops: OnFlush, Nth: 2, Count: 1, Err: eio}}, "........", "........", ".E."},
		{"everything", []Fault{{Err: eio}}, "EEEEEEEE", "EEEEEEEE", "EEE"},
		{"a place", []Fault{{Off: 8192, Len: 4096, Err: eio}}, "..E.....", "..E.....", "..."},
		{"a byte", []Fault{{Ops: OnRead, Off: 8191, Len: 1, Err: eio}}, "........", ".E......", "..."},
		{"from a place on", []Fault{{Ops: OnWrite, Off: 6 * 4096, Err: enospc}}, "......EE", "........", "..."},
		{"second visit of a place", []Fault{{Off: 4096, Len: 4096, Nth: 2, Err: eio}}, "........", ".E......", "..."},
		{"first line decides", []Fault{{Ops: OnWrite, Nth: 1, Count: 1}, {Ops: OnWrite, Count: 1, Err: eio}}, ".E......", "........", "..."},
		{"a length no file has", []Fault{{Off: 1, Len: math.MaxInt64, Err: eio}}, "EEEEEEEE", "EEEEEEEE", "..."},
	} {
		f := NewFaulty(NewMemory(8*4096), FaultyOptions{Faults: c.faults})
		run := func(n int, mk func(i int) *aio.Op) string {
			var got []byte
			for i := range n {
				op := mk(i)
				if done := begin(f, op)(); len(done) != 1 {
					t.Fatalf("%s: not done", c.name)
				}
				switch {
				case op.Err == nil && op.N == len(op.Buf):
					got = append(got, '.')
				case (op.Err == eio || op.Err == enospc) && op.N == 0:
					got = append(got, 'E')
				default:
					got = append(got, '?')
				}
			}
			return string(got)
		}
		w := run(8, func(i int) *aio.Op { return wr(int64(i)*4096, 4096, 1) })
		r := run(8, func(i int) *aio.Op { return rd(int64(i)*4096, 4096) })
		fl := run(3, func(i int) *aio.Op { return &aio.Op{Code: aio.Flush} })
		if w != c.writes || r != c.reads || fl != c.flushes {
			t.Errorf("%s: %s %s %s, want %s %s %s", c.name, w, r, fl, c.writes, c.reads, c.flushes)
		}
		mem := bytesOf(t, f.below)
		for i := range 8 {
			want := make([]byte, 4096)
			if w[i] == '.' {
				stamp(want, int64(i)*4096, 1)
			}
			if !bytes.Equal(mem[i*4096:][:4096], want) {
				t.Errorf("%s: page %d: a failed write has arrived, or one that did not fail has not", c.name, i)
			}
		}
		f.Clear()
		if op := rd(0, 4096); len(begin(f, op)()) != 1 || op.Err != nil {
			t.Errorf("%s: after Clear: %v", c.name, op.Err)
		}
	}
}

func TestShortTransfers(t *testing.T) {
	old := stamped(4096, 1)
	for _, c := range []struct {
		short int
		err   error
		n     int // reported
		moved int // of a write, in the store
	}{
		{0, nil, 4096, 4096},
		{0, syscall.EIO, 0, 0},
		{1000, nil, 1000, 1000},
		{1000, syscall.EIO, 1000, 1000},
		{-1, nil, 0, 0},
		{-1, syscall.EIO, 0, 0},
		{9999, nil, 4096, 4096},
		{9999, syscall.EIO, 4096, 4096}, // arrived, but the acknowledgement was lost
	} {
		name := fmt.Sprintf("Short %d Err %v", c.short, c.err)
		f := NewFaulty(NewMemoryOf(old), FaultyOptions{Faults: []Fault{{Short: c.short, Err: c.err}}})
		op := rd(0, 4096)
		if begin(f, op); op.N != c.n || op.Err != c.err || !bytes.Equal(op.Buf[:op.N], old[:op.N]) {
			t.Errorf("%s: read: N %d, %v, or wrong bytes", name, op.N, op.Err)
		}
		if rest := op.Buf[op.N:]; bytes.Count(rest, []byte{junk}) != len(rest) {
			t.Errorf("%s: read: the rest of the buffer is not junk", name)
		}
		op = wr(0, 4096, 2)
		now := append(stamped(4096, 2)[:c.moved:c.moved], old[c.moved:]...)
		if begin(f, op); op.N != c.n || op.Err != c.err || !bytes.Equal(bytesOf(t, f.below), now) {
			t.Errorf("%s: write: N %d, %v, or the store is wrong", name, op.N, op.Err)
		}
		if c := f.Counts(); c.ReadBytes != int64(op.N) || c.WriteBytes != int64(op.N) || c.InFlight != 0 {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestSetEndLooksLikeAFileThatShrank(t *testing.T) {
	f := NewFaulty(NewMemoryOf(stamped(16384, 1)), FaultyOptions{})
	f.SetEnd(5000)
	for _, c := range []struct{ off, want int64 }{{0, 4096}, {4096, 904}, {8192, 0}} {
		op := rd(c.off, 4096)
		if begin(f, op); int64(op.N) != c.want || op.Err != nil {
			t.Errorf("read at %d: N %d, %v, want %d", c.off, op.N, op.Err, c.want)
		}
	}
	if f.Size() != 16384 || f.Counts().Shortened != 2 {
		t.Errorf("Size %d, %+v", f.Size(), f.Counts())
	}
	f.SetEnd(-1)
	op := rd(8192, 4096)
	if begin(f, op); op.N != 4096 {
		t.Errorf("after SetEnd(-1): N %d", op.N)
	}
}

func TestTruncateAndDiscardFail(t *testing.T) {
	f := NewFaulty(NewMemory(8192), FaultyOptions{Faults: []Fault{
		{Ops: OnTruncate, Nth: 2, Count: 1, Err: syscall.ENOSPC},
		{Ops: OnDiscard, Off: 4096, Len: 10, Err: syscall.EIO},
	}})
	if err := errors.Join(f.Truncate(100), f.Discard(0, 4096)); err != nil {
		t.Error(err)
	}
	if err := f.Truncate(50); !errors.Is(err, syscall.ENOSPC) || f.Size() != 100 {
		t.Errorf("%v, Size %d", err, f.Size())
	}
	if err := f.Discard(0, 4097); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if c := f.Counts(); c.Truncates != 2 || c.Discards != 2 || c.Failed != 2 {
		t.Errorf("%+v", c)
	}
}

// What Prob decides depends on the seed and on each transfer's own history, so
// that a run with many goroutines can be had again.
func TestProbabilityIsDecidedBySeedNotByOrder(t *testing.T) {
	outcome := func(seed uint64, order []int) string {
		f := NewFaulty(NewMemory(256*4096), FaultyOptions{Seed: seed, Faults: []Fault{{Prob: 0.3, Err: syscall.EIO}}})
		got := make([]byte, len(order))
		visits := make(map[int]int)
		for _, i := range order {
			op := rd(int64(i%256)*4096, 4096)
			begin(f, op)
			at := i%256 + 256*visits[i%256] // the k-th visit of a page
			visits[i%256]++
			got[at] = '.'
			if op.Err != nil {
				got[at] = 'E'
			}
		}
		return string(got)
	}
	order := make([]int, 1024)
	for i := range order {
		order[i] = i
	}
	a := outcome(1, order)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	if b := outcome(1, order); a != b {
		t.Error("the same seed in another order decides differently")
	}
	if b := outcome(2, order); a == b {
		t.Error("another seed decides the same")
	}
	if n := bytes.Count([]byte(a), []byte("E")); n < 200 || n > 420 {
		t.Errorf("%d of 1024 failed at probability 0.3", n)
	}
}

func TestSlowOpsCostNoGoroutines(t *testing.T) {
	const n = 10000
	f := NewFaulty(NewMemory(n*16), FaultyOptions{Latency: 50 * time.Millisecond, Jitter: 10 * time.Millisecond})
	before := runtime.NumGoroutine()
	ops := make([]*aio.Op, n)
	for i := range ops {
		ops[i] = rd(int64(i)*16, 16)
	}
	var wg sync.WaitGroup
	wg.Add(n)
	for _, op := range ops {
		op.Done = func(*aio.Op) { wg.Done() }
	}
	f.Start(nil, ops)
	if now := runtime.NumGoroutine(); now > before+2 {
		t.Errorf("%d goroutines for %d slow ops", now-before, n)
	}
	wg.Wait()
	if c := f.Counts(); c.InFlight != 0 || c.Reads != n || c.ReadBytes != n*16 {
		t.Errorf("%+v", c)
	}
}

func TestLatencyComesBeforeTheData(t *testing.T) {
	f := NewFaulty(NewMemoryOf(stamped(4096, 1)), FaultyOptions{})
	f.Inject(Fault{Ops: OnRead, Delay: time.Hour})
	slow := rd(0, 4096)
	if done := begin(f, slow)(); len(done) != 0 || slow.Buf[0] != 0 {
		t.Error("an op that is an hour away is done, or its data is there")
	}
	f.Clear()
	// A later one with less to wait for overtakes it.
	quick := make(chan struct{})
	f.SetLatency(time.Millisecond, 0)
	op := rd(0, 4096)
	op.Done = func(*aio.Op) { close(quick) }
	f.Start(nil, []*aio.Op{op})
	<-quick
	if c := f.Counts(); c.InFlight != 1 {
		t.Errorf("%+v", c)
	}
	f.Close()
}

func TestReorderPermutesBySeedAndLosesNothing(t *testing.T) {
	run := func(seed uint64) []int {
		f := NewFaulty(NewMemory(64*16), FaultyOptions{Seed: seed, Reorder: 8})
		ops := make([]*aio.Op, 64)
		for i := range ops {
			ops[i] = rd(int64(i)*16, 16)
		}
		return begin(f, ops...)()
	}
	a := run(1)
	if slices.IsSorted(a) {
		t.Error("nothing was reordered")
	}
	if !slices.Equal(a, run(1)) {
		t.Error("the same seed gives another order")
	}
	if slices.Equal(a, run(2)) {
		t.Error("another seed gives the same order")
	}
	slices.Sort(a)
	for i, x := range a {
		if x != i || len(a) != 64 {
			t.Fatalf("%d of 64 done, or one twice", len(a))
		}
	}
	// One alone has nothing to wait for; those that are held do not count.
	f := NewFaulty(NewMemory(4096), FaultyOptions{Reorder: 8})
	f.Hold(OnWrite)
	begin(f, wr(0, 16, 1))
	if done := begin(f, rd(0, 16))(); len(done) != 1 {
		t.Error("a lone op waits for others")
	}
	f.Release()
}

func TestHoldAndStep(t *testing.T) {
	f := NewFaulty(NewMemoryOf(make([]byte, 8*4096)), FaultyOptions{})
	f.Hold(OnWrite)
	ops := []*aio.Op{wr(0, 4096, 1), rd(0, 4096), wr(4096, 4096, 1), wr(8192, 4096, 1)}
	done := begin(f, ops...)
	if got := done(); !slices.Equal(got, []int{1}) {
		t.Fatalf("done %v, want the read only", got)
	}
	if f.below.(*memory).mem[0] != 0 {
		t.Error("a held write has moved its data")
	}
	if c := f.Counts(); c.Held != 3 || c.InFlight != 3 || c.MaxInFlight != 4 {
		t.Errorf("%+v", c)
	}
	if n := f.StepOp(func(_ aio.Code, off int64, _ int) bool { return off == 4096 }); n != 1 || !slices.Equal(done(), []int{1, 2}) {
		t.Errorf("StepOp let %d go; done %v", n, done())
	}
	if n := f.Step(1); n != 1 || !slices.Equal(done(), []int{1, 2, 0}) {
		t.Errorf("Step let %d go; done %v", n, done())
	}
	f.Release()
	if !slices.Equal(done(), []int{1, 2, 0, 3}) || len(begin(f, wr(0, 16, 1))()) != 1 {
		t.Errorf("after Release: %v", done())
	}
}

func TestHoldDoneKeepsTheNewsNotTheData(t *testing.T) {
	f := NewFaulty(NewMemoryOf(stamped(8192, 1)), FaultyOptions{})
	f.HoldDone(0)
	r, w := rd(0, 4096), wr(4096, 4096, 2)
	done := begin(f, r, w)
	if len(done()) != 0 || !bytes.Equal(r.Buf, stamped(4096, 1)) || !bytes.Equal(bytesOf(t, f.below)[4096:], stamped(8192, 2)[4096:]) {
		t.Errorf("done %v, or the data has not moved", done())
	}
	f.Hold(0)
	late := begin(f, rd(0, 16))
	if n := f.Step(1); n != 1 || !slices.Equal(done(), []int{0}) {
		t.Errorf("Step let %d go; done %v", n, done())
	}
	// The last one passes both gates, one Step each.
	if n := f.Step(-1); n != 2 || len(late()) != 0 || len(done()) != 2 {
		t.Errorf("Step let %d go; done %v, late %v", n, done(), late())
	}
	if n := f.Step(-1); n != 1 || len(late()) != 1 {
		t.Errorf("Step let %d go; late %v", n, late())
	}
	f.Release()
}

func TestDoneMayStartMore(t *testing.T) {
	f := NewFaulty(NewMemory(4096), FaultyOptions{})
	f.Hold(0)
	n := 0
	op := rd(0, 16)
	op.Done = func(op *aio.Op) {
		if n++; n < 10 {
			f.Start(nil, []*aio.Op{op})
		}
	}
	f.Start(nil, []*aio.Op{op})
	for i := 1; i <= 5; i++ {
		if f.Step(-1); n != i {
			t.Fatalf("%d done after %d steps", n, i)
		}
	}
	f.Release()
	if n != 10 {
		t.Errorf("%d done after Release", n)
	}
}

func TestCountsSeeWhatAPagerMustNotDo(t *testing.T) {
	f := NewFaulty(NewMemory(8*4096), FaultyOptions{Check: true})
	f.Hold(0)
	a := wr(0, 4096, 1)
	begin(f, a, wr(4096, 4096, 1), rd(8192, 4096))
	if c := f.Counts(); c.Overlaps != 0 || c.ReadsUnderWrite != 0 {
		t.Errorf("neighbours count as overlaps: %+v", c)
	}
	begin(f, wr(4000, 100, 1), rd(4095, 1))
	if c := f.Counts(); c.Overlaps != 1 || c.ReadsUnderWrite != 1 {
		t.Errorf("%+v", c)
	}
	a.Buf[7]++
	f.Release()
	if c := f.Counts(); c.Changed != 1 || c.InFlight != 0 {
		t.Errorf("%+v", c)
	}
	begin(f, wr(0, 4096, 1))
	if c := f.Counts(); c.Overlaps != 1 || c.Changed != 1 || c.Writes != 4 || c.Reads != 2 {
		t.Errorf("a finished write still counts: %+v", c)
	}
}

func TestFaultyKernelFormByOptionOnly(t *testing.T) {
	if _, ok := NewFaulty(NewMemory(4096), FaultyOptions{}).Kernel(); ok {
		t.Error("a kernel form that meets no faults, unasked")
	}
	m := NewMemory(4096)
	_, has := m.Kernel()
	if _, ok := NewFaulty(m, FaultyOptions{Kernel: true}).Kernel(); ok != has {
		t.Error("the kernel form is not passed on")
	}
}

// Everything at once from many goroutines: each op is done exactly once.
func TestFaultyUnderLoad(t *testing.T) {
	const goroutines, each = 8, 400
	f := NewFaulty(NewMemory(1<<20), FaultyOptions{
		Seed: 7, Jitter: 300 * time.Microsecond, Reorder: 5, Check: true,
		Faults: []Fault{{Prob: 0.1, Err: syscall.EIO}, {Prob: 0.1, Short: 100}, {Ops: OnWrite, Prob: 0.1, Delay: time.Millisecond}},
	})
	var wg, workers sync.WaitGroup
	for g := range goroutines {
		workers.Add(1)
		wg.Add(each)
		go func() {
			defer workers.Done()
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for range each / 4 {
				var ops []*aio.Op
				for range 4 {
					op := rd(rng.Int64N(256)*4096, 4096)
					op.Code = aio.Code(rng.IntN(3))
					var once sync.Once
					op.Done = func(*aio.Op) {
						first := false
						once.Do(func() { first = true })
						if !first {
							t.Error("done twice")
							return
						}
						wg.Done()
					}
					ops = append(ops, op)
				}
				if rng.IntN(10) == 0 {
					f.Hold(Ops(rng.IntN(8)))
				}
				f.Start(nil, ops)
				if rng.IntN(5) == 0 {
					f.Release()
				}
			}
		}()
	}
	workers.Wait()
	f.Release()
	for stop := time.Now().Add(20 * time.Second); f.Counts().InFlight > 0; time.Sleep(time.Millisecond) {
		if f.Release(); time.Now().After(stop) {
			t.Fatalf("stuck: %+v", f.Counts())
		}
	}
	wg.Wait()
	if c := f.Counts(); c.Reads+c.Writes+c.Flushes != goroutines*each || c.Failed == 0 || c.Shortened == 0 {
		t.Errorf("%+v", c)
	}
}
