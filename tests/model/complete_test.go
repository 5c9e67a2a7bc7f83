package model

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/uffdpager/uffdpager/pager"
)

// covered says which operation of the table calls a method; a name in
// parentheses says who else does.
var covered = map[string]string{
	"Pager.Close":     "(every world)",
	"Pager.Commit":    "Commit",
	"Pager.Engine":    "Look",
	"Pager.Map":       "Reopen",
	"Pager.SetBudget": "SetBudget",
	"Pager.Stats":     "SetBudget",

	"Region.Acquire":      "Acquire",
	"Region.AcquireV":     "AcquireV",
	"Region.AcquireWrite": "AcquireWrite",
	"Region.Advise":       "Advise",
	"Region.Bytes":        "Bytes",
	"Region.Close":        "Reopen",
	"Region.Commit":       "Commit",
	"Region.Direct":       "Look",
	"Region.Discard":      "Discard",
	"Region.Len":          "Resize",
	"Region.LockEventfd":  "LockEventfd",
	"Region.PageSize":     "Look",
	"Region.Prefetch":     "Prefetch",
	"Region.Raw":          "Look",
	"Region.ReadAt":       "ReadAt",
	"Region.Residency":    "Residency",
	"Region.Resize":       "Resize",
	"Region.Stats":        "Look",
	"Region.Sync":         "Sync",
	"Region.SyncEventfd":  "SyncEventfd",
	"Region.SyncRange":    "SyncRange",
	"Region.TryAcquire":   "TryAcquire",
	"Region.Update":       "Update",
	"Region.View":         "View",
	"Region.WriteAt":      "WriteAt",

	"Pin.Bytes":   "Acquire",
	"Pin.Release": "Acquire",

	"Lock.Done":   "LockEventfd",
	"Lock.Err":    "LockEventfd",
	"Lock.Unlock": "LockEventfd",
	"Lock.Wait":   "LockEventfd",

	"SyncOp.Done": "SyncEventfd",
	"SyncOp.Err":  "SyncEventfd",
	"SyncOp.Wait": "(tests/liveness)",
}

// TestTheModelIsComplete: whoever adds a public method adds it to the model, or
// says here where else it is tried.
func TestTheModelIsComplete(t *testing.T) {
	known := map[string]bool{}
	for _, o := range ops {
		known[o.name] = true
	}
	seen := map[string]bool{}
	for _, v := range []any{(*pager.Pager)(nil), (*pager.Region)(nil), pager.Pin{}, (*pager.Lock)(nil), (*pager.SyncOp)(nil)} {
		typ := reflect.TypeOf(v)
		name := typ.Name()
		if typ.Kind() == reflect.Pointer {
			name = typ.Elem().Name()
		}
		for i := range typ.NumMethod() {
			m := name + "." + typ.Method(i).Name
			if m == "Pager.CheckQuiet" {
				continue // of the build tag uffdpager_invariants
			}
			seen[m] = true
			switch op, ok := covered[m]; {
			case !ok:
				t.Errorf("%s is in no operation of the model", m)
			case op[0] != '(' && !known[op]:
				t.Errorf("%s is said to be in the operation %q, which does not exist", m, op)
			}
		}
	}
	for m := range covered {
		if !seen[m] && seen["Pager.Map"] { // off Linux there are stubs without some
			t.Errorf("%s is listed and does not exist", m)
		}
	}
}

// FuzzHistory lets the fuzzer choose the histories that TestSequential draws at
// random: worlds, operations and their ranges.
func FuzzHistory(f *testing.F) {
	writes := writesSupported(f)
	f.Fuzz(rapid.MakeFuzz(func(rt *rapid.T) { history(rt, "", writes) }))
}
