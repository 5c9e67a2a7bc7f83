//go:build !linux || !amd64 || uffdpager_nointernals

package coro

// NextParked appends the goroutines parked since the last call to buf, waiting
// for one if there is none, and returns buf as it is after [WakeParked]. In
// this build nothing is ever parked: it waits for WakeParked.
func NextParked(buf []Parked) []Parked {
	<-wakeParked
	return buf
}

// MoreParked appends the goroutines parked since the last call to buf, without
// waiting for any.
func MoreParked(buf []Parked) []Parked { return buf }

// ParkedSoFar is how many goroutines have been parked: none.
func ParkedSoFar() uint64 { return 0 }

// ParkedAt is the address at which the n-th of them faulted: there is none.
func ParkedAt(n uint64) uintptr { return 0 }

var wakeParked = make(chan struct{}, 1)

// WakeParked makes the current or the next call of NextParked return.
func WakeParked() {
	select {
	case wakeParked <- struct{}{}:
	default:
	}
}

// Resume panics: in this build nothing is ever parked.
func (p Parked) Resume(errno uintptr) { panic("coro: Resume of a goroutine that is not parked") }

// ParkStatus says whether goroutines are parked in place in this process, and
// if not, why.
func ParkStatus() (active bool, why string) { return false, "not in this build" }

// AllowLeaf returns ErrNotSupported: in this build nothing is ever parked.
func AllowLeaf(fn any) error { return ErrNotSupported }
