package coro

// Parked is a goroutine that stands still at the instruction that faulted,
// until Resume.
type Parked struct {
	Fault
	slot uintptr
	seq  uint32
}
