package coro

import (
	"fmt"
	"os"
)

// Mode says how code that faults on a missing page is stopped.
type Mode uint8

const (
	// Auto parks the goroutine in place where that is proven to work with
	// this Go release and blocks the thread elsewhere.
	Auto Mode = iota
	// InPlace is Auto said aloud: park in place where possible, block the
	// thread for single faults that cannot be parked, and everywhere when
	// parking is switched off.
	InPlace
	// Block always blocks the faulting thread until the fault server has
	// loaded the page.
	Block
	// Restart turns every fault into a Go fault; View runs its closure again
	// once the page is there. For tests of restartable closures.
	Restart
	// Require is InPlace, but setting up fails where parking is not active.
	Require
)

var modeNames = [...]string{"auto", "in-place", "block", "restart", "require"}

func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// ParseMode is the inverse of Mode.String.
func ParseMode(s string) (Mode, error) {
	for i, n := range modeNames {
		if n == s {
			return Mode(i), nil
		}
	}
	return Auto, fmt.Errorf("coro: unknown park mode %q (auto, in-place, block, restart, require)", s)
}

// Effective is m, or what the environment variable UFFDPAGER_PARK says if it
// is set. AddArena applies it.
func (m Mode) Effective() (Mode, error) {
	s := os.Getenv("UFFDPAGER_PARK")
	if s == "" {
		return m, nil
	}
	e, err := ParseMode(s)
	if err != nil {
		return m, fmt.Errorf("UFFDPAGER_PARK: %w", err)
	}
	return e, nil
}
