//go:build !uffdpager_nointernals && !uffdpager_negative

package coro

// negative breaks parking on purpose, see negative_unsafe_linux_amd64.go.
const negative, negativeRoom = 0, 0

const (
	hideRegisters = 1 << iota
	clearAsyncSafePoint
	keepDirection
	assumeLeaves
	noXRegs
)

//go:nosplit
//go:norace
//go:nocheckptr
func hideFrame(s *parkSlot, base uintptr) {}

func unhideFrame(s *parkSlot) {}
