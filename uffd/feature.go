package uffd

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// Feature is something the kernel may or may not let this process do.
type Feature uint8

// The features, in the order in which doctor lists them.
const (
	FeatureUserfaultfd    Feature = iota // any way at all to open a userfaultfd
	FeatureUserModeOnly                  // userfaultfd(2) with UFFD_USER_MODE_ONLY: needs no privilege
	FeatureAnyMode                       // userfaultfd(2) without it: needs CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1
	FeatureDevUserfaultfd                // USERFAULTFD_IOC_NEW on /dev/userfaultfd: needs access to the device node
	FeatureSigbus                        // faults as SIGBUS
	FeatureWriteProtect                  // write-protect faults on anonymous memory
	FeatureWPUnpopulated                 // write-protecting pages that are missing
	FeaturePoison                        // UFFDIO_POISON
	FeatureWPAsync                       // write-protection that resolves itself
	FeatureMove                          // UFFDIO_MOVE
	FeaturePagemapScan                   // PAGEMAP_SCAN
	FeatureDontneedLocked                // MADV_DONTNEED_LOCKED
	FeatureProcessMadvise                // process_madvise(self, MADV_DONTNEED) with a vector: one TLB flush per batch
	FeaturePidfdSelf                     // process_madvise without a pidfd of one's own
	numFeatures
)

type featureInfo struct {
	name  string // as in UFFDPAGER_FEATURES
	since string // the first kernel
	use   string // what the pager does with it
	api   API    // the bits of the handshake it stands for
}

var features = [numFeatures]featureInfo{
	FeatureUserfaultfd:    {"userfaultfd", "4.3", "raw access to regions; without it Acquire and ReadAt only", 0},
	FeatureUserModeOnly:   {"user_mode_only", "5.11", "opening a userfaultfd without privilege", 0},
	FeatureAnyMode:        {"any_mode", "4.3", "opening a userfaultfd where user_mode_only is refused", 0},
	FeatureDevUserfaultfd: {"dev_userfaultfd", "6.1", "opening a userfaultfd where the system call is refused", 0},
	FeatureSigbus:         {"sigbus", "4.14", "serving faults within the process", APISigbus},
	FeatureWriteProtect:   {"wp", "5.7", "tracking dirty pages", APIWriteProtect | APIWPShmem},
	FeatureWPUnpopulated:  {"wp_unpopulated", "6.4", "write-protecting a range with holes", APIWPUnpopulated},
	FeaturePoison:         {"poison", "6.6", "marking a page as lost", APIPoison},
	FeatureWPAsync:        {"wp_async", "6.7", "tracking dirty pages without faults", APIWPAsync},
	FeatureMove:           {"move", "6.8", "taking a page out whole, installing huge pages", APIMove},
	FeaturePagemapScan:    {"pagemap_scan", "6.7", "asking what is resident or dirty", 0},
	FeatureDontneedLocked: {"dontneed_locked", "5.18", "evicting from memory that mlockall has locked", 0},
	FeatureProcessMadvise: {"process_madvise", "6.13", "evicting a batch of pages with one TLB flush", 0},
	FeaturePidfdSelf:      {"pidfd_self", "6.15", "the same without keeping a descriptor open", 0},
}

// Features returns every feature, in the order in which they are listed.
func Features() []Feature {
	all := make([]Feature, numFeatures)
	for i := range all {
		all[i] = Feature(i)
	}
	return all
}

// String is the name of the feature as UFFDPAGER_FEATURES spells it.
func (f Feature) String() string {
	if f < numFeatures {
		return features[f].name
	}
	return fmt.Sprintf("Feature(%d)", uint8(f))
}

// Since is the first mainline kernel that has the feature, such as "6.13".
// Distributions backport: it is for messages, support is probed.
func (f Feature) Since() string {
	if f < numFeatures {
		return features[f].since
	}
	return "?"
}

// Use says in a few words what the pager does with the feature.
func (f Feature) Use() string {
	if f < numFeatures {
		return features[f].use
	}
	return ""
}

// MaskEnv is the environment variable that takes features away, so that every
// fall-back can be tested on a kernel that needs none:
//
//	UFFDPAGER_FEATURES=-process_madvise,-move
//
// The value is a list of feature names, separated by commas, each with a minus
// sign before it. It is read once, when the program starts. A masked feature
// behaves as on a kernel without it, and so does what depends on it: the raw
// calls return the errno such a kernel returns, the ordinary ones an
// UnsupportedError, Open and Probe do without.
const MaskEnv = "UFFDPAGER_FEATURES"

// mask has the bit 1<<f of every feature f that is taken away. It is written
// before main starts (and by tests, when nothing else runs), so the raw calls
// read it without further ado.
var mask, maskErr = parseMask(os.Getenv(MaskEnv))

// MaskError is the error in UFFDPAGER_FEATURES, if there is one. Open returns
// it too, and so do the probes. The names that are known are masked even so.
func MaskError() error { return maskErr }

// implied is what no kernel has without the feature.
var implied = map[Feature]uint64{
	FeatureUserfaultfd: 1<<FeatureUserModeOnly | 1<<FeatureAnyMode | 1<<FeatureDevUserfaultfd | 1<<FeatureSigbus |
		1<<FeatureWriteProtect | 1<<FeatureWPUnpopulated | 1<<FeaturePoison | 1<<FeatureWPAsync | 1<<FeatureMove,
	FeatureWriteProtect:   1<<FeatureWPUnpopulated | 1<<FeatureWPAsync,
	FeatureProcessMadvise: 1 << FeaturePidfdSelf,
}

func parseMask(s string) (uint64, error) {
	var m uint64
	var bad []string
	for word := range strings.SplitSeq(s, ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			continue
		}
		name, minus := strings.CutPrefix(word, "-")
		f := slices.IndexFunc(features[:], func(i featureInfo) bool { return i.name == name })
		if !minus || f < 0 {
			bad = append(bad, word)
			continue
		}
		m |= 1<<f | implied[Feature(f)]
	}
	if bad != nil {
		return m, fmt.Errorf("uffd: %s: unknown word %q (want a list of -name with name one of %s)", MaskEnv, bad, featureNames())
	}
	return m, nil
}

func featureNames() string {
	var names []string
	for _, i := range features {
		names = append(names, i.name)
	}
	return strings.Join(names, ", ")
}

// masked is for ordinary and raw code alike.
//
//go:nosplit
//go:norace
func masked(f Feature) bool { return mask&(1<<f) != 0 }

// maskedAPI is the bits of the handshake that are taken away.
func maskedAPI() (bits API) {
	for f := range numFeatures {
		if masked(f) {
			bits |= features[f].api
		}
	}
	return bits
}

// featureOf names the feature that stands for the lowest bit of a set.
func featureOf(bits API) (f Feature, ok bool) {
	for f := range numFeatures {
		if features[f].api&bits&-bits != 0 {
			return f, true
		}
	}
	return 0, false
}

// Result is what a probe found out.
type Result struct {
	Feature   Feature
	Supported bool
	Err       error // why not: an *UnsupportedError, or what kept the probe from finding out
}

// Probe tries every feature once and returns the results in the order of
// Features. Each probe does the thing on a few pages of its own and takes
// microseconds; answers that can only change with the kernel or the process's
// rights are kept, others (no descriptor or memory left) are asked again next
// time. Safe for use by several goroutines.
func Probe() []Result {
	rs := make([]Result, 0, numFeatures)
	for _, f := range Features() {
		err := f.Supported()
		rs = append(rs, Result{f, err == nil, err})
	}
	return rs
}

var probed struct {
	sync.Mutex
	known  [numFeatures]bool
	result [numFeatures]error
}

// Supported returns nil if this process can use the feature, an
// *UnsupportedError if it cannot, and another error if the probe could not
// find out.
func (f Feature) Supported() error {
	if f >= numFeatures {
		return fmt.Errorf("uffd: no such feature: %v", f)
	}
	if maskErr != nil {
		return maskErr
	}
	if masked(f) {
		return &UnsupportedError{f, ErrMasked}
	}
	probed.Lock()
	defer probed.Unlock()
	if probed.known[f] {
		return probed.result[f]
	}
	err := probe(f)
	if err != nil {
		if !conclusive(err) {
			return fmt.Errorf("uffd: probe of %v: %w", f, err)
		}
		err = &UnsupportedError{f, err}
	}
	probed.known[f], probed.result[f] = true, err
	return err
}
