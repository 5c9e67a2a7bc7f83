package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// often is how often a test repeats itself: more with UFFDPAGER_TORTURE=1.
func often(usual, torture uint64) uint64 {
	if os.Getenv("UFFDPAGER_TORTURE") == "1" {
		return torture
	}
	return usual
}

// hand does I/O on a store and waits for it.
func hand(t testing.TB) *scribe {
	t.Helper()
	s := new(scribe)
	if err := s.open(); err != nil {
		t.Skipf("no engine here: %v", err)
	}
	t.Cleanup(func() { _ = s.close() })
	return s
}

func (s *scribe) put(st Store, off int64, content []byte) error {
	copy(s.buf, content)
	return s.write(st, s.buf[:len(content)], off)
}

func (s *scribe) get(st Store, off, n int64) ([]byte, error) {
	got, err := s.readSome(st, s.buf[:n], off)
	return slices.Clone(s.buf[:got]), err
}

// noise is a block that no other seed gives.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 77))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func checksummed(t testing.TB, data, sums Store, create bool) *Checksummed {
	t.Helper()
	c, err := NewChecksummed(data, sums, ChecksumOptions{Create: create})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// bits is a store whose memory the test may spoil.
func bits(b []byte) (Store, []byte) {
	s := NewMemoryOf(b)
	return s, s.(*memory).mem[:max(len(b), 1)]
}

// Every single bit of a block counts, and of the sums; a block that is written
// again is good again.
func TestChecksummedFindsWhatIsWrong(t *testing.T) {
	h := hand(t)
	content := noise(1, 10*SumBlock+100)
	data, mem := bits(content)
	sums, sumMem := bits(make([]byte, SumsSize(int64(len(content)))))
	c := checksummed(t, data, sums, true)
	defer c.Close()
	for _, off := range []int64{0, 3 * SumBlock, 10 * SumBlock} {
		got, err := h.get(c, off, SumBlock)
		if want := content[off:min(off+SumBlock, int64(len(content)))]; err != nil || !bytes.Equal(got, want) {
			t.Fatalf("block at %d: %d bytes, %v", off, len(got), err)
		}
	}
	for _, at := range []int64{0, 1, SumBlock - 1, 4*SumBlock + 77, 10*SumBlock + 99} {
		mem[at] ^= 1 << (at % 8)
		_, err := h.get(c, at&^(SumBlock-1), SumBlock)
		if !errors.Is(err, ErrChecksum) || !errors.Is(err, syscall.EBADMSG) || errors.Is(err, ErrTorn) {
			t.Errorf("with a bit of byte %d changed: %v", at, err)
		}
		if _, err := h.get(c, 6*SumBlock, SumBlock); err != nil {
			t.Errorf("another block: %v", err)
		}
		mem[at] ^= 1 << (at % 8)
	}
	mem[5000] ^= 4
	if err := h.put(c, SumBlock, noise(2, SumBlock)); err != nil {
		t.Fatal(err)
	}
	if got, err := h.get(c, SumBlock, SumBlock); err != nil || !bytes.Equal(got, noise(2, SumBlock)) {
		t.Errorf("a block that was wrong and has been written: %v", err)
	}
	if _, err := h.get(c, 100, 512); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("part of a block: %v", err)
	}
	// Damaged sums are no licence: all blocks they are for are in doubt.
	data2, _ := bits(slices.Clone(mem))
	sumMem2 := slices.Clone(sumMem)
	sumMem2[sumPage+3*8] ^= 1
	sums2, _ := bits(sumMem2)
	d := checksummed(t, data2, sums2, false)
	defer d.Close()
	if _, err := h.get(d, 7*SumBlock, SumBlock); !errors.Is(err, ErrChecksum) {
		t.Errorf("a block whose sums are damaged: %v", err)
	}
	if len(d.Wrong()) != 11 {
		t.Errorf("Wrong: %v", d.Wrong())
	}
	if _, err := NewChecksummed(NewMemory(SumBlock), NewMemory(2*sumPage), ChecksumOptions{}); !errors.Is(err, ErrNoSums) {
		t.Errorf("sums that are none: %v", err)
	}
}

// A file that is no file of sums, the data itself by mistake, is neither written nor
// made longer; and there must be two stores.
func TestChecksummedLeavesOtherFiles(t *testing.T) {
	for _, create := range []bool{false, true} {
		for _, n := range []int{0, 1, 100, sumPage, 2*sumPage + 77} {
			content := noise(uint64(n), n)
			sums := NewSlice(slices.Clone(content))
			c, err := NewChecksummed(NewMemory(3*SumBlock), sums, ChecksumOptions{Create: create})
			if create && n == 0 {
				if err != nil {
					t.Errorf("Create in an empty store: %v", err)
					continue
				}
				c.Close()
				continue
			}
			if err == nil || create == errors.Is(err, ErrNoSums) {
				t.Errorf("create %v, %d bytes of something else: %v", create, n, err)
			}
			if !bytes.Equal(sums.Bytes(), content) {
				t.Errorf("create %v, %d bytes of something else: changed", create, n)
			}
		}
	}
	m := NewMemory(3 * SumBlock)
	for _, two := range [][2]Store{{nil, nil}, {m, nil}, {nil, NewMemory(1)}, {m, m}} {
		if _, err := NewChecksummed(two[0], two[1], ChecksumOptions{Create: true}); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%v: %v", two, err)
		}
	}
	if _, err := NewRecording(nil, nil); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a record of nothing: %v", err)
	}
	if f := NewFaulty(nil, FaultyOptions{}); f.Size() != 0 || f.Truncate(1) == nil || f.Close() != nil {
		t.Errorf("%v can be used", f)
	}
}

// Random histories against a model, with reopening.
func TestChecksummedAgainstAModel(t *testing.T) {
	h := hand(t)
	for seed := range often(15, 300) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		model := noise(seed, rnd.IntN(40*SumBlock)+1)
		data, _ := bits(model)
		sums, _ := bits(make([]byte, 10))
		keepData, keepSums := &unclosed{data}, &unclosed{sums}
		c := checksummed(t, keepData, keepSums, true)
		for i := range 60 {
			n := int64(len(model))
			at := rnd.Int64N(blocks(n)+1) * SumBlock
			var err error
			what := ""
			switch k := rnd.IntN(10); {
			case k < 4 && at < n:
				b := make([]byte, (rnd.Int64N(4)+1)*SumBlock)
				copy(b, noise(rnd.Uint64(), int(min(int64(len(b)), n-at))))
				copy(model[at:], b)
				what, err = "write", h.put(c, at, b)
			case k < 6:
				what, err = "flush", h.flush(c)
			case k < 7:
				off, ln := rnd.Int64N(n+1), rnd.Int64N(n+1)
				clear(model[off:min(n, off+ln)])
				what, err = "discard", c.Discard(off, ln)
			case k < 8:
				size := rnd.Int64N(60*SumBlock) + 1
				model = append(model[:min(n, size):min(n, size)], make([]byte, max(0, size-n))...)
				what, err = "truncate", c.Truncate(size)
			case k < 9:
				if what, err = "close", c.Close(); err == nil {
					c = checksummed(t, keepData, keepSums, false)
				}
			}
			if err != nil {
				t.Fatalf("seed %d, step %d: %s: %v", seed, i, what, err)
			}
			for off := int64(0); off < int64(len(model)); off += 8 * SumBlock {
				got, err := h.get(c, off, 8*SumBlock)
				if want := model[off:min(off+8*SumBlock, int64(len(model)))]; err != nil || !bytes.Equal(got, want) {
					t.Fatalf("seed %d, step %d: after %s: at %d of %d: %d bytes, %v", seed, i, what, off, len(model), len(got), err)
				}
			}
		}
		if len(c.Wrong()) != 0 {
			t.Errorf("seed %d: Wrong: %v", seed, c.Wrong())
		}
		_ = c.Close()
		_ = data.Close()
		_ = sums.Close()
	}
}

// unclosed is a store that outlives who closes it.
type unclosed struct{ Store }

func (*unclosed) Close() error { return nil }

// deafStore forgets flushes.
type deafStore struct{ Store }

func (d deafStore) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		if op.Code == aio.Flush {
			finish(op, 0, nil)
			continue
		}
		d.Store.Start(e, []*aio.Op{op})
	}
}

// powerLoss writes at random, and looks at what a loss of power leaves at any
// moment: a block that is whole is read, whichever of its contents it is; one
// that is torn is said to be torn; and one with a bit changed is never read. It
// returns what is wrong with that.
func powerLoss(t *testing.T, h *scribe, seed uint64, images int, deafSums bool) (problems []string, torn int) {
	const size = 24*SumBlock + 1000
	rnd := rand.New(rand.NewPCG(seed, 9))
	var rec Recorder
	wrap := func(s Store) *Recording {
		r, err := NewRecording(s, &rec)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := noise(seed, size)
	data := wrap(NewMemoryOf(first))
	sumsBase := NewMemory(SumsSize(size))
	checksummed(t, NewMemoryOf(first), &unclosed{sumsBase}, true).Close()
	sums := wrap(sumsBase)
	var under Store = sums
	if deafSums {
		under = deafStore{sums}
	}
	c := checksummed(t, data, under, false)
	defer c.Close()
	history := map[int64][][]byte{} // all that a block has been
	for b := range blocks(size) {
		history[b] = [][]byte{first[b*SumBlock : min(size, (b+1)*SumBlock)], make([]byte, min(SumBlock, size-b*SumBlock))}
	}
	for range 40 {
		switch k := rnd.IntN(10); {
		case k < 7:
			at := rnd.Int64N(blocks(size))
			b := noise(rnd.Uint64(), int(rnd.Int64N(min(3, blocks(size)-at))+1)*SumBlock)
			if over := at*SumBlock + int64(len(b)) - size; over > 0 {
				clear(b[int64(len(b))-over:])
			}
			for i := int64(0); i*SumBlock < int64(len(b)); i++ {
				history[at+i] = append(history[at+i], b[i*SumBlock:min(int64(len(b)), (i+1)*SumBlock, size-at*SumBlock)])
			}
			if err := h.put(c, at*SumBlock, b); err != nil {
				t.Fatal(err)
			}
		case k < 9:
			if err := h.flush(c); err != nil {
				t.Fatal(err)
			}
		default:
			at := rnd.Int64N(blocks(size))
			if err := c.Discard(at*SumBlock, SumBlock); err != nil {
				t.Fatal(err)
			}
		}
	}
	now := rec.Now()
	for i := range images {
		tick := now * i / images
		survives := AtRandom(seed<<20 + uint64(i))
		switch i % 8 {
		case 0:
			survives = nil
		case 1:
			survives = Everything
		}
		img, sumImg := data.Image(tick, survives), sums.Image(tick, survives)
		bad := rnd.Int64N(int64(len(img)))
		img[bad] ^= 0x10
		sound := slices.Clone(img)
		sound[bad] ^= 0x10
		for _, spoilt := range []bool{false, true} {
			x := sound
			if spoilt {
				x = img
			}
			d, _ := bits(x)
			s, _ := bits(slices.Clone(sumImg))
			again := checksummed(t, d, s, false)
			for b := range blocks(size) {
				is := x[b*SumBlock : min(size, (b+1)*SumBlock)]
				got, err := h.get(again, b*SumBlock, SumBlock)
				whole := slices.ContainsFunc(history[b], func(v []byte) bool { return bytes.Equal(v, is) })
				switch {
				case whole && err != nil:
					problems = append(problems, fmt.Sprintf("image %d at tick %d: block %d is whole: %v", i, tick, b, err))
				case whole && !bytes.Equal(got, is):
					problems = append(problems, fmt.Sprintf("image %d: block %d is read wrong", i, b))
				case !whole && err == nil:
					problems = append(problems, fmt.Sprintf("image %d at tick %d: block %d is not whole (spoilt %v) and is read", i, tick, b, spoilt && b == bad/SumBlock))
				case !whole && !spoilt && !errors.Is(err, ErrTorn):
					problems = append(problems, fmt.Sprintf("image %d at tick %d: block %d is torn: %v", i, tick, b, err))
				case !whole && !spoilt:
					torn++
				case !whole && !errors.Is(err, ErrChecksum):
					problems = append(problems, fmt.Sprintf("image %d: block %d: %v", i, b, err))
				}
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return problems, torn
}

// A crash is never taken for corruption, nor corruption for a crash.
func TestChecksummedAfterPowerLoss(t *testing.T) {
	h := hand(t)
	torn := 0
	for seed := range often(5, 200) {
		problems, n := powerLoss(t, h, seed, 60, false)
		torn += n
		if len(problems) > 0 {
			t.Fatalf("seed %d: %d problems, the first: %s", seed, len(problems), problems[0])
		}
	}
	if torn == 0 {
		t.Error("no image had a torn block")
	}
	t.Logf("%d images, each once more with a bit changed; %d torn blocks", 60*often(5, 200), torn)
}

// Without the flush between sums and data the images tell.
func TestChecksummedWithoutItsOrderIsCaught(t *testing.T) {
	h := hand(t)
	for seed := range uint64(10) {
		if problems, _ := powerLoss(t, h, seed, 60, true); len(problems) > 0 {
			t.Logf("seed %d: %s", seed, problems[0])
			return
		}
	}
	t.Error("sums that are not flushed before the data: nobody noticed")
}

// Truncate and Discard go through a block that is wrong: what is left of it
// stays wrong, also when the store is opened anew, until it is written whole;
// and the next block is not concerned.
func TestChecksummedCutsThroughWhatIsWrong(t *testing.T) {
	h := hand(t)
	for name, cut := range map[string]func(c *Checksummed) error{
		"truncate": func(c *Checksummed) error {
			return errors.Join(c.Truncate(SumBlock+1000), c.Truncate(4*SumBlock))
		},
		"discard": func(c *Checksummed) error { return c.Discard(SumBlock+1000, 3*SumBlock) },
	} {
		data, mem := bits(noise(1, 4*SumBlock))
		sums, _ := bits(make([]byte, SumsSize(4*SumBlock)))
		c := checksummed(t, &unclosed{data}, &unclosed{sums}, true)
		mem[SumBlock+5] ^= 1
		if err := cut(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for range 2 {
			if _, err := h.get(c, SumBlock, SumBlock); !errors.Is(err, ErrChecksum) {
				t.Errorf("%s: what is left of a block that was wrong: %v", name, err)
			}
			got, err := h.get(c, 0, SumBlock)
			if err != nil || !bytes.Equal(got, noise(1, SumBlock)) {
				t.Errorf("%s: the block before: %v", name, err)
			}
			got, err = h.get(c, 2*SumBlock, SumBlock)
			if err != nil || !bytes.Equal(got, make([]byte, SumBlock)) {
				t.Errorf("%s: the block behind: %v", name, err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			c = checksummed(t, &unclosed{data}, &unclosed{sums}, false)
		}
		if err := h.put(c, SumBlock, noise(2, SumBlock)); err != nil {
			t.Fatal(err)
		}
		if got, err := h.get(c, SumBlock, SumBlock); err != nil || !bytes.Equal(got, noise(2, SumBlock)) {
			t.Errorf("%s: once it is written whole: %v", name, err)
		}
		if err := errors.Join(c.Close(), data.Close(), sums.Close()); err != nil {
			t.Error(err)
		}
	}
}

// A failed flush of either store is for ever; a failed write is not.
func TestChecksummedErrors(t *testing.T) {
	h := hand(t)
	for _, inSums := range []bool{false, true} {
		for _, op := range []Ops{OnWrite, OnFlush} {
			var data, sums Store = NewMemory(64 * SumBlock), NewMemory(SumsSize(64 * SumBlock))
			fd, fs := NewFaulty(data, FaultyOptions{}), NewFaulty(sums, FaultyOptions{})
			c := checksummed(t, fd, fs, true)
			b := noise(3, SumBlock)
			if err := errors.Join(h.put(c, 0, b), h.flush(c)); err != nil {
				t.Fatal(err)
			}
			f := fd
			if inSums {
				f = fs
			}
			f.Inject(Fault{Ops: op, Count: 1, Err: syscall.EIO})
			err := errors.Join(h.put(c, 0, noise(4, SumBlock)), h.flush(c))
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("sums %v, %v: %v", inSums, op, err)
			}
			f.Clear()
			err = errors.Join(h.put(c, 0, noise(5, SumBlock)), h.flush(c))
			if (err == nil) != (op == OnWrite) {
				t.Errorf("sums %v, %v: afterwards: %v", inSums, op, err)
			}
			if op == OnWrite {
				if got, err := h.get(c, 0, SumBlock); err != nil || !bytes.Equal(got, noise(5, SumBlock)) {
					t.Errorf("sums %v: %v", inSums, err)
				}
			}
			_ = c.Close()
		}
	}
}
