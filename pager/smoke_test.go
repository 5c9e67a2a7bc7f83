//go:build linux

package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
)

// stampFile makes a file whose every 8-byte word tells its offset.
func stampFile(t testing.TB, size int) (string, []byte) {
	t.Helper()
	b := make([]byte, size)
	for i := 0; i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(i)*0x9E3779B97F4A7C15+1)
	}
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name, b
}

func mapFile(t testing.TB, name string, po Options, ro RegionOptions) (*Pager, *Region) {
	t.Helper()
	if ro.Private {
		needProtection(t)
	}
	p, err := New(po)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := store.OpenFile(name, store.FileOptions{ReadOnly: ro.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Map(s, ro)
	if err != nil {
		t.Fatal(err)
	}
	return p, r
}

func TestEveryWayOfReadingSeesTheFile(t *testing.T) {
	name, want := stampFile(t, 4<<20+123)
	p, r := mapFile(t, name, Options{Budget: 256 << 10}, RegionOptions{ReadOnly: true})
	raw := hasRaw(t, r)
	ctx := context.Background()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			buf := make([]byte, 20000)
			for i := range 400 {
				off := rnd.Int64N(r.Len())
				n := min(rnd.Int64N(20000), r.Len()-off)
				exp := want[off : off+n]
				switch i % 4 {
				case 0:
					if _, err := r.ReadAt(buf[:n], off); err != nil || !bytes.Equal(buf[:n], exp) {
						t.Errorf("ReadAt(%d, %d): %v", n, off, err)
					}
				case 1:
					pin, err := r.Acquire(ctx, off, n)
					if err != nil || !bytes.Equal(pin.Bytes(), exp) {
						t.Errorf("Acquire(%d, %d): %v", off, n, err)
					}
					pin.Release()
				case 2:
					err := r.View(ctx, func(mem []byte) error {
						if !bytes.Equal(mem[off:off+n], exp) {
							t.Errorf("View(%d, %d) differs", off, n)
						}
						return nil
					})
					if err != nil && (sp.fd >= 0 || !errors.Is(err, ErrNotSupported)) {
						t.Error(err)
					}
				case 3:
					if raw && !bytes.Equal(r.Bytes()[off:off+n], exp) {
						t.Errorf("Bytes(%d, %d) differs", off, n)
					}
				}
			}
		})
	}
	wg.Wait()
	s := p.Stats()
	t.Logf("\n%v", s)
	if s.ReadBytes < 10*s.Budget {
		t.Errorf("read %d bytes, less than ten times the budget %d", s.ReadBytes, s.Budget)
	}
	if s.PeakResident > s.Budget {
		t.Errorf("resident %d over budget %d", s.PeakResident, s.Budget)
	}
}
