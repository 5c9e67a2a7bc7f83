package thirdparty

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/blevesearch/vellum"
)

// keys is the number of keys of the transducer.
const keys = 700_000

// TestVellumFST looks keys up in a finite state transducer and walks along
// ranges of it: chains of bytes that lie all over the region.
func TestVellumFST(t *testing.T) {
	sameAnswers(t, 2, buildFST, openFST)
}

// scatter is a number that nothing but seed and i decides (the finalizer of
// splitmix64).
func scatter(seed, i uint64) uint64 {
	z := seed + (i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// key is key i of the transducer: keys ascend with i, and have tails that no
// other shares.
func key(seed, i uint64) []byte {
	const stride = 1 << 40
	b := make([]byte, 16)
	binary.BigEndian.PutUint64(b, i*stride+scatter(seed, i)%stride)
	binary.BigEndian.PutUint64(b[8:], scatter(^seed, i))
	return b
}

func value(seed, i uint64) uint64 { return scatter(seed+1, i) >> 24 }

func buildFST(seed uint64, f *os.File) error {
	w := bufio.NewWriterSize(f, 1<<20)
	b, err := vellum.New(w, nil)
	if err != nil {
		return err
	}
	for i := range uint64(keys) {
		if err := b.Insert(key(seed, i), value(seed, i)); err != nil {
			return err
		}
	}
	if err := b.Close(); err != nil {
		return err
	}
	return w.Flush()
}

func openFST(seed uint64, mem []byte) (question, error) {
	fst, err := vellum.Load(mem)
	if err != nil {
		return nil, err
	}
	if fst.Len() != keys {
		return nil, fmt.Errorf("%d keys instead of %d", fst.Len(), keys)
	}
	return func(rng *rand.Rand) (answer []uint64, err error) {
		for range 2 {
			i := rng.Uint64N(keys)
			k := key(seed, i)
			v, found, err := fst.Get(k)
			switch {
			case err != nil:
				return nil, err
			case !found || v != value(seed, i):
				return nil, fmt.Errorf("key %d: value %d, found %v; inserted with %d", i, v, found, value(seed, i))
			}
			k[len(k)-1]++
			_, other, err := fst.Get(k)
			if err != nil {
				return nil, err
			}
			if other {
				return nil, fmt.Errorf("%x is found, which nobody inserted", k)
			}
			answer = append(answer, v)
		}
		const span = 10
		from := rng.Uint64N(keys - span)
		it, err := fst.Iterator(key(seed, from), key(seed, from+span))
		for err == nil {
			k, v := it.Current()
			answer = append(answer, binary.BigEndian.Uint64(k), binary.BigEndian.Uint64(k[8:]), v)
			err = it.Next()
		}
		if !errors.Is(err, vellum.ErrIteratorDone) {
			return nil, err
		}
		if len(answer) != 2+span*3 {
			return nil, fmt.Errorf("the range of %d keys from key %d has %d", span, from, (len(answer)-2)/3)
		}
		return answer, nil
	}, nil
}
