package uffd

import (
	"errors"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

func TestEveryFeatureIsDescribed(t *testing.T) {
	seen := map[string]Feature{}
	for i, f := range Features() {
		if int(f) != i {
			t.Errorf("feature %d is listed as number %d", f, i)
		}
		if other, twice := seen[f.String()]; twice {
			t.Errorf("%d and %d are both called %v", other, f, f)
		}
		seen[f.String()] = f
		if !regexp.MustCompile(`^[a-z_]+$`).MatchString(f.String()) {
			t.Errorf("%d has an odd name %q", f, f)
		}
		if !regexp.MustCompile(`^[456]\.\d+$`).MatchString(f.Since()) {
			t.Errorf("%v: since %q", f, f.Since())
		}
		if f.Use() == "" {
			t.Errorf("%v: no word of what it is for", f)
		}
	}
	if len(seen) != int(numFeatures) {
		t.Errorf("%d features listed, want %d", len(seen), numFeatures)
	}
	if err := numFeatures.Supported(); err == nil || errors.Is(err, ErrNotSupported) {
		t.Errorf("a feature that does not exist: %v", err)
	}
}

func TestMaskNamesFeatures(t *testing.T) {
	bit := func(fs ...Feature) (m uint64) {
		for _, f := range fs {
			m |= 1 << f
		}
		return m
	}
	for _, c := range []struct {
		in    string
		want  uint64
		wrong string // what the error names, "" for none
	}{
		{"", 0, ""},
		{" , ,", 0, ""},
		{"-move", bit(FeatureMove), ""},
		{"-move,-pagemap_scan", bit(FeatureMove, FeaturePagemapScan), ""},
		{" -move , -move,", bit(FeatureMove), ""},
		{"-wp", bit(FeatureWriteProtect, FeatureWPUnpopulated, FeatureWPAsync), ""},
		{"-process_madvise", bit(FeatureProcessMadvise, FeaturePidfdSelf), ""},
		{"-pidfd_self", bit(FeaturePidfdSelf), ""},
		{"-mov", 0, "-mov"},
		{"move", 0, "move"},
		{"--move", 0, "--move"},
		{"+move", 0, "+move"},
		{"-", 0, "-"},
		{"-MOVE", 0, "-MOVE"},
		{"-move;-poison", 0, "-move;-poison"},
		{"-move,nonsense,-poison", bit(FeatureMove, FeaturePoison), "nonsense"},
	} {
		got, err := parseMask(c.in)
		if got != c.want {
			t.Errorf("%q masks %#x, want %#x", c.in, got, c.want)
		}
		if (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), `"`+c.wrong+`"`) {
			t.Errorf("%q: error %v, want one that names %q", c.in, err, c.wrong)
		}
	}
}

func TestErrorsSayWhatTheyAre(t *testing.T) {
	unsupported := &UnsupportedError{FeatureMove, syscall.EINVAL}
	for _, err := range []error{ErrNotSupported, unsupported, &UnsupportedError{FeatureWriteProtect, unsupported}} {
		if !errors.Is(err, ErrNotSupported) || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v is not ErrNotSupported and errors.ErrUnsupported", err)
		}
	}
	if !errors.Is(unsupported, syscall.EINVAL) {
		t.Error("an UnsupportedError hides the errno")
	}
	op := &OpError{Op: "copy", Addr: 0x1000, Len: 0x2000, Done: 0x1000, Err: syscall.EEXIST}
	if errors.Is(op, ErrNotSupported) || !errors.Is(op, syscall.EEXIST) {
		t.Errorf("%v: wrong kind", op)
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{op, "uffd: copy 0x1000+0x2000: file exists after 0x1000"},
		{&OpError{Op: "wake", Addr: 0x1000, Len: 0x2000, Err: syscall.EINVAL}, "uffd: wake 0x1000+0x2000: invalid argument"},
		{&OpError{Op: "handshake", Err: syscall.EINVAL}, "uffd: handshake: invalid argument"},
		{unsupported, "uffd: move is not available (Linux 6.8 has it): invalid argument"},
		{&UnsupportedError{FeatureMove, &UnsupportedError{FeatureUserfaultfd, syscall.EPERM}}, "uffd: move needs userfaultfd (Linux 4.3 has it): operation not permitted"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestProbeCoversEveryFeature(t *testing.T) {
	rs := Probe()
	if len(rs) != int(numFeatures) {
		t.Fatalf("%d results", len(rs))
	}
	for i, r := range rs {
		if r.Feature != Feature(i) || r.Supported != (r.Err == nil) {
			t.Errorf("result %d is %+v", i, r)
		}
		if r.Err == nil {
			continue
		}
		// No probe of a healthy process is at a loss.
		var why *UnsupportedError
		if !errors.As(r.Err, &why) || why.Feature != r.Feature {
			t.Errorf("%v: %v", r.Feature, r.Err)
		}
	}
}

// The bits of the handshake are claims, the probes are deeds.
func TestWhatTheHandshakeOffersWorks(t *testing.T) {
	available, err := Available()
	if err != nil {
		t.Skip(err)
	}
	for _, f := range Features() {
		if bits := features[f].api; bits == 0 || available&bits == 0 {
			continue
		}
		if err := f.Supported(); err != nil {
			t.Errorf("the handshake offers %v, and yet: %v", f, err)
		}
	}
}
