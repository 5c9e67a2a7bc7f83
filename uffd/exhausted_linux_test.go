package uffd

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// "No descriptor left" says nothing about the kernel: it must not be taken for
// an answer, nor kept.
func TestAProbeThatRanOutIsAskedAgain(t *testing.T) { runChild(t, "exhausted", "-pidfd_self", nil) }

func init() {
	children["exhausted"] = func() error {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
		none := unix.Rlimit{Cur: 0, Max: limit.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
			return err
		}
		_, opened := Open(APISigbus, 0)
		PrepareZap()
		for what, err := range map[string]error{
			"Open":                  opened,
			"probe of sigbus":       FeatureSigbus.Supported(),
			"probe of userfaultfd":  FeatureUserfaultfd.Supported(),
			"probe of pagemap_scan": FeaturePagemapScan.Supported(),
			"probe of batches":      FeatureProcessMadvise.Supported(),
		} {
			if !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNotSupported) {
				return fmt.Errorf("%s without a descriptor left: %w", what, err)
			}
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
		if FeatureUserfaultfd.Supported() != nil {
			return skipped("no userfaultfd here")
		}
		PrepareZap()
		if FeatureProcessMadvise.Supported() == nil && int32(zapPidfd) == noPidfd {
			return errors.New("batches stay off after descriptors have become available")
		}
		return serve()
	}
}
