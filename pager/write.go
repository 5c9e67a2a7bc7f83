//go:build linux

package pager

import (
	"context"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager/store"
)

// TEMPORARY while the write side is being written.
type writeState struct{}
type flusher struct{}
type SyncOp struct{}

func checkWrite(s store.Store, o *RegionOptions) error                 { o.ReadOnly = true; return nil }
func (r *Region) forceClean(page uint64)                               {}
func (r *Region) syncForClose() error                                  { return nil }
func (r *Region) closeWrite() error                                    { return nil }
func (r *Region) beginUpdate(ctx context.Context) error                { return ErrReadOnly }
func (r *Region) endUpdate()                                           {}
func (r *Region) dropWritePin(page uint64)                             {}
func (r *Region) makeWritable(ctx context.Context, pr pageRange) error { return ErrReadOnly }
func (p *Pager) wakeFlusher()                                          {}
func (p *Pager) flushForRoom()                                         {}
func (p *Pager) flushTick()                                            {}
func (r *Region) startParkedWrite(pk coro.Parked, page uint64)         { r.leave(); pk.Resume(errnoReadOnly) }
func serveWrite(d *desc, page uint64) uintptr                          { return errnoReadOnly }
func (r *Region) WriteAt(b []byte, off int64) (int, error)             { return 0, ErrNotSupported }
func (r *Region) AcquireWrite(ctx context.Context, off, n int64) (Pin, error) {
	return Pin{}, ErrNotSupported
}
func (r *Region) Update(ctx context.Context, fn func(mem []byte) error) error { return ErrNotSupported }
func (r *Region) SyncEventfd(off, n int64, efd int) (*SyncOp, error)          { return nil, ErrNotSupported }
func (o *SyncOp) Done() <-chan struct{}                                       { return nil }
func (o *SyncOp) Err() error                                                  { return nil }
func (o *SyncOp) Wait(ctx context.Context) error                              { return nil }
func (r *Region) Sync(ctx context.Context) error                              { return nil }
func (r *Region) SyncRange(ctx context.Context, off, n int64) error           { return ErrNotSupported }
func (r *Region) Commit(ctx context.Context) error                            { return ErrNotSupported }
func (r *Region) Resize(ctx context.Context, size int64) error                { return ErrNotSupported }
func (r *Region) Discard(ctx context.Context, off, n int64) error             { return ErrNotSupported }
