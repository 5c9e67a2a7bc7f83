//go:build linux

package pager

import (
	"sync/atomic"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// spyStore shows every write to a test before the store below sees it.
type spyStore struct {
	store.Store
	onWrite func(off int64, b []byte)
	writes  atomic.Int64
}

func (s *spyStore) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		if op.Code == aio.Write {
			s.writes.Add(1)
			s.onWrite(op.Off, op.Buf)
		}
	}
	s.Store.Start(e, ops)
}
