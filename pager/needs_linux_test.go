package pager

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/uffd"
)

// The environment takes features away (UFFDPAGER_FEATURES) and chooses how faults
// wait (UFFDPAGER_PARK). A test that is about what is gone then skips, for the
// reason that the pager itself has; TestWhatIsNotThereIsRefused makes sure that
// these are no excuse where nothing was taken away.

// noProtection is why Map refuses Private and Atomic regions; nil: it does not.
func noProtection() error {
	return checkWrite(store.NewMemory(FrameSize), &RegionOptions{Private: true})
}

// needProtection skips where regions cannot be Private or Atomic.
func needProtection(t testing.TB) {
	t.Helper()
	if err := noProtection(); err != nil {
		t.Skip(err)
	}
}

// noRaw is why no writable region of this pager has raw access; nil: those
// have it whose store and options allow it.
func (p *Pager) noRaw() error {
	switch {
	case sp.rawErr != nil:
		return sp.rawErr
	case noProtection() != nil:
		return noProtection()
	case p.opt.Park == coro.Restart:
		return errRestart
	}
	return nil
}

// hasRaw is whether r, whose store and options allow it, has raw access. It fails
// if there is none for no reason of the environment's.
func hasRaw(t testing.TB, r *Region) bool {
	t.Helper()
	if err := r.Raw(); err != nil && r.p.noRaw() == nil {
		t.Fatalf("no raw access: %v", err)
	}
	return r.Raw() == nil
}

// needRaw skips a test of raw access where the environment allows none.
func needRaw(t testing.TB, r *Region) {
	t.Helper()
	if !hasRaw(t, r) {
		t.Skip(r.Raw())
	}
}

// contentOf is all of r: its memory where it has raw access, else a copy.
func contentOf(t testing.TB, r *Region) []byte {
	t.Helper()
	if hasRaw(t, r) {
		return r.Bytes()
	}
	b := make([]byte, r.Len())
	if _, err := r.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWhatIsNotThereIsRefused: what needs write-protect faults, or faults that
// wait, says ErrNotSupported where there are none, and works where the kernel has
// them and nobody has taken them away.
func TestWhatIsNotThereIsRefused(t *testing.T) {
	masked := os.Getenv(uffd.MaskEnv) != ""
	has := uffd.FeatureWriteProtect.Supported() == nil
	if !masked && sp.fd >= 0 && sp.wp != has {
		t.Errorf("the space has write-protect faults: %v; the kernel: %v", sp.wp, has)
	}
	p := newPager(t, Options{Budget: 64 * FrameSize})
	size := int64(8 * FrameSize)
	for what, o := range map[string]RegionOptions{
		"Private": {Private: true},
		"Atomic":  {Durability: Atomic, Journal: JournalOptions{Store: store.NewMemory(8192), Limit: 64 * FrameSize}},
		"InPlace": {},
	} {
		r, err := p.Map(store.NewMemory(size), o)
		if none := noProtection(); what != "InPlace" && none != nil {
			if !errors.Is(err, ErrNotSupported) {
				t.Errorf("Map of a region that is %s: %v, want ErrNotSupported", what, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("Map of a region that is %s: %v", what, err)
			continue
		}
		if err := r.Raw(); (err == nil) != (p.noRaw() == nil) || err != nil && !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: Raw says %v, and of the pager it is %v", what, err, p.noRaw())
		}
		err = r.Update(context.Background(), func(mem []byte) error {
			mem[5*FrameSize] = 1
			return nil
		})
		// Update needs faults that wait or park, and protection.
		if may := sp.trap && sp.wp; (err == nil) != may || err != nil && !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: Update: %v; there are faults: %v, protection: %v", what, err, sp.trap, sp.wp)
		}
		var b [1]byte
		if _, e := r.ReadAt(b[:], 5*FrameSize); e != nil || (b[0] == 1) != (err == nil) {
			t.Errorf("%s: page 5 has %d after an Update that said %v: %v", what, b[0], err, e)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
