package prefetch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"
)

func encode(t interface{ Fatal(...any) }, tr *Trace) []byte {
	var buf bytes.Buffer
	if n, err := tr.WriteTo(&buf); err != nil || n != int64(buf.Len()) {
		t.Fatal("WriteTo:", n, buf.Len(), err)
	}
	return buf.Bytes()
}

func TestTraceRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := &Trace{
			PageSize: 1 << rapid.IntRange(9, 21).Draw(t, "bits"),
			Pages:    rapid.SliceOf(rapid.Int64Range(0, maxTracePage)).Draw(t, "pages"),
			Complete: true,
		}
		out, err := ReadTrace(iotest.OneByteReader(bytes.NewReader(encode(t, in))))
		if err != nil {
			t.Fatal(err)
		}
		if out.PageSize != in.PageSize || !out.Complete || !slices.Equal(out.Pages, in.Pages) {
			t.Fatalf("read %v, wrote %v", out, in)
		}
	})
}

// A trace of many blocks that ends anywhere, or is damaged anywhere, yields
// the blocks before and no page that was not written.
func TestTraceCutAndDamaged(t *testing.T) {
	pages := append(scan(1<<40, 70_000, 3), scan(5, 70_000, 1)...)
	whole := encode(t, &Trace{PageSize: 4096, Pages: pages})
	if len(whole) < 2*maxTraceBlock {
		t.Fatalf("only %d bytes: one block", len(whole))
	}
	check := func(what string, data []byte, at int) {
		got, err := ReadTrace(bytes.NewReader(data))
		if at < traceHeader {
			if !errors.Is(err, ErrTrace) {
				t.Errorf("%s at %d: error %v, want ErrTrace", what, at, err)
			}
			return
		}
		if err != nil {
			t.Errorf("%s at %d: %v", what, at, err)
			return
		}
		if got.Complete || !slices.Equal(got.Pages, pages[:len(got.Pages)]) {
			t.Errorf("%s at %d: complete %v, %d pages", what, at, got.Complete, len(got.Pages))
		}
		if at > maxTraceBlock+100 && len(got.Pages) == 0 {
			t.Errorf("%s at %d: the first block is lost", what, at)
		}
	}
	for at := 0; at < len(whole); at += 1 + at/20 {
		check("cut", whole[:at], at)
		damaged := bytes.Clone(whole)
		damaged[at] ^= 0x10
		check("damaged", damaged, at)
	}
}

func TestTraceRefuses(t *testing.T) {
	header := func(magic string, size uint32) []byte {
		b := binary.LittleEndian.AppendUint32([]byte(magic), size)
		return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	}
	for what, data := range map[string][]byte{
		"nothing":          nil,
		"another file":     bytes.Repeat([]byte("all work and no play"), 100),
		"another version":  header("uffdtrc\x02", 4096),
		"no page size":     header(traceMagic, 0),
		"an odd page size": header(traceMagic, 5000),
	} {
		if _, err := ReadTrace(bytes.NewReader(data)); !errors.Is(err, ErrTrace) {
			t.Errorf("%s: error %v, want ErrTrace", what, err)
		}
		if _, err := Replay(bytes.NewReader(data), ReplayOptions{}); !errors.Is(err, ErrTrace) {
			t.Errorf("Replay of %s: error %v, want ErrTrace", what, err)
		}
	}
	good := encode(t, &Trace{PageSize: 4096, Pages: []int64{1, 2, 3}})
	if _, err := Replay(bytes.NewReader(good), ReplayOptions{PageSize: 16384}); !errors.Is(err, ErrTrace) {
		t.Errorf("Replay with another page size: error %v, want ErrTrace", err)
	}
	broken := errors.New("broken")
	if _, err := ReadTrace(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("a reader's error: %v", err)
	}
	if _, err := ReadTrace(io.MultiReader(bytes.NewReader(good[:30]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("a reader's error in a block: %v", err)
	}
}

// Blocks with a good checksum and bad contents are not believed either.
func TestTraceBadBlocks(t *testing.T) {
	block := func(count uint32, payload ...byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(len(payload)))
		b = binary.LittleEndian.AppendUint32(b, count)
		b = append(b, payload...)
		return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	}
	good := block(2, 2, 2) // pages 1 and 2
	for what, bad := range map[string][]byte{
		"too many pages":     block(3, 2, 2),
		"too few pages":      block(1, 2, 2),
		"a negative page":    block(1, 1),
		"half a number":      block(1, 0x80),
		"a number too long":  block(1, bytes.Repeat([]byte{0xff}, 11)...),
		"beyond all numbers": block(2, append(binary.AppendVarint(nil, maxTracePage), 2)...),
		"too long a block":   block(1, make([]byte, maxTraceBlock+1)...),
	} {
		data := slices.Concat(appendTraceHeader(nil, 4096), good, bad, good, block(0))
		got, err := ReadTrace(bytes.NewReader(data))
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if got.Complete || !slices.Equal(got.Pages, []int64{1, 2}) {
			t.Errorf("%s: complete %v, pages %v", what, got.Complete, got.Pages)
		}
	}
}

func FuzzReadTrace(f *testing.F) {
	f.Add(encode(f, &Trace{PageSize: 4096, Pages: []int64{5, 6, 7, 1 << 40, 0}}))
	f.Add(encode(f, &Trace{PageSize: 2 << 20}))
	f.Add([]byte(traceMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		tr, err := ReadTrace(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, ErrTrace) {
				t.Fatal(err)
			}
			return
		}
		if len(tr.Pages) > len(data) {
			t.Fatalf("%d pages from %d bytes", len(tr.Pages), len(data))
		}
		again, err := ReadTrace(bytes.NewReader(encode(t, tr)))
		if err != nil || !slices.Equal(again.Pages, tr.Pages) || !again.Complete {
			t.Fatalf("not the same when written again: %v", err)
		}
		p, err := Replay(bytes.NewReader(data), ReplayOptions{})
		if err != nil {
			t.Fatal(err)
		}
		plan := Plan{Pages: 1 << 30, PageSize: tr.PageSize, Budget: 4096, Room: 512}
		for i, page := range tr.Pages {
			if i > 1000 {
				break
			}
			plan.Reset()
			p.Observe(Event{Kind: Miss, Page: page}, &plan)
			n := int64(0)
			for _, r := range plan.Runs {
				n += r.N
			}
			if n > plan.Room {
				t.Fatalf("planned %d pages with room for %d", n, plan.Room)
			}
		}
	})
}

func TestRecord(t *testing.T) {
	var buf bytes.Buffer
	r := Record(&buf)
	plan := Plan{Pages: 1 << 40, PageSize: 16384}
	want := append(random(1, 200_000, 1<<40), scan(77, 1000, 1)...)
	for _, p := range want {
		r.Observe(Event{Kind: Miss, Page: p}, &plan)
		r.Observe(Event{Kind: Touch, Page: p}, &plan)           // not the first
		r.Observe(Event{Kind: Hint, Page: p + 1<<41}, &plan)    // not a touch
		r.Observe(Event{Kind: Arrived, Page: p + 1<<41}, &plan) // not a touch
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.Observe(Event{Kind: Miss, Page: 3}, &plan)
	got, err := ReadTrace(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Runs)+len(plan.Marks)+len(plan.Drop) != 0 {
		t.Error("a recorder planned something")
	}
	if r.Lost() != 0 || !got.Complete || got.PageSize != 16384 || !slices.Equal(got.Pages, want) || r.Pages() != int64(len(want)) {
		t.Errorf("%d lost, complete %v, page size %d, %d pages, %d counted; want %d", r.Lost(), got.Complete, got.PageSize, len(got.Pages), r.Pages(), len(want))
	}
}

func TestRecordNothing(t *testing.T) {
	var buf bytes.Buffer
	if err := Record(&buf).Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadTrace(&buf); err != nil || !got.Complete || len(got.Pages) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

// stuckWriter blocks until it is released.
type stuckWriter struct {
	bytes.Buffer
	release chan struct{}
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	<-w.release
	return w.Buffer.Write(p)
}

// A writer that hangs costs pages of the trace, never a wait in Observe.
func TestRecordNeverWaits(t *testing.T) {
	w := &stuckWriter{release: make(chan struct{})}
	r := Record(w)
	done := make(chan struct{})
	go func() {
		defer close(done)
		plan := Plan{Pages: 1 << 40}
		for p := int64(0); r.Lost() == 0; p++ { // far apart: 6 bytes each
			r.Observe(Event{Kind: Miss, Page: p}, &plan)
			r.Observe(Event{Kind: Miss, Page: p + 1<<39}, &plan)
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("Observe waits for the writer")
	}
	close(w.release)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := ReadTrace(&w.Buffer)
	if err != nil || !got.Complete || int64(len(got.Pages)) != r.Pages() {
		t.Errorf("%d pages, want %d; %v", len(got.Pages), r.Pages(), err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestRecordReportsErrors(t *testing.T) {
	r := Record(failingWriter{})
	r.Observe(Event{Kind: Miss, Page: 1}, &Plan{})
	for range 2 {
		if err := r.Close(); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("Close: %v", err)
		}
	}
}
