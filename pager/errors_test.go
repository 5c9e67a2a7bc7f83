package pager

import (
	"errors"
	"fmt"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Errors of the packages below that have a name of this package's are found by either
// name, whoever returns them.
func TestErrorsOfStoresHaveOneName(t *testing.T) {
	for name, c := range map[string]struct{ err, is error }{
		"a store that is read-only":    {fmt.Errorf("x: %w", store.ErrReadOnly), ErrReadOnly},
		"a region that is read-only":   {errReadOnly, store.ErrReadOnly},
		"what a store cannot do":       {fmt.Errorf("x: %w", store.ErrNotSupported), ErrNotSupported},
		"what an engine cannot do":     {fmt.Errorf("x: %w", aio.ErrNotSupported), ErrNotSupported},
		"what a region cannot do":      {unsupported("x"), store.ErrNotSupported},
		"what a region cannot do, too": {unsupported("x"), errors.ErrUnsupported},
		"a file that is busy":          {fmt.Errorf("x: %w", store.ErrBusy), ErrBusy},
	} {
		if !errors.Is(c.err, c.is) {
			t.Errorf("%s: %q is not %q", name, c.err, c.is)
		}
	}
}
