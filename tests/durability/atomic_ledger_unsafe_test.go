package durability

import "unsafe"

// ledgerOf lays the ledger over shared memory, which is page-aligned.
func ledgerOf(b []byte) *ledger { return (*ledger)(unsafe.Pointer(unsafe.SliceData(b))) }
