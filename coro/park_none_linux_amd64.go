//go:build uffdpager_nointernals

package coro

//go:nosplit
//go:norace
//go:nocheckptr
func park(f *Fault, a *arena, ctx *sigContext) Reason {
	if a.mode == Block {
		return ModeBlock
	}
	return Inactive
}

// isRaise would recognise the signal of a parked goroutine whose load failed.
//
//go:nosplit
//go:norace
//go:nocheckptr
func isRaise(info *sigInfo, ctx *sigContext) bool { return false }

//go:nosplit
//go:norace
//go:nocheckptr
func deliverParked(info *sigInfo, ctx *sigContext) {}
