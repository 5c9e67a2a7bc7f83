//go:build !uffdpager_nointernals && uffdpager_negative

package coro

import (
	"os"
	"strings"
)

// Negative controls: a torture that passes proves something only if it fails
// when a safety step is left out. With the tag uffdpager_negative the variable
// UFFDPAGER_NEGATIVE names the steps to leave out:
//
//	hide-registers   the collector does not see a parked goroutine's registers
//	sse-only         only x87 and SSE state is restored
//	clear-asp        g.asyncSafePoint is not set, so that the stack may move
//	keep-direction   the direction flag stays as a backward memmove has set it
//	assume-leaves    a leaf is parked in without asking the runtime
//	no-xregs         g.xRegs.state is not set (Go 1.27 wants it)
var negative = parseNegative(os.Getenv("UFFDPAGER_NEGATIVE"))

const negativeRoom = 128 // hideFrame's, in every slot

const (
	hideRegisters = 1 << iota
	clearAsyncSafePoint
	keepDirection
	assumeLeaves
	noXRegs
)

func parseNegative(s string) (n int) {
	if strings.Contains(s, "hide-registers") {
		n |= hideRegisters
	}
	if strings.Contains(s, "clear-asp") {
		n |= clearAsyncSafePoint
	}
	for name, bit := range map[string]int{"keep-direction": keepDirection, "assume-leaves": assumeLeaves, "no-xregs": noXRegs} {
		if strings.Contains(s, name) {
			n |= bit
		}
	}
	if strings.Contains(s, "sse-only") {
		xrstorMask = 3
	}
	return n
}

// hideFrame moves the saved general registers out of the collector's sight,
// into the slot behind everything else and inverted (Go 1.27 scans there, too),
// and unhideFrame back.
//
//go:nosplit
//go:norace
//go:nocheckptr
func hideFrame(s *parkSlot, base uintptr) {
	h := slotImage(s) + hiddenAt(s)
	*word(h) = base
	for i := uintptr(1); i <= 14; i++ {
		*word(h + 8*i) = ^*word(base - 16 - 8*i)
		*word(base - 16 - 8*i) = 0
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func hiddenAt(s *parkSlot) uintptr { return slotClasses[s.class&1].size - slotHeader - 128 }

func unhideFrame(s *parkSlot) {
	h := slotImage(s) + hiddenAt(s)
	base := *word(h)
	for i := uintptr(1); i <= 14; i++ {
		*word(base - 16 - 8*i) = ^*word(h + 8*i)
	}
}
