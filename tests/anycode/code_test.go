package anycode

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"io"
	"reflect"
	"sort"
	"strings"
	"sync/atomic"
	"unsafe"
)

// A code is one kind of code: run looks at mem, whose pages may come and go,
// and compares with want, which is ordinary memory. Both are a page and a bit
// long, so that most calls need two pages.
type code struct {
	name string
	run  func(mem, want []byte) error
}

var errDiffers = errors.New("the result differs from the one over ordinary memory")

func same[T comparable](got, want T) error {
	if got != want {
		return fmt.Errorf("%w: %v, want %v", errDiffers, got, want)
	}
	return nil
}

var sink atomic.Pointer[[]byte]

var codes = []code{
	{"load", func(mem, want []byte) error {
		for i := 0; i < len(mem); i += 509 {
			if err := same(mem[i], want[i]); err != nil {
				return err
			}
		}
		return nil
	}},
	{"copy", func(mem, want []byte) error {
		b := make([]byte, len(mem))
		copy(b, mem)
		return same(string(b), string(want))
	}},
	{"copy one word", func(mem, want []byte) error {
		var got, w [9]byte
		copy(got[:], mem[len(mem)/2:])
		copy(w[:], want[len(want)/2:])
		return same(got, w)
	}},
	{"bytes.Equal", func(mem, want []byte) error {
		return same(bytes.Equal(mem, want), true)
	}},
	{"bytes.Compare", func(mem, want []byte) error {
		return same(bytes.Compare(mem, want), 0)
	}},
	{"bytes.IndexByte", func(mem, want []byte) error {
		// No byte of the pattern can be counted on to be missing: count all.
		return same(bytes.Count(mem, []byte{7}), bytes.Count(want, []byte{7}))
	}},
	{"bytes.Index", func(mem, want []byte) error {
		tail := want[len(want)-40:]
		return same(bytes.Index(mem, tail), bytes.Index(want, tail))
	}},
	{"append", func(mem, want []byte) error {
		b := append([]byte(nil), mem...)
		b = append(b, mem[:len(mem)/2]...)
		return same(string(b), string(want)+string(want[:len(want)/2]))
	}},
	{"string", func(mem, want []byte) error {
		return same(string(mem), string(want))
	}},
	{"string compare", func(mem, want []byte) error {
		return same(unsafe.String(&mem[0], len(mem)) < string(want), false)
	}},
	{"map lookup", func(mem, want []byte) error {
		m := map[string]int{string(want): 1, string(want[1:]): 2}
		if err := same(m[string(mem)], 1); err != nil {
			return err
		}
		return same(m[string(mem[1:])], 2)
	}},
	{"map insert", func(mem, want []byte) error {
		m := map[[16]byte]int{}
		for i := 0; i+16 <= len(mem); i += 16 {
			m[[16]byte(mem[i:i+16])]++
		}
		for i := 0; i+16 <= len(want); i += 16 {
			m[[16]byte(want[i:i+16])]--
		}
		for k, n := range m {
			if n != 0 {
				return fmt.Errorf("%w: key %x", errDiffers, k)
			}
		}
		return nil
	}},
	{"maphash", func(mem, want []byte) error {
		seed := maphash.MakeSeed()
		return same(maphash.Bytes(seed, mem), maphash.Bytes(seed, want))
	}},
	{"sha256", func(mem, want []byte) error {
		return same(sha256.Sum256(mem), sha256.Sum256(want))
	}},
	{"crc32", func(mem, want []byte) error {
		if err := same(crc32.ChecksumIEEE(mem), crc32.ChecksumIEEE(want)); err != nil {
			return err
		}
		castagnoli := crc32.MakeTable(crc32.Castagnoli)
		return same(crc32.Checksum(mem, castagnoli), crc32.Checksum(want, castagnoli))
	}},
	{"atomic", func(mem, want []byte) error {
		for i := 0; i+16 <= len(mem); i += 1000 {
			p := unsafe.Pointer(&mem[i])
			skip := -uintptr(p) % 8
			at := i + int(skip)
			got := atomic.LoadUint64((*uint64)(unsafe.Add(p, skip)))
			if err := same(got, binary.NativeEndian.Uint64(want[at:])); err != nil {
				return err
			}
		}
		return nil
	}},
	{"reflect", func(mem, want []byte) error {
		if !reflect.DeepEqual(mem, want) {
			return errDiffers
		}
		v := reflect.ValueOf(mem)
		b := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(b, v)
		if err := same(string(b.Bytes()), string(want)); err != nil {
			return err
		}
		return same(v.Index(v.Len()-1).Uint(), uint64(want[len(want)-1]))
	}},
	{"interface", func(mem, want []byte) error {
		// Boxing copies 64 bytes; comparing boxes runs the runtime's equality.
		var got, w any = [64]byte(mem[100:164]), [64]byte(want[100:164])
		p := (*[64]byte)(unsafe.Pointer(&mem[200]))
		return errors.Join(same(got, w), same(any(*p), any([64]byte(want[200:264]))))
	}},
	{"fmt", func(mem, want []byte) error {
		if err := same(fmt.Sprintf("%x", mem), fmt.Sprintf("%x", want)); err != nil {
			return err
		}
		return same(fmt.Sprint(mem[:99]), fmt.Sprint(want[:99]))
	}},
	{"range and switch", func(mem, want []byte) error {
		var got, w [3]int
		count := func(b []byte, n *[3]int) {
			for _, c := range b {
				switch {
				case c < 10:
					n[0]++
				case c > 240:
					n[1]++
				default:
					n[2]++
				}
			}
		}
		count(mem, &got)
		count(want, &w)
		return same(got, w)
	}},
	{"struct copy", func(mem, want []byte) error {
		type big struct{ b [512]byte } // duffcopy or rep movs
		got := *(*big)(unsafe.Pointer(&mem[len(mem)-512]))
		w := *(*big)(unsafe.Pointer(&want[len(want)-512]))
		return same(got, w)
	}},
	{"strings", func(mem, want []byte) error {
		s := unsafe.String(&mem[0], len(mem))
		w := string(want)
		if !strings.EqualFold(s, w) || strings.LastIndexByte(s, w[3]) != strings.LastIndexByte(w, w[3]) {
			return errDiffers
		}
		return same(strings.ToUpper(s), strings.ToUpper(w))
	}},
	{"sort search", func(mem, want []byte) error {
		less := func(b []byte) func(int) bool { return func(i int) bool { return b[i]|1 >= 200 } }
		return same(sort.Search(len(mem), less(mem)), sort.Search(len(want), less(want)))
	}},
	{"io", func(mem, want []byte) error {
		// A pipe between goroutines: the copy is done by the reader.
		r, w := io.Pipe()
		go func() {
			_, err := w.Write(mem)
			w.CloseWithError(err)
		}()
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		return same(string(b), string(want))
	}},
	{"escape", func(mem, want []byte) error {
		b := bytes.Clone(mem[:2000])
		sink.Store(&b) // others store theirs
		return same(string(b), string(want[:2000]))
	}},
	{"channel", func(mem, want []byte) error {
		c := make(chan [128]byte, 1)
		c <- *(*[128]byte)(unsafe.Pointer(&mem[len(mem)-128])) // typedmemmove into the buffer
		return same(<-c, [128]byte(want[len(want)-128:]))
	}},
	{"defer and panic", func(mem, want []byte) (err error) {
		defer func() {
			got, _ := recover().(string)
			err = same(got, string(want[:64]))
		}()
		panic(string(mem[:64]))
	}},
}
