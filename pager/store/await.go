package store

import (
	"context"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// await gives op to st, with e for its I/O, and waits for its end. Nobody else may reap e.
func await(st Store, e aio.Engine, op *aio.Op) error {
	ctx, done := context.WithCancel(context.Background())
	defer done()
	op.Done = func(*aio.Op) { done() }
	st.Start(e, []*aio.Op{op})
	for ctx.Err() == nil {
		if e.Reap(1) == 0 {
			_ = e.Wait(ctx) // ends with ctx, wherever Done runs
		}
	}
	return op.Err
}
