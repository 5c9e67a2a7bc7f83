package uffd

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel's answers, with the out field as kernels up to 6.14 and from 6.15
// on write it, and what the ordinary calls make of them.
func TestRetry(t *testing.T) {
	const n = 8
	type answer struct {
		out   int64
		errno unix.Errno
	}
	for _, c := range []struct {
		name    string
		answers []answer
		done    uintptr
		want    unix.Errno // 0: success
		left    int        // answers not asked for
	}{
		{"at once", []answer{{8, 0}}, 8, 0, 0},
		{"refused", []answer{{0, unix.EINVAL}, {8, 0}}, 0, unix.EINVAL, 1},
		{"present", []answer{{-int64(unix.EEXIST), unix.EEXIST}, {8, 0}}, 0, unix.EEXIST, 1},
		{"in two steps", []answer{{3, unix.EAGAIN}, {5, 0}}, 8, 0, 0},
		{"a present page behind the first step", []answer{{3, unix.EAGAIN}, {-int64(unix.EEXIST), unix.EEXIST}}, 3, unix.EEXIST, 0},
		{"address space busy, up to 6.14", []answer{{0, unix.EAGAIN}, {0, unix.EAGAIN}, {8, 0}}, 8, 0, 0},
		{"address space busy, from 6.15 on", []answer{{-int64(unix.EAGAIN), unix.EAGAIN}, {8, 0}}, 8, 0, 0},
		{"busy between steps", []answer{{1, unix.EAGAIN}, {0, unix.EAGAIN}, {2, unix.EAGAIN}, {-int64(unix.EAGAIN), unix.EAGAIN}, {5, 0}}, 8, 0, 0},
		{"a single page at a time", []answer{{1, unix.EAGAIN}, {1, unix.EAGAIN}, {1, unix.EAGAIN}, {1, unix.EAGAIN}, {1, unix.EAGAIN}, {1, unix.EAGAIN}, {1, unix.EAGAIN}, {1, 0}}, 8, 0, 0},
	} {
		u := &FD{}
		answers, at := c.answers, uintptr(0)
		done, err := u.stepwise("copy", 0x1000, n, func(_ int, from uintptr) (int64, unix.Errno) {
			if from != at {
				t.Errorf("%s: a step from %d, %d are done", c.name, from, at)
			}
			if len(answers) == 0 {
				t.Fatalf("%s: asked once too often", c.name)
			}
			a := answers[0]
			answers = answers[1:]
			at += uintptr(max(a.out, 0))
			return a.out, a.errno
		})
		if c.want == 0 && err != nil || c.want != 0 && !errors.Is(err, c.want) || done != c.done || len(answers) != c.left {
			t.Errorf("%s: %d done, %v, %d answers left; want %d, %v, %d", c.name, done, err, len(answers), c.done, c.want, c.left)
		}
	}

	// An address space that never comes to rest is an error, not a hang.
	calls := 0
	_, err := new(FD).stepwise("copy", 0x1000, n, func(int, uintptr) (int64, unix.Errno) {
		calls++
		return 0, unix.EAGAIN
	})
	if !errors.Is(err, unix.EAGAIN) || calls < 3 {
		t.Errorf("busy for ever: %v after %d calls", err, calls)
	}
}
