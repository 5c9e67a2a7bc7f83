package durability

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// In every page every writer has a word of its own, with the number of times he
// has written it.
const (
	page    = pager.FrameSize
	writers = 4
	pages   = 40
)

func slotOff(pg, w int) int64 { return int64(pg)*page + int64(w)*512 + 64 }

// slotWord is what writer w's word on a page is after so many times.
func slotWord(pg, w int, times uint64) uint64 { return times<<16 | uint64(pg)<<4 | uint64(w+1) }

// slotTimes undoes it; false: that word was never written there.
func slotTimes(pg, w int, word uint64) (times uint64, ok bool) {
	if word == 0 {
		return 0, true
	}
	return word >> 16, word&0xffff == uint64(pg)<<4|uint64(w+1)
}

// counts is the number of times of every word.
type counts [writers][pages]uint64

// write sets writer w's word on a page, in one of the ways there are.
func write(r *pager.Region, rnd *rand.Rand, pg, w int, times uint64) error {
	off := slotOff(pg, w)
	word := slotWord(pg, w, times)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], word)
	switch k := rnd.IntN(4); {
	case k == 0 && r.Raw() == nil:
		return pager.Guard(func() error { binary.LittleEndian.PutUint64(r.Bytes()[off:], word); return nil })
	case k == 1 && r.Raw() == nil:
		return r.Update(context.Background(), func(mem []byte) error { binary.LittleEndian.PutUint64(mem[off:], word); return nil })
	case k == 2:
		pin, err := r.AcquireWrite(context.Background(), off, 8)
		if err == nil {
			binary.LittleEndian.PutUint64(pin.Bytes(), word)
			pin.Release()
		}
		return err
	}
	_, err := r.WriteAt(b[:], off)
	return err
}

// sync makes durable what w has written, in one of the ways there are.
func sync1(r *pager.Region, rnd *rand.Rand) error {
	switch rnd.IntN(3) {
	case 0:
		return r.SyncRange(context.Background(), 0, r.Len())
	case 1:
		op, err := r.SyncEventfd(0, r.Len(), -1)
		if err != nil {
			return err
		}
		return op.Wait(context.Background())
	}
	return r.Sync(context.Background())
}

const (
	envDir    = "DURABILITY_DIR"
	envRound  = "DURABILITY_ROUND"
	envBroken = "DURABILITY_BROKEN"
)

// victim writes and syncs until it is killed. After every Sync it notes what
// that has acknowledged, in a file that the death of the process leaves alone.
func victim(t *testing.T) {
	dir := os.Getenv(envDir)
	round, _ := strconv.ParseUint(os.Getenv(envRound), 10, 64)
	broken := os.Getenv(envBroken) != ""
	rnd := rand.New(rand.NewPCG(round, 11))
	p, err := pager.New(pager.Options{Budget: 24 * page})
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenFile(filepath.Join(dir, "data"), store.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o := pager.RegionOptions{Writeback: pager.Writeback{Age: time.Millisecond}}
	if broken {
		o.Writeback = pager.Writeback{NoSteal: true}
	}
	r, err := p.Map(s, o)
	if err != nil {
		t.Fatal(err)
	}
	acks, err := os.OpenFile(filepath.Join(dir, "acks"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Duration(20_000+rnd.IntN(150_000))*time.Microsecond, func() {
		_ = unix.Kill(os.Getpid(), syscall.SIGKILL)
	})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(round, uint64(w)))
			var b [8]byte
			for {
				var note []byte
				for range 1 + rnd.IntN(12) {
					pg := rnd.IntN(pages)
					if _, err := r.ReadAt(b[:], slotOff(pg, w)); err != nil {
						t.Errorf("ReadAt: %v", err)
						return
					}
					times, ok := slotTimes(pg, w, binary.LittleEndian.Uint64(b[:]))
					if !ok {
						t.Errorf("writer %d, page %d: %x", w, pg, b)
						return
					}
					if err := write(r, rnd, pg, w, times+1); err != nil {
						if broken && errors.Is(err, pager.ErrBudget) {
							continue
						}
						t.Errorf("write: %v", err)
						return
					}
					note = binary.LittleEndian.AppendUint64(note, uint64(w))
					note = binary.LittleEndian.AppendUint64(note, uint64(pg))
					note = binary.LittleEndian.AppendUint64(note, times+1)
				}
				if !broken {
					if err := sync1(r, rnd); err != nil {
						t.Errorf("Sync: %v", err)
						return
					}
				}
				if _, err := acks.Write(note); err != nil {
					t.Errorf("acks: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// lost compares the file with what was acknowledged.
func lost(t *testing.T, dir string) (acked int, err error) {
	t.Helper()
	notes, err := os.ReadFile(filepath.Join(dir, "acks"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var want counts
	for ; len(notes) >= 24; notes = notes[24:] {
		w, pg, times := binary.LittleEndian.Uint64(notes), binary.LittleEndian.Uint64(notes[8:]), binary.LittleEndian.Uint64(notes[16:])
		want[w][pg] = max(want[w][pg], times)
		acked++
	}
	// Closed here: the long form comes a thousand times, and the machine's AIO
	// requests would not last.
	p, err := pager.New(pager.Options{Budget: 64 * page})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s, err := store.OpenFile(filepath.Join(dir, "data"), store.FileOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Map(s, pager.RegionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	mem := make([]byte, pages*page)
	if _, err := r.ReadAt(mem, 0); err != nil {
		t.Fatal(err)
	}
	return acked, compare(mem, &want)
}

// compare says whether every word of mem has been written at least as often as
// want says.
func compare(mem []byte, want *counts) error {
	for w := range writers {
		for pg := range pages {
			word := binary.LittleEndian.Uint64(mem[slotOff(pg, w):])
			times, ok := slotTimes(pg, w, word)
			if !ok {
				return fmt.Errorf("page %d, writer %d: %#x was never written there", pg, w, word)
			}
			if times < want[w][pg] {
				return fmt.Errorf("page %d, writer %d: the word of write %d, and %d was acknowledged", pg, w, times, want[w][pg])
			}
		}
	}
	return nil
}

// TestInPlaceKilled: whatever moment a process is killed at, what Sync has
// acknowledged is in the file. The file goes on from one process to the next.
func TestInPlaceKilled(t *testing.T) {
	fixture.NeedWrite(t)
	if child.In(t) {
		victim(t)
		return
	}
	rounds := 10
	if fixture.Torture() {
		rounds = 1000
	}
	seed := fixture.Seed(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data"), make([]byte, pages*page), 0o600); err != nil {
		t.Fatal(err)
	}
	acked := 0
	for i := range rounds {
		kill(t, dir, seed+uint64(i), "")
		n, err := lost(t, dir)
		if err != nil {
			t.Fatalf("seed %d, round %d: %v", seed, i, err)
		}
		acked = n
	}
	if acked == 0 {
		t.Error("nothing was ever acknowledged")
	}
	t.Logf("%d processes killed, %d writes acknowledged", rounds, acked)
}

// TestInPlaceKilledWithoutSync: the same without Sync is caught, or the test
// above would prove nothing.
func TestInPlaceKilledWithoutSync(t *testing.T) {
	fixture.NeedWrite(t)
	if child.In(t) {
		victim(t)
		return
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data"), make([]byte, pages*page), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		kill(t, dir, uint64(i), "1")
		if n, err := lost(t, dir); err != nil {
			t.Logf("caught in round %d: %v", i, err)
			return
		} else if n > 0 {
			t.Logf("round %d: %d acknowledged, nothing missing", i, n)
		}
	}
	t.Error("acknowledged without Sync, and nobody noticed")
}

func kill(t *testing.T, dir string, round uint64, broken string) {
	t.Helper()
	r := child.Run(t, child.Options{Env: []string{envDir + "=" + dir, envRound + "=" + strconv.FormatUint(round, 10), envBroken + "=" + broken}})
	if e := r.Err; r.TimedOut || e == nil || e.Error() != "signal: killed" {
		t.Fatalf("the child was to be killed: %v\n%s", r.Err, r.Output)
	}
}
