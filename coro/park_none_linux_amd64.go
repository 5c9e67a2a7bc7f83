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
