package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/uffdpager/uffdpager/pager/aio"
)

func record(t testing.TB, s Store, with *Recorder) *Recording {
	t.Helper()
	r, err := NewRecording(s, with)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func now(t testing.TB, s Store, op *aio.Op) {
	t.Helper()
	if done := begin(s, op)(); len(done) != 1 {
		t.Fatalf("%v at %d is not done", op.Code, op.Off)
	}
}

func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

func put(off int64, n int, b byte) *aio.Op {
	return &aio.Op{Code: aio.Write, Off: off, Buf: fill(n, b)}
}

// shape names the sectors of an image by their first bytes.
func shape(img []byte) string {
	var s []byte
	for i := 0; i < len(img); i += Sector {
		if img[i] == 0 {
			s = append(s, '-')
		} else {
			s = append(s, img[i])
		}
	}
	return string(s)
}

func TestImagesHoldWhatAFlushHasPromised(t *testing.T) {
	r := record(t, NewMemoryOf(fill(4*Sector, 'o')), nil)
	now(t, r, put(0, Sector, 'a'))
	written := r.rec.Now()
	now(t, r, &aio.Op{Code: aio.Flush})
	flushed := r.rec.Now()
	now(t, r, put(Sector, 2*Sector, 'b'))
	if err := r.Discard(0, Sector); err != nil {
		t.Fatal(err)
	}
	if err := r.Truncate(3 * Sector); err != nil {
		t.Fatal(err)
	}
	end := r.rec.Now()
	tear := func(x Record, sector int64) bool { return sector == 1 }
	for _, c := range []struct {
		name     string
		tick     int
		survives Survives
		want     string
	}{
		{"before everything", 0, Everything, "oooo"},
		{"a write begun, lost", 1, nil, "oooo"},
		{"a write begun, there nevertheless", 1, Everything, "aooo"},
		{"a write done, lost", written, nil, "oooo"},
		{"a flush begun", written + 1, nil, "oooo"},
		{"a flush done", flushed, nil, "aooo"},
		{"all that came later lost", end, nil, "aooo"},
		{"all of it kept", end, Everything, "-bb"},
		{"a torn write", end, tear, "aboo"},
	} {
		if got := shape(r.Image(c.tick, c.survives)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if got := shape(bytesOf(t, r.below)); got != "-bb" {
		t.Errorf("the store below holds %s", got)
	}
	log := r.rec.Records()
	for i, want := range []bool{false, false, true, true, true} { // the flush itself is never lost
		if r.rec.Lost(log[i], end) != want {
			t.Errorf("record %d: Lost %v", i, !want)
		}
	}
	now(t, r, &aio.Op{Code: aio.Flush})
	if got := shape(r.Image(r.rec.Now(), nil)); got != "-bb" {
		t.Errorf("after the last flush: %s", got)
	}
}

// A flush promises nothing about what was under way when it began, about
// writes that failed, or if it failed itself.
func TestFlushPromisesNoMoreThanItCan(t *testing.T) {
	f := NewFaulty(NewMemory(4*Sector), FaultyOptions{})
	r := record(t, f, nil)
	f.HoldDone(OnWrite)
	late := begin(r, put(0, Sector, 'a'))
	now(t, r, &aio.Op{Code: aio.Flush})
	if got := shape(r.Image(r.rec.Now(), nil)); got != "----" {
		t.Errorf("a write that ended after the flush began is durable: %s", got)
	}
	f.Release()
	if len(late()) != 1 {
		t.Fatal("held write not done")
	}
	// Now the write ends while the flush is under way.
	f.HoldDone(OnWrite | OnFlush)
	begin(r, put(3*Sector, Sector, 'x'))
	begin(r, &aio.Op{Code: aio.Flush})
	f.Step(1)
	f.Release()
	if got := shape(r.Image(r.rec.Now(), nil)); got != "a---" {
		t.Errorf("a write that ended during the flush is durable: %s", got)
	}
	if err := r.Discard(3*Sector, Sector); err != nil {
		t.Fatal(err)
	}
	f.Inject(Fault{Ops: OnWrite, Err: syscall.EIO, Short: Sector}, Fault{Ops: OnFlush, Nth: 2, Err: syscall.EIO})
	bad := put(Sector, 2*Sector, 'b')
	now(t, r, bad)
	if bad.Err != syscall.EIO {
		t.Fatal(bad.Err)
	}
	now(t, r, &aio.Op{Code: aio.Flush})
	if got := shape(r.Image(r.rec.Now(), nil)); got != "a---" {
		t.Errorf("after a failed write and a good flush: %s", got)
	}
	if got := shape(r.Image(r.rec.Now(), Everything)); got != "abb-" {
		t.Errorf("a failed write may be there: %s", got)
	}
	f.Clear()
	f.Inject(Fault{Ops: OnFlush, Err: syscall.EIO})
	now(t, r, put(3*Sector, Sector, 'c'))
	now(t, r, &aio.Op{Code: aio.Flush})
	if got := shape(r.Image(r.rec.Now(), nil)); got != "a---" {
		t.Errorf("a failed flush has made something durable: %s", got)
	}
	f.Clear()
	f.Inject(Fault{Ops: OnWrite, Short: 100})
	now(t, r, put(0, Sector, 'd'))
	if x := r.rec.Records(); x[len(x)-1].Err == nil {
		t.Error("a short write counts as a good one")
	}
}

func TestRecordingIsAStoreLikeTheOneBelow(t *testing.T) {
	old := stamped(5000, 1)
	r := record(t, NewMemoryOf(old), nil)
	op := rd(4096, 4096)
	if now(t, r, op); op.N != 904 || !bytes.Equal(op.Buf[:904], old[4096:]) {
		t.Errorf("read across the end: N %d", op.N)
	}
	w := wr(4096, 4096, 2)
	if now(t, r, w); w.N != 4096 || w.Err != nil {
		t.Errorf("write across the end: N %d, %v", w.N, w.Err)
	}
	w.Buf[0] ^= 0xff // the record has its own copy
	if err := r.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	want := append(slices.Clone(old[:4096]), stamped(5000, 2)[4096:]...)
	want = append(want, make([]byte, 8192-5000)...)
	if got := bytesOf(t, r); !bytes.Equal(got, want) {
		t.Error("the store is wrong")
	}
	if got := r.Image(r.rec.Now(), Everything); !bytes.Equal(got, want) {
		t.Error("what a write had past Size has come up in the image")
	}
	if err := r.Truncate(-1); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	if len(r.Image(r.rec.Now(), Everything)) != 8192 {
		t.Error("a refused Truncate has changed the image")
	}
}

func TestRecordingReadsTheBase(t *testing.T) {
	data := stamped(3<<20+7, 1)
	r := record(t, FromReaderAt(bytes.NewReader(data), int64(len(data))), nil)
	if !bytes.Equal(r.Image(0, nil), data) {
		t.Error("the base is wrong")
	}
	if _, err := NewRecording(FromReaderAt(bytes.NewReader(data[:100]), 200), nil); err == nil {
		t.Error("a store that ends early has a base")
	}
	bad := NewFaulty(NewMemory(100), FaultyOptions{Faults: []Fault{{Err: syscall.EIO}}})
	if _, err := NewRecording(bad, nil); !errors.Is(err, syscall.EIO) {
		t.Errorf("a store that cannot be read: %v", err)
	}
}

// A transaction over two stores of one Recorder, in miniature: two cells that
// must change together, and a journal of one sector. With its flushes in place
// no loss of power breaks it; without any one of them some does, and the
// images show it.
func TestALossOfPowerFindsAMissingFlush(t *testing.T) {
	const intoJournal, beforeData, beforeClear = 1, 2, 4
	run := func(skip int) (broken string) {
		rec := new(Recorder)
		data, journal := record(t, NewMemory(2*Sector), rec), record(t, NewMemory(3*Sector), rec)
		flush := func(r *Recording, which int) {
			if skip&which == 0 {
				now(t, r, &aio.Op{Code: aio.Flush})
			}
		}
		acked := map[int]byte{} // tick → value acknowledged by then
		for v := byte(1); v <= 4; v++ {
			now(t, journal, put(0, 2*Sector, v)) // both cells
			flush(journal, intoJournal)
			now(t, journal, put(2*Sector, Sector, v)) // the commit record
			flush(journal, beforeData)
			acked[rec.Now()] = v
			now(t, data, put(0, Sector, v))
			now(t, data, put(Sector, Sector, v))
			flush(data, beforeClear)
			now(t, journal, put(2*Sector, Sector, 0))
			now(t, journal, &aio.Op{Code: aio.Flush})
		}
		for tick := range rec.Now() + 1 {
			for seed := uint64(0); seed < 60; seed++ {
				survives := AtRandom(seed)
				if seed == 0 {
					survives = nil
				}
				d, j := data.Image(tick, survives), journal.Image(tick, survives)
				if v := j[2*Sector]; v != 0 { // replay
					copy(d, j[:2*Sector])
				}
				want := byte(0)
				for at, v := range acked {
					if at <= tick {
						want = max(want, v)
					}
				}
				if d[0] != d[Sector] || d[0] < want {
					return fmt.Sprintf("tick %d seed %d: cells %d and %d, acknowledged %d", tick, seed, d[0], d[Sector], want)
				}
			}
		}
		return ""
	}
	if broken := run(0); broken != "" {
		t.Errorf("with every flush: %s", broken)
	}
	for _, skip := range []int{intoJournal, beforeData, beforeClear} {
		if run(skip) == "" {
			t.Errorf("without flush %d no image shows the fault", skip)
		}
	}
}

// Random histories with reordered completions, failing writes and flushes: in
// every image each sector holds a version that is not older than the last one
// a flush made durable and not newer than the last one begun.
func TestImagesAgainstAModel(t *testing.T) {
	const sectors = 8
	rapid.Check(t, func(rt *rapid.T) {
		f := NewFaulty(NewMemory(sectors*Sector), FaultyOptions{Seed: rapid.Uint64().Draw(rt, "seed"), Reorder: 3,
			Faults: []Fault{{Ops: OnWrite | OnFlush, Prob: 0.15, Err: syscall.EIO}}})
		r, err := NewRecording(f, nil)
		if err != nil {
			rt.Fatal(err)
		}
		defer r.Close()
		type state struct{ durable, begun [sectors]uint32 }
		history := []state{{}}
		var acked, s state // acked.durable: versions that ended well, not yet flushed
		note := func() {
			for len(history) <= r.rec.Now() {
				history = append(history, history[len(history)-1])
			}
			history[r.rec.Now()] = s
		}
		for v := uint32(1); v <= 12; v++ {
			if rapid.IntRange(0, 3).Draw(rt, "step") == 0 {
				op := &aio.Op{Code: aio.Flush}
				if begin(r, op); op.Err == nil {
					s.durable = acked.durable
				}
				note()
				continue
			}
			var ops []*aio.Op
			first := rapid.IntRange(0, sectors-1).Draw(rt, "first")
			n := rapid.IntRange(1, min(3, sectors-first)).Draw(rt, "n")
			for i := range n {
				op := put(int64(first+i)*Sector, Sector, 0)
				binary.LittleEndian.PutUint32(op.Buf, v)
				ops = append(ops, op)
				s.begun[first+i] = v
			}
			begin(r, ops...)
			for i, op := range ops {
				if op.Err == nil {
					acked.durable[first+i] = v
				}
			}
			note()
		}
		for tick := range r.rec.Now() + 1 {
			// Between two notes the history is that of the later one for what may
			// have begun, and of the earlier one for what must be there.
			next := tick
			for next < len(history)-1 && history[next] == history[tick] {
				next++
			}
			for seed := range uint64(5) {
				img := r.Image(tick, AtRandom(seed))
				for i := range sectors {
					got := binary.LittleEndian.Uint32(img[i*Sector:])
					if got < history[tick].durable[i] || got > history[next].begun[i] {
						rt.Fatalf("tick %d sector %d: version %d, durable %d, begun %d", tick, i, got, history[tick].durable[i], history[next].begun[i])
					}
				}
			}
		}
		all := r.Image(r.rec.Now(), func(x Record, _ int64) bool { return x.Err == nil })
		if op := rd(0, sectors*Sector); len(begin(r, op)()) != 1 || !bytes.Equal(op.Buf, all) {
			rt.Fatal("with all good writes kept the image is not what the store holds")
		}
	})
}
