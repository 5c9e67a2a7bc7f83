package thirdparty

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/RoaringBitmap/roaring/v2"
)

// chunks is the number of containers of the bitmap, each for 65536 integers and
// of one of three kinds. Those of runs are few: to rank an integer the library
// adds up all that lie before it.
const chunks = 2600

// TestRoaringFrozenView reads a frozen bitmap, whose containers lie in the
// region. Set operations on them run in assembly.
func TestRoaringFrozenView(t *testing.T) {
	sameAnswers(t, 2, freezeBitmap, openBitmap)
}

func freezeBitmap(seed uint64, f *os.File) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	b := roaring.New()
	values := make([]uint32, 0, 1<<16)
	for c := range uint64(chunks) {
		base := uint32(c << 16)
		switch {
		case c%60 == 7: // runs
			for low := uint64(0); low < 1<<16; low += 200 + rng.Uint64N(100) {
				b.AddRange(uint64(base)+low, uint64(base)+min(low+50+rng.Uint64N(100), 1<<16))
			}
		case c%2 == 0: // a bitmap of 8 KiB
			values = values[:0]
			for low := uint32(0); low < 1<<16; low += 64 {
				for bits, i := rng.Uint64(), uint32(0); i < 64; i++ {
					if bits>>i&1 != 0 {
						values = append(values, base+low+i)
					}
				}
			}
			b.AddMany(values)
		default: // a sorted array of nearly as much
			values = values[:0]
			for low := uint32(rng.IntN(16)); low < 1<<16; low += 16 + uint32(rng.IntN(4)) {
				values = append(values, base+low)
			}
			b.AddMany(values)
		}
	}
	b.RunOptimize()
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := b.WriteFrozenTo(w); err != nil {
		return err
	}
	return w.Flush()
}

func openBitmap(_ uint64, mem []byte) (question, error) {
	b := roaring.New()
	if err := b.FrozenView(mem); err != nil {
		return nil, err
	}
	total := b.GetCardinality()
	if total == 0 {
		return nil, fmt.Errorf("an empty bitmap")
	}
	place := func(rng *rand.Rand) uint32 { return rng.Uint32N(chunks << 16) }
	return func(rng *rand.Rand) (answer []uint64, err error) {
		for range 4 {
			x := place(rng)
			yes := uint64(0)
			if b.Contains(x) {
				yes = 1
			}
			answer = append(answer, yes)
		}
		answer = append(answer, b.Rank(place(rng)))
		at, err := b.Select(uint32(rng.Uint64N(total)))
		if err != nil {
			return nil, err
		}
		answer = append(answer, uint64(at))

		x := int64(place(rng))
		for range 50 {
			if x = b.NextValue(uint32(x)); x < 0 {
				break
			}
			answer = append(answer, uint64(x))
			x++
		}
		// An iterator finds its place by a look at all containers before it:
		// a walk through half of the region, for few.
		if rng.IntN(20) == 0 {
			it := b.Iterator()
			it.AdvanceIfNeeded(place(rng))
			for i := 0; i < 300 && it.HasNext(); i++ {
				answer = append(answer, uint64(it.Next()))
			}
		}

		// The containers of two chunks and a bit, against an operand that
		// covers them and against a sparse one.
		from := uint64(place(rng))
		whole, sparse := roaring.New(), roaring.New()
		whole.AddRange(from, from+2<<16)
		for x := from; x < from+2<<16; x += 1 + rng.Uint64N(999) {
			sparse.Add(uint32(x))
		}
		return append(answer,
			b.AndCardinality(whole), uint64(roaring.And(b, sparse).Checksum()),
			uint64(roaring.AndNot(whole, b).Checksum())), nil
	}, nil
}
