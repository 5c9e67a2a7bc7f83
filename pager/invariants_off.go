//go:build linux && !uffdpager_invariants

package pager

// invariants is whether the pager checks itself; see invariants_linux.go. It is
// a constant, so that what hangs on it is not in an ordinary binary at all.
const invariants = false

const unmappedAfter = unmappedSoon

// pinCheck is what a Pin carries to be found out when it is used after Release.
type pinCheck struct{}

func watchPin(*Region, int64, int64) pinCheck { return pinCheck{} }
func (pinCheck) use()                         {}
func (pinCheck) end()                         {}

func (*Pager) transition() {}
