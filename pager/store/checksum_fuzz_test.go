package store

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzSums damages the sums of a store in any way: opening it gives an error, or
// a store that reads every block right or refuses it – and one block at least
// is refused or right.
func FuzzSums(f *testing.F) {
	const size = 40 * SumBlock
	content := noise(1, size)
	sums := make([]byte, SumsSize(size))
	data, _ := bits(bytes.Clone(content))
	side, mem := bits(sums)
	c := checksummed(f, data, &unclosed{side}, true)
	if err := c.Close(); err != nil {
		f.Fatal(err)
	}
	good := bytes.Clone(mem)
	f.Add([]byte{}, uint16(0))
	f.Add([]byte{1, 2, 3, 4}, uint16(4096))
	f.Add(bytes.Repeat([]byte{0xff}, 600), uint16(4096+500))
	f.Add([]byte("uffdsums"), uint16(0))
	f.Fuzz(func(t *testing.T, damage []byte, at uint16) {
		bad := bytes.Clone(good)
		if n := int(at) % len(bad); len(damage) > 0 {
			copy(bad[n:], damage)
		}
		data, _ := bits(bytes.Clone(content))
		side, _ := bits(bad)
		c, err := NewChecksummed(data, side, ChecksumOptions{})
		if err != nil {
			return
		}
		h := hand(t)
		for off := int64(0); off < size; off += SumBlock {
			n := min(SumBlock, size-off)
			b, err := h.get(c, off, n)
			switch {
			case err == nil && !bytes.Equal(b, content[off:off+n]):
				t.Fatalf("block at %d is not what is in the store", off)
			case err != nil && bytes.Equal(bad, good):
				t.Fatalf("block at %d is refused though nothing is damaged: %v", off, err)
			}
		}
		if err := c.Close(); err != nil && bytes.Equal(bad, good) && !errors.Is(err, ErrNoSums) {
			t.Fatal(err)
		}
	})
}
