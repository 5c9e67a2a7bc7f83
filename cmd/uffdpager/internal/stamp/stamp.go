// Package stamp fills files with bytes that can prove where they belong.
//
// A stamped file is a sequence of 4 KiB blocks. Every aligned 8-byte word of a
// block depends on its own offset in the file and on the block's version, so
// a block that is read from the wrong place, is torn, stale or zeroed does not
// pass [Check]. The first word of a block carries the version:
//
//	word 0     hash(offset) XOR version        (so the upper 32 bits prove the offset)
//	word i     a sequence that begins at hash(offset, version)
//
// Words are little-endian. A file may end anywhere: the last block is a prefix
// of the whole one. The stamps do not depend on any seed, so a file kept by one
// run can be proved by another.
package stamp

import (
	"encoding/binary"
)

// Block is the unit of stamping and of versions, in bytes.
const Block = 4096

// golden is 2^64 divided by the golden ratio: multiples of it are spread evenly.
const golden = 0x9e3779b97f4a7c15

// headKey keeps the hash in word 0 apart from that of other words.
const headKey = 0xa5a5_5a5a_c3c3_3c3c

// Mix is the finisher of SplitMix64 (Steele, Lea, Flood 2014): every bit of x
// changes about half of the bits of the result.
func Mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func head(off int64, version uint32) uint64 {
	return Mix(uint64(off)^headKey) ^ uint64(version)
}

// base is where the words of a block begin; from there they are a Weyl sequence
// with its upper half folded in. That is as hard to meet by accident as a hash
// of every word, and costs a quarter of it.
func base(off int64, version uint32) uint64 {
	return Mix(uint64(off) + golden*(uint64(version)+1))
}

func fold(x uint64) uint64 { return x ^ x>>32 }

// word returns the word that begins i bytes into the block, i a multiple of 8.
func word(off int64, version uint32, i int) uint64 {
	if i == 0 {
		return head(off, version)
	}
	return fold(base(off, version) + uint64(i/8)*golden)
}

// Fill writes the stamps of the block at off into b, which may be shorter than
// Block at the end of a file.
func Fill(b []byte, off int64, version uint32) {
	n := len(b) &^ 7
	at := base(off, version)
	for i := 8; i < n; i += 8 {
		at += golden
		binary.LittleEndian.PutUint64(b[i:], fold(at))
	}
	if n > 0 {
		binary.LittleEndian.PutUint64(b, head(off, version))
	}
	if n < len(b) {
		var last [8]byte
		binary.LittleEndian.PutUint64(last[:], word(off, version, n))
		copy(b[n:], last[:])
	}
}

// FillRange stamps a whole number of blocks (the last may be short) with
// version 0.
func FillRange(b []byte, off int64) {
	for len(b) > 0 {
		n := min(len(b), Block)
		Fill(b[:n], off, 0)
		b, off = b[n:], off+int64(n)
	}
}

// Version returns the version a block at off claims to have. ok is false when
// its first word is no stamp of that offset, or the block is shorter than a
// word.
func Version(b []byte, off int64) (version uint32, ok bool) {
	if len(b) < 8 {
		return 0, false
	}
	v := binary.LittleEndian.Uint64(b) ^ head(off, 0)
	return uint32(v), v>>32 == 0
}

// Check compares every byte of a block at off with its stamps. It returns -1,
// or the index of the first word that differs.
func Check(b []byte, off int64, version uint32) int {
	n := len(b) &^ 7
	if n > 0 && binary.LittleEndian.Uint64(b) != head(off, version) {
		return 0
	}
	at := base(off, version)
	for i := 8; i < n; i += 8 {
		at += golden
		if binary.LittleEndian.Uint64(b[i:]) != fold(at) {
			return i
		}
	}
	if n < len(b) {
		var last [8]byte
		binary.LittleEndian.PutUint64(last[:], word(off, version, n))
		for i, c := range b[n:] {
			if c != last[i] {
				return n
			}
		}
	}
	return -1
}
