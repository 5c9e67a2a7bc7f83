package prefetch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"sync"
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
			Region:   rapid.Int64Range(0, maxTracePage).Draw(t, "region"),
			Name:     rapid.String().Draw(t, "name"),
			Complete: true,
		}
		out, err := ReadTrace(iotest.OneByteReader(bytes.NewReader(encode(t, in))))
		if err != nil {
			t.Fatal(err)
		}
		if out.PageSize != in.PageSize || out.Region != in.Region || out.Name != in.Name || !out.Complete || !slices.Equal(out.Pages, in.Pages) {
			t.Fatalf("read %v, wrote %v", out, in)
		}
	})
}

// A trace of many blocks that ends anywhere yields the blocks before, and says that
// it was cut; one that is damaged anywhere is refused. So do both in Replay.
func TestTraceCutAndDamaged(t *testing.T) {
	pages := append(scan(1<<40, 70_000, 3), scan(5, 70_000, 1)...)
	whole := encode(t, &Trace{PageSize: 4096, Pages: pages, Region: 1 << 41, Name: "some/file"})
	if len(whole) < 2*maxTraceBlock {
		t.Fatalf("only %d bytes: one block", len(whole))
	}
	header := len(appendTraceHeader(nil, 4096, 1<<41, "some/file"))
	for at := 0; at < len(whole); at += 1 + at/20 {
		got, err := ReadTrace(bytes.NewReader(whole[:at]))
		policy, replayErr := Replay(bytes.NewReader(whole[:at]), ReplayOptions{})
		switch {
		case at < header:
			if got != nil || policy != nil || !errors.Is(err, ErrTrace) || !errors.Is(replayErr, ErrTrace) {
				t.Errorf("cut at %d: %v, %v; want ErrTrace", at, err, replayErr)
			}
		case got == nil || policy == nil || !errors.Is(err, ErrTraceCut) || !errors.Is(replayErr, ErrTraceCut):
			t.Errorf("cut at %d: %v, %v; want ErrTraceCut and what was read", at, err, replayErr)
		case got.Complete || got.Name != "some/file" || !slices.Equal(got.Pages, pages[:len(got.Pages)]):
			t.Errorf("cut at %d: complete %v, name %q, %d pages", at, got.Complete, got.Name, len(got.Pages))
		case at > header+maxTraceBlock+100 && len(got.Pages) == 0:
			t.Errorf("cut at %d: the first block is lost", at)
		}

		damaged := bytes.Clone(whole)
		damaged[at] ^= 0x10
		got, err = ReadTrace(bytes.NewReader(damaged))
		policy, replayErr = Replay(bytes.NewReader(damaged), ReplayOptions{})
		// A length that became larger may lead beyond the end: cut, as it seems. What was
		// read before is good.
		if errors.Is(err, ErrTraceCut) && at >= header {
			if !slices.Equal(got.Pages, pages[:len(got.Pages)]) {
				t.Errorf("damaged at %d: %d pages, of which some are wrong", at, len(got.Pages))
			}
			continue
		}
		if got != nil || policy != nil || !errors.Is(err, ErrTrace) || !errors.Is(replayErr, ErrTrace) {
			t.Errorf("damaged at %d: %v, %v; want ErrTrace", at, err, replayErr)
		}
	}
}

// A trace of another region is replayed and said to be one, of another file or size, if the
// caller has said what the region is.
func TestReplayOfSomethingElse(t *testing.T) {
	data := encode(t, &Trace{PageSize: 4096, Pages: []int64{9, 3, 1, 2}, Region: 100, Name: "a"})
	for _, c := range []struct {
		what   string
		o      ReplayOptions
		cut    int // bytes
		errs   []error
		policy bool
	}{
		{"who asks for nothing", ReplayOptions{}, 0, nil, true},
		{"the same", ReplayOptions{Name: "a", Region: 100 * 4096, PageSize: 4096}, 0, nil, true},
		{"its last page is not whole", ReplayOptions{Region: 100*4096 - 5}, 0, nil, true},
		{"another file", ReplayOptions{Name: "b"}, 0, []error{ErrTraceOther}, true},
		{"a larger file", ReplayOptions{Name: "a", Region: 100*4096 + 1}, 0, []error{ErrTraceOther}, true},
		{"a smaller file", ReplayOptions{Region: 99 * 4096}, 0, []error{ErrTraceOther}, true},
		{"cut, and another file", ReplayOptions{Name: "b"}, 1, []error{ErrTraceOther, ErrTraceCut}, true},
		{"another page size", ReplayOptions{Name: "a", Region: 100 * 4096, PageSize: 8192}, 0, []error{ErrTrace}, false},
	} {
		policy, err := Replay(bytes.NewReader(data[:len(data)-c.cut]), c.o)
		for _, want := range c.errs {
			if !errors.Is(err, want) {
				t.Errorf("%s: error %v, want %v", c.what, err, want)
			}
		}
		if (err == nil) != (c.errs == nil) || (policy != nil) != c.policy {
			t.Errorf("%s: error %v, a policy: %v", c.what, err, policy != nil)
		}
		if policy != nil {
			s := newScript(policy, 100, 1<<16)
			s.expect(t, c.what, s.misses(9), "1+3")
		}
	}
}

// A trace of the first version, which names nothing, is read as before, whatever the
// region is called.
func TestTraceOfVersion1(t *testing.T) {
	old := binary.LittleEndian.AppendUint32([]byte("uffdtrc\x01"), 4096)
	old = binary.LittleEndian.AppendUint32(old, crc32.Checksum(old, castagnoli))
	rest := encode(t, &Trace{PageSize: 4096, Pages: []int64{9, 3}})[len(appendTraceHeader(nil, 4096, 0, "")):]
	old = append(old, rest...)
	got, err := ReadTrace(bytes.NewReader(old))
	if err != nil || got.PageSize != 4096 || got.Region != 0 || got.Name != "" || !got.Complete || !slices.Equal(got.Pages, []int64{9, 3}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Replay(bytes.NewReader(old), ReplayOptions{Name: "a", Region: 1 << 20, PageSize: 4096}); err != nil {
		t.Error(err)
	}
}

func TestTraceRefuses(t *testing.T) {
	header := func(version string, size uint32) []byte {
		b := binary.LittleEndian.AppendUint32([]byte(traceMagic+version), size)
		return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	}
	for what, data := range map[string][]byte{
		"nothing":          nil,
		"another file":     bytes.Repeat([]byte("all work and no play"), 100),
		"another version":  header("\x03", 4096),
		"no page size":     header("\x01", 0),
		"an odd page size": header("\x01", 5000),
		"a bad region":     appendTraceHeader(nil, 4096, -1, ""),
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
	if _, err := ReadTrace(io.MultiReader(bytes.NewReader(good[:len(good)-14]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
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
		data := slices.Concat(appendTraceHeader(nil, 4096, 0, ""), good, bad, good, block(0))
		if got, err := ReadTrace(bytes.NewReader(data)); got != nil || !errors.Is(err, ErrTrace) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

func FuzzReadTrace(f *testing.F) {
	f.Add(encode(f, &Trace{PageSize: 4096, Pages: []int64{5, 6, 7, 1 << 40, 0}}))
	f.Add(encode(f, &Trace{PageSize: 2 << 20}))
	f.Add([]byte(traceMagic))
	f.Add(encode(f, &Trace{PageSize: 4096, Pages: []int64{1, 2}, Region: 3, Name: "a"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		tr, err := ReadTrace(bytes.NewReader(data))
		switch {
		case errors.Is(err, ErrTrace) && tr == nil:
			return
		case tr == nil || tr.Complete != (err == nil) || err != nil && !errors.Is(err, ErrTraceCut):
			t.Fatal(err)
		}
		if len(tr.Pages) > len(data) {
			t.Fatalf("%d pages from %d bytes", len(tr.Pages), len(data))
		}
		again, err := ReadTrace(bytes.NewReader(encode(t, tr)))
		if err != nil || !slices.Equal(again.Pages, tr.Pages) || !again.Complete {
			t.Fatalf("not the same when written again: %v", err)
		}
		p, err := Replay(bytes.NewReader(data), ReplayOptions{})
		if p == nil {
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
	r := RecordOf(&buf, "a/file")
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
	if got.Region != 1<<40 || got.Name != "a/file" {
		t.Errorf("of %d pages of %q", got.Region, got.Name)
	}
	if r.Lost() != 0 || !got.Complete || got.PageSize != 16384 || !slices.Equal(got.Pages, want) || r.Pages() != int64(len(want)) {
		t.Errorf("%d lost, complete %v, page size %d, %d pages, %d counted; want %d", r.Lost(), got.Complete, got.PageSize, len(got.Pages), r.Pages(), len(want))
	}
}

// lockedBuffer is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}

// What a recorder that is killed leaves behind has all but what was touched last.
func TestRecordThatIsKilled(t *testing.T) {
	var buf lockedBuffer
	r := newRecorder(&buf, "", time.Millisecond)
	defer r.Close()
	plan := Plan{Pages: 1 << 20}
	var want []int64
	for _, p := range []int64{7, 3, 9} { // far fewer than fill a block
		want = append(want, p)
		r.Observe(Event{Kind: Miss, Page: p}, &plan)
		var got *Trace
		var err error
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if got, err = ReadTrace(bytes.NewReader(buf.bytes())); got != nil && slices.Equal(got.Pages, want) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("page %d is not written: %+v, %v", p, got, err)
			}
		}
		if !errors.Is(err, ErrTraceCut) || got.Complete {
			t.Errorf("without its end: %v", err)
		}
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
