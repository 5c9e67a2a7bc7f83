package coro

import (
	"runtime"
	"slices"

	"github.com/uffdpager/uffdpager/coro/bare"
)

var counters struct {
	faults, landed, retried, parked, served, delivered, blocked uint64
}

// The table of places that could not be parked is filled in signal context: a
// hash of PCs, no lock, never emptied. Names come later.
const (
	blockSlots  = 1024 // a power of two
	blockProbes = 16
)

type blockEntry struct {
	key   uint64 // PC, and the reason in the bits that no user address has
	count uint64
}

var (
	blockTable [blockSlots]blockEntry
	blockRest  uint64 // found no room
)

//go:nosplit
//go:norace
//go:nocheckptr
func countBlocked(pc uintptr, why Reason) {
	bare.Add64(&counters.blocked, 1)
	key := uint64(pc)&(1<<48-1) | uint64(why)<<48
	h := key * 0x9e3779b97f4a7c15 >> 40
	for i := uint64(0); i < blockProbes; i++ {
		e := &blockTable[(h+i)%blockSlots]
		if k := bare.Load64(&e.key); k == key || k == 0 && (bare.Cas64(&e.key, 0, key) || bare.Load64(&e.key) == key) {
			bare.Add64(&e.count, 1)
			return
		}
	}
	bare.Add64(&blockRest, 1)
}

// ReadStats returns the counters as they are now. It resolves function names:
// not for hot paths.
func ReadStats() Stats {
	s := Stats{
		Faults:    bare.Load64(&counters.faults),
		Landed:    bare.Load64(&counters.landed),
		Retried:   bare.Load64(&counters.retried),
		Parked:    bare.Load64(&counters.parked),
		Served:    bare.Load64(&counters.served),
		Delivered: bare.Load64(&counters.delivered),
		Blocked:   bare.Load64(&counters.blocked),
	}
	type place struct {
		name string
		why  Reason
	}
	sum := map[place]uint64{}
	for i := range blockTable {
		e := &blockTable[i]
		k, n := bare.Load64(&e.key), bare.Load64(&e.count)
		if n == 0 {
			continue
		}
		name := "code that is not Go"
		if f := runtime.FuncForPC(uintptr(k & (1<<48 - 1))); f != nil {
			name = f.Name()
		}
		sum[place{name, Reason(k >> 48)}] += n
	}
	for p, n := range sum {
		s.BlockedBy = append(s.BlockedBy, Blocked{p.name, p.why, n})
	}
	if n := bare.Load64(&blockRest); n != 0 {
		s.BlockedBy = append(s.BlockedBy, Blocked{"", Refused, n})
	}
	slices.SortFunc(s.BlockedBy, func(a, b Blocked) int {
		switch {
		case a.Count > b.Count:
			return -1
		case a.Count < b.Count:
			return 1
		case a.Func < b.Func:
			return -1
		case a.Func > b.Func:
			return 1
		}
		return int(a.Reason) - int(b.Reason)
	})
	return s
}
