package stamp

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// Whatever single byte of a block is changed, at any length, Check sees it and
// names the word.
func TestCheckSeesEveryByte(t *testing.T) {
	for _, n := range []int{1, 7, 8, 9, 15, 16, 511, 4095, 4096} {
		b := make([]byte, n)
		Fill(b, 3*Block, 7)
		if at := Check(b, 3*Block, 7); at != -1 {
			t.Fatalf("%d bytes: a fresh stamp differs at %d", n, at)
		}
		for i := range b {
			b[i] ^= 0x10
			if at := Check(b, 3*Block, 7); at != i&^7 {
				t.Fatalf("%d bytes, byte %d changed: Check says %d", n, i, at)
			}
			b[i] ^= 0x10
		}
	}
}

// A block from another place or of another version does not pass, and neither
// does a block of zeros.
func TestCheckKnowsPlaceAndVersion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(8, Block).Draw(t, "n")
		off := rapid.Int64Range(0, 1<<40/Block).Draw(t, "off") * Block
		other := rapid.Int64Range(0, 1<<40/Block).Draw(t, "other") * Block
		v, w := rapid.Uint32().Draw(t, "v"), rapid.Uint32().Draw(t, "w")
		b := make([]byte, n)
		if Check(b, off, v) == -1 {
			t.Fatal("zeros pass")
		}
		Fill(b, off, v)
		if got, ok := Version(b, off); !ok || got != v {
			t.Fatalf("Version = %d, %v; want %d", got, ok, v)
		}
		if other != off {
			if Check(b, other, v) == -1 {
				t.Fatal("a block of another place passes")
			}
			if got, ok := Version(b, other); ok && Check(b, other, got) == -1 {
				t.Fatal("a block of another place passes with the version it claims")
			}
		}
		if w != v && Check(b, off, w) == -1 {
			t.Fatal("another version passes")
		}
	})
}

// A block torn between two versions never passes as either.
func TestCheckSeesTornBlocks(t *testing.T) {
	old, new := make([]byte, Block), make([]byte, Block)
	Fill(old, 0, 1)
	Fill(new, 0, 2)
	for cut := 8; cut < Block; cut += 8 {
		torn := append(bytes.Clone(new[:cut]), old[cut:]...)
		if Check(torn, 0, 1) == -1 || Check(torn, 0, 2) == -1 {
			t.Fatalf("torn at %d passes", cut)
		}
	}
}

func TestFillRangeIsFillOfEachBlock(t *testing.T) {
	b := make([]byte, 3*Block+100)
	FillRange(b, 5*Block)
	for i := 0; i < len(b); i += Block {
		if at := Check(b[i:min(i+Block, len(b))], int64(5*Block+i), 0); at != -1 {
			t.Fatalf("block at %d differs at %d", i, at)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	p := make([]byte, Block)
	Fill(p, 0, 0)
	b.SetBytes(Block)
	for b.Loop() {
		if Check(p, 0, 0) != -1 {
			b.Fatal("differs")
		}
	}
}

func BenchmarkFill(b *testing.B) {
	p := make([]byte, Block)
	b.SetBytes(Block)
	for b.Loop() {
		Fill(p, 0, 0)
	}
}
