package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
)

func tempFile(t *testing.T, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func stamped(off int64, n int, version uint32) []byte {
	b := make([]byte, n)
	stamp.Fill(b, off, version)
	return b
}

// Of a file that was made, every block is known before it is read: neither an
// older nor a newer version passes, nor anything else.
func TestProofOfMadeFile(t *testing.T) {
	const off = 8 * stamp.Block
	p := newProof(proofMade, nil, 100*stamp.Block, true)
	for name, c := range map[string]struct {
		mem     []byte
		version uint32
		at      int
	}{
		"as made":         {stamped(off, stamp.Block, 0), 0, -1},
		"written thrice":  {stamped(off, stamp.Block, 3), 3, -1},
		"lost update":     {stamped(off, stamp.Block, 2), 3, 0},
		"from the future": {stamped(off, stamp.Block, 1), 0, 0},
		"another place":   {stamped(0, stamp.Block, 0), 0, 0},
		"zeros":           {make([]byte, stamp.Block), 0, 0},
		"torn":            {append(stamped(off, stamp.Block, 1)[:2048], stamped(off, stamp.Block, 0)[2048:]...), 1, 2048},
		"short":           {stamped(off, 13, 0), 0, -1},
	} {
		n, at := p.check(c.mem, off, c.version, nil)
		if n != len(c.mem) || at != c.at {
			t.Errorf("%s: compared %d of %d, difference at %d, want %d", name, n, len(c.mem), at, c.at)
		}
	}
	if n, at := p.check(make([]byte, stamp.Block), off, versionLost, nil); n != 0 || at != -1 {
		t.Errorf("a block that a failed write has left is judged: %d, %d", n, at)
	}
}

// A stamped FILE may hold any version, but only whole ones.
func TestProofOfStampedFile(t *testing.T) {
	p := newProof(proofStamped, nil, 100*stamp.Block, false)
	if _, at := p.check(stamped(0, stamp.Block, 17), 0, 0, nil); at != -1 {
		t.Errorf("version 17 differs at %d", at)
	}
	torn := append(stamped(0, stamp.Block, 17)[:512], stamped(0, stamp.Block, 16)[512:]...)
	if _, at := p.check(torn, 0, 0, nil); at != 512 {
		t.Errorf("a torn block differs at %d", at)
	}
	if _, at := p.check(make([]byte, stamp.Block), 0, 0, nil); at != 0 {
		t.Errorf("zeros differ at %d", at)
	}
}

// Any other file is compared with itself, until a block is written.
func TestProofByOrdinaryRead(t *testing.T) {
	content := []byte(strings.Repeat("any old file ", 1000))
	p := newProof(proofRead, tempFile(t, content), int64(len(content)), true)
	ref := make([]byte, stamp.Block)
	if err := p.prepare(ref, stamp.Block, 0); err != nil {
		t.Fatal(err)
	}
	mem := append([]byte(nil), content[stamp.Block:2*stamp.Block]...)
	if n, at := p.check(mem, stamp.Block, 0, ref); n != stamp.Block || at != -1 {
		t.Errorf("the same bytes: %d compared, difference at %d", n, at)
	}
	mem[99]++
	if _, at := p.check(mem, stamp.Block, 0, ref); at != 99 {
		t.Errorf("byte 99 changed: difference at %d", at)
	}
	if _, at := p.check(stamped(stamp.Block, stamp.Block, 1), stamp.Block, 1, ref); at != -1 {
		t.Errorf("a block that was written: difference at %d", at)
	}
}

// What was written and is not in the file comes to light at the end.
func TestProofOfWhatSurvived(t *testing.T) {
	f := tempFile(t, make([]byte, 4*stamp.Block-100))
	p := newProof(proofMade, f, 4*stamp.Block-100, true)
	p.versions = []uint32{0, 5, versionLost, 2} // blocks 0 and 2 are not looked at
	write := func(block int64, version uint32) {
		b := stamped(block*stamp.Block, int(min(stamp.Block, p.size-block*stamp.Block)), version)
		if _, err := f.WriteAt(b, block*stamp.Block); err != nil {
			t.Fatal(err)
		}
	}
	write(1, 5)
	write(3, 2)
	compared, wrong, first, err := p.survived(t.Context())
	if compared != 2*stamp.Block-100 || wrong != 0 || first != "" || err != nil {
		t.Errorf("all is there: %d, %d, %q, %v", compared, wrong, first, err)
	}
	write(1, 4)
	if _, wrong, first, _ = p.survived(t.Context()); wrong != 1 || !strings.Contains(first, "version 4 instead of 5") {
		t.Errorf("an update is missing: %d wrong, %q", wrong, first)
	}
}

func TestStampedFilesAreRecognised(t *testing.T) {
	for _, n := range []int{8, 100, stamp.Block, stamp.Block + 3, 10*stamp.Block + 1000} {
		b := make([]byte, n)
		stamp.FillRange(b, 0)
		if !isStamped(tempFile(t, b), int64(n)) {
			t.Errorf("a stamped file of %d bytes is not recognised", n)
		}
		clear(b[len(b)/3:])
		if isStamped(tempFile(t, b), int64(n)) {
			t.Errorf("%d bytes, two thirds of them zeros, pass as stamped", n)
		}
	}
	if isStamped(tempFile(t, []byte("1234567")), 7) {
		t.Error("7 bytes pass as stamped")
	}
}
