package coro

// NextParked appends the goroutines parked since the last call to buf, waiting
// for one if there is none, and returns buf as it is after [WakeParked]. One
// goroutine of the process calls it, in a loop; it must not touch an arena.
func NextParked(buf []Parked) []Parked { select {} }

// WakeParked makes the current or next call of NextParked return.
func WakeParked() {}

// Resume runs the instruction of p again, or, with an errno, delivers its fault. It
// must be called exactly once. It does not wait.
func (p Parked) Resume(errno uintptr) {}

// ParkStatus says whether goroutines are parked in place in this process, and
// if not, why.
func ParkStatus() (active bool, why string) { return false, "not built in" }
