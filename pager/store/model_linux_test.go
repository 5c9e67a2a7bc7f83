package store

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// Whatever is done to a writable store, it holds what a byte slice would; and a
// file holds exactly that and no byte more.
func TestStoresAgainstAModel(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		open func(size int) (Store, error)
	}{
		{"memory", func(size int) (Store, error) { return NewMemory(int64(size)), nil }},
		{"direct", func(size int) (Store, error) {
			return OpenFile(filepath.Join(dir, "direct"), FileOptions{Create: true, Size: int64(size)})
		}},
		{"buffered", func(size int) (Store, error) {
			return OpenFile(filepath.Join(dir, "buffered"), FileOptions{Create: true, Size: int64(size), Direct: DirectOff})
		}},
		{"slice", func(size int) (Store, error) { return NewSlice(make([]byte, size)), nil }},
		{"faulty", func(size int) (Store, error) {
			return NewFaulty(NewMemory(int64(size)), FaultyOptions{Reorder: 3}), nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, aio.Threads)
			buf := pages(t, 64<<10)
			rapid.Check(t, func(rt *rapid.T) {
				os.Remove(filepath.Join(dir, c.name))
				size := rapid.IntRange(1, 60<<10).Draw(rt, "size")
				s, err := c.open(size)
				if err != nil {
					rt.Fatal(err)
				}
				defer s.Close()
				storeAgainstModel(rt, r, s, make([]byte, size), buf)
				if _, ok := s.(*File); ok {
					if fi, err := os.Stat(s.String()); err != nil || fi.Size() != s.Size() {
						rt.Fatalf("the file has %d bytes, the store %d", fi.Size(), s.Size())
					}
				}
			})
		})
	}
}

func storeAgainstModel(rt *rapid.T, r *rig, s Store, model, buf []byte) {
	const page = 4096
	span := func() (off, n int) {
		first := rapid.IntRange(0, 15).Draw(rt, "page")
		return first * page, rapid.IntRange(1, 16-first).Draw(rt, "pages") * page
	}
	for range rapid.IntRange(1, 12).Draw(rt, "steps") {
		switch rapid.SampledFrom([]string{"read", "write", "write", "truncate", "discard"}).Draw(rt, "step") {
		case "read":
			off, n := span()
			want := model[min(off, len(model)):min(off+n, len(model))]
			if got := r.read(s, int64(off), buf[:n]); got != len(want) || !bytes.Equal(buf[:got], want) {
				rt.Fatalf("read %d at %d: %d bytes, want %d, or wrong ones", n, off, got, len(want))
			}
		case "write":
			off, n := span()
			stamp(buf[:n], int64(off), rapid.Byte().Draw(rt, "seed"))
			copy(model[min(off, len(model)):], buf[:n])
			r.write(s, int64(off), buf[:n])
		case "truncate":
			size := rapid.IntRange(0, 64<<10).Draw(rt, "to")
			if err := s.Truncate(int64(size)); err != nil {
				rt.Fatal(err)
			}
			model = append(model[:min(size, len(model)):min(size, len(model))], make([]byte, max(0, size-len(model)))...)
		case "discard":
			off, n := rapid.IntRange(0, 64<<10).Draw(rt, "off"), rapid.IntRange(0, 64<<10).Draw(rt, "n")
			if err := s.Discard(int64(off), int64(n)); err != nil {
				rt.Fatal(err)
			}
			clear(model[min(off, len(model)):min(off+n, len(model))])
		}
		if s.Size() != int64(len(model)) {
			rt.Fatalf("Size %d, want %d", s.Size(), len(model))
		}
	}
	if got := r.read(s, 0, buf); got != len(model) || !bytes.Equal(buf[:got], model) {
		rt.Fatalf("at the end: read %d bytes, want %d, or wrong ones", got, len(model))
	}
}
