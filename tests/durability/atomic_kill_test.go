package durability

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const (
	killEnv    = "UFFDPAGER_TEST_KILL"
	killPages  = 256
	killBudget = 48
)

// ways are the writers: each owns pages that nobody else writes to, and writes
// an ever higher number to all of its places.
//
// An Update, a WriteAt and a write pin are in a commit whole or not at all. So
// all places of such a writer hold the same number, whenever the process was
// killed. Stores through Bytes outside of them need only be there if they had
// ended before Commit was called.
var ways = []struct {
	name  string
	whole bool
	write func(r *pager.Region, places []int64, v uint64) error
}{
	{"Update", true, func(r *pager.Region, places []int64, v uint64) error {
		return r.Update(context.Background(), func(mem []byte) error {
			for _, at := range places {
				binary.LittleEndian.PutUint64(mem[at:], v)
			}
			return nil
		})
	}},
	{"WriteAt", true, func(r *pager.Region, places []int64, v uint64) error {
		first, last := places[0], places[len(places)-1]+8
		b := make([]byte, last-first)
		for _, at := range places {
			binary.LittleEndian.PutUint64(b[at-first:], v)
		}
		_, err := r.WriteAt(b, first)
		return err
	}},
	{"AcquireWrite", true, func(r *pager.Region, places []int64, v uint64) error {
		first, last := places[0], places[len(places)-1]+8
		pin, err := r.AcquireWrite(context.Background(), first, last-first)
		if err != nil {
			return err
		}
		defer pin.Release()
		for _, at := range places {
			binary.LittleEndian.PutUint64(pin.Bytes()[at-first:], v)
		}
		return nil
	}},
	{"Bytes", false, func(r *pager.Region, places []int64, v uint64) error {
		return pager.Guard(func() error {
			mem := r.Bytes()
			for _, at := range places {
				binary.LittleEndian.PutUint64(mem[at:], v)
			}
			return nil
		})
	}},
}

// places of writer i: one in each of some pages. Those of Update and Bytes lie
// far apart, the others write what lies between.
func places(i int) (at []int64) {
	const each = killPages / 4
	first := int64(i * each)
	for k := range int64(4) {
		step := k
		if ways[i].name == "Update" || ways[i].name == "Bytes" {
			step = k * (each / 4)
		}
		at = append(at, (first+step)*frame+8*k+16)
	}
	return at
}

// ledger is what parent and child share: memory of a file, which survives the
// child. Numbers are written before (begun) and after (done) a writer writes
// them; committed has what was done when a commit that was acknowledged began.
type ledger struct {
	begun, done, committed [4]atomic.Uint64
	commits                atomic.Uint64
}

func openLedger(t *testing.T, path string) *ledger {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(frame); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, frame, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return ledgerOf(b)
}

// TestAtomicKilled kills a process at random while it writes in every way,
// commits and checkpoints; the next one maps what is left, checks it and goes
// on.
func TestAtomicKilled(t *testing.T) {
	fixture.NeedWrite(t)
	seed := fixture.Seed(t)
	if child.In(t) {
		writeUntilKilled(t)
		return
	}
	dir := t.TempDir()
	path := fixture.FileIn(t, dir, killPages*frame, 0)
	zero(t, path)
	l := openLedger(t, filepath.Join(dir, "ledger"))
	rounds := 25
	if fixture.Torture() {
		rounds = 1000
	}
	rng := rand.New(rand.NewPCG(seed, 9))
	killed, live := 0, 0
	for round := range rounds {
		// Now and then while the next process is still recovering.
		delay := time.Duration(rng.Int64N(int64(120 * time.Millisecond)))
		res := child.Run(t, child.Options{Procs: 1 + round%3, Deadline: time.Minute, Env: []string{fmt.Sprintf("%s=%s,%d", killEnv, dir, delay)}})
		switch {
		case res.TimedOut:
			t.Fatalf("round %d: the child hung:\n%s", round, res.Output)
		case res.Err == nil || !strings.Contains(res.Err.Error(), "killed"):
			t.Fatalf("round %d: the child ended by itself (%v):\n%s", round, res.Err, res.Output)
		}
		killed++
		if st, err := os.Stat(path + ".journal"); err == nil && st.Size() > 0 {
			live++
		}
		if round%5 == 4 || round == rounds-1 {
			if err := checkKilled(t, path, l); err != nil {
				t.Fatalf("seed %d, round %d: %v", seed, round, err)
			}
		}
		if round%100 == 99 {
			t.Logf("killed %d times; %d commits acknowledged", killed, l.commits.Load())
		}
	}
	t.Logf("killed %d times, with a journal %d times; %d commits acknowledged", killed, live, l.commits.Load())
	if l.commits.Load() == 0 {
		t.Errorf("not one commit in %d rounds", rounds)
	}
}

func zero(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Truncate(path, 0), os.Truncate(path, killPages*frame)); err != nil {
		t.Fatal(err)
	}
}

func mapKilled(p *pager.Pager, path string) (*pager.Region, error) {
	s, err := store.OpenFile(path, store.FileOptions{})
	if err != nil {
		return nil, err
	}
	return p.Map(s, pager.RegionOptions{
		Durability: pager.Atomic,
		Journal:    pager.JournalOptions{Limit: 1 << 20, Interval: 5 * time.Millisecond},
		Writeback:  pager.Writeback{DirtyShare: 0.3, Age: 5 * time.Millisecond},
	})
}

// checkKilled maps the file and compares it with the ledger.
func checkKilled(t *testing.T, path string, l *ledger) error {
	// Closed here: the long form comes often, and the machine's AIO requests
	// would not last.
	p, err := pager.New(pager.Options{Budget: killBudget * frame})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := mapKilled(p, path)
	if err != nil {
		return fmt.Errorf("Map: %w", err)
	}
	return errors.Join(l.check(r), r.Close())
}

func (l *ledger) check(r *pager.Region) error {
	for i, w := range ways {
		var b [8]byte
		var got []uint64
		for _, at := range places(i) {
			if _, err := r.ReadAt(b[:], at); err != nil {
				return err
			}
			got = append(got, binary.LittleEndian.Uint64(b[:]))
		}
		for _, v := range got {
			switch {
			case w.whole && v != got[0]:
				return fmt.Errorf("%s: half of one: %v", w.name, got)
			case v < l.committed[i].Load():
				return fmt.Errorf("%s: %v, and %d had been committed", w.name, got, l.committed[i].Load())
			case v > l.begun[i].Load():
				return fmt.Errorf("%s: %v, and %d was the last", w.name, got, l.begun[i].Load())
			}
		}
	}
	return nil
}

// writeUntilKilled is the child: it checks what it finds and goes on with it.
func writeUntilKilled(t *testing.T) {
	dir, wait, _ := strings.Cut(os.Getenv(killEnv), ",")
	var delay time.Duration
	if _, err := fmt.Sscan(wait, (*int64)(&delay)); err != nil {
		t.Fatal(err)
	}
	l := openLedger(t, filepath.Join(dir, "ledger"))
	die := func() {
		time.Sleep(delay)
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	if delay%7 == 0 { // while it is recovering
		delay /= 50
		go die()
	}
	p, err := pager.New(pager.Options{Budget: killBudget * frame})
	if err != nil {
		t.Fatal(err)
	}
	r, err := mapKilled(p, filepath.Join(dir, "data-0"))
	if err != nil {
		t.Fatalf("Map: %v", err)
	}
	if err := l.check(r); err != nil {
		t.Fatal(err)
	}
	for i := range ways {
		l.done[i].Store(l.committed[i].Load()) // the rest is gone
	}
	if delay%7 != 0 {
		go die()
	}
	raw := r.Raw() == nil
	var wg sync.WaitGroup
	for i, w := range ways {
		if !raw && (w.name == "Update" || w.name == "Bytes") {
			continue
		}
		wg.Go(func() {
			// What was not committed is gone, and the numbers are not used again.
			for v := l.begun[i].Load() + 1; ; v++ {
				l.begun[i].Store(v)
				if err := w.write(r, places(i), v); err != nil {
					fail(fmt.Errorf("%s: %w", w.name, err))
				}
				l.done[i].Store(v)
				if v%64 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	// Two that commit, so that some share one.
	var mu sync.Mutex
	may, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, ctx := range []context.Context{context.Background(), may} {
		wg.Go(func() {
			for {
				var done [4]uint64
				for i := range done {
					done[i] = l.done[i].Load()
				}
				if err := r.Commit(ctx); err != nil {
					fail(fmt.Errorf("Commit: %w", err))
				}
				mu.Lock()
				for i, v := range done {
					l.committed[i].Store(max(v, l.committed[i].Load()))
				}
				l.commits.Add(1)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// fail ends the child with a status that the parent does not take for a kill.
func fail(err error) {
	fmt.Println("failed:", err)
	os.Exit(3)
}
