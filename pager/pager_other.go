//go:build !linux

package pager

// TEMPORARY: signatures of the public contract so that colleagues' code compiles while the core is being written.

import (
	"context"

	"github.com/uffdpager/uffdpager/pager/store"
)

type Pager struct{}
type Region struct{}
type Pin struct{}
type Lock struct{}
type SyncOp struct{}

func New(o Options) (*Pager, error)                                  { return nil, ErrNotSupported }
func (p *Pager) Map(s store.Store, o RegionOptions) (*Region, error) { return nil, ErrNotSupported }
func (p *Pager) SetBudget(bytes int64) error                         { return ErrNotSupported }
func (p *Pager) Stats() Stats                                        { return Stats{} }
func (p *Pager) Close() error                                        { return ErrNotSupported }
func (p *Pager) Engine() string                                      { return "" } // name of the AIO engine in use
func (r *Region) Len() int64                                         { return 0 }
func (r *Region) PageSize() int                                      { return 0 }
func (r *Region) Direct() bool                                       { return false } // O_DIRECT in use
func (r *Region) Bytes() []byte                                      { return nil }
func (r *Region) Raw() error                                         { return ErrNotSupported }
func (r *Region) ReadAt(b []byte, off int64) (int, error)            { return 0, ErrNotSupported }
func (r *Region) WriteAt(b []byte, off int64) (int, error)           { return 0, ErrNotSupported }
func (r *Region) Acquire(ctx context.Context, off, n int64) (Pin, error) {
	return Pin{}, ErrNotSupported
}
func (r *Region) AcquireWrite(ctx context.Context, off, n int64) (Pin, error) {
	return Pin{}, ErrNotSupported
}
func (r *Region) AcquireV(ctx context.Context, rs []Range, pins []Pin) error { return ErrNotSupported }
func (r *Region) TryAcquire(off, n int64) (Pin, bool)                        { return Pin{}, false }
func (p Pin) Bytes() []byte                                                  { return nil }
func (p Pin) Release()                                                       {}
func (r *Region) View(ctx context.Context, fn func(mem []byte) error) error  { return ErrNotSupported }
func (r *Region) Update(ctx context.Context, fn func(mem []byte) error) error {
	return ErrNotSupported
}
func (r *Region) Prefetch(offs []int64, n int64)                     {}
func (r *Region) LockEventfd(off, n int64, efd int) (*Lock, error)   { return nil, ErrNotSupported }
func (l *Lock) Done() <-chan struct{}                                { return nil }
func (l *Lock) Err() error                                           { return nil } // nil until Done
func (l *Lock) Wait(ctx context.Context) error                       { return nil }
func (l *Lock) Unlock()                                              {} // also before Done: cancels
func (r *Region) SyncEventfd(off, n int64, efd int) (*SyncOp, error) { return nil, ErrNotSupported }
func (o *SyncOp) Done() <-chan struct{}                              { return nil }
func (o *SyncOp) Err() error                                         { return nil }
func (o *SyncOp) Wait(ctx context.Context) error                     { return nil }
func (r *Region) Sync(ctx context.Context) error                     { return ErrNotSupported }
func (r *Region) SyncRange(ctx context.Context, off, n int64) error  { return ErrNotSupported }
func (r *Region) Commit(ctx context.Context) error                   { return ErrNotSupported }
func (r *Region) Resize(ctx context.Context, size int64) error       { return ErrNotSupported }
func (r *Region) Advise(off, n int64, a Advice) error                { return ErrNotSupported }
func (r *Region) Discard(ctx context.Context, off, n int64) error    { return ErrNotSupported }
func (r *Region) Residency(off, n int64) (resident, dirty int64)     { return 0, 0 }
func (r *Region) Stats() Stats                                       { return Stats{} }
func (r *Region) Close() error                                       { return ErrNotSupported }
func Guard(fn func() error) error                                    { return fn() }
func FaultOf(recovered any) (*FaultError, bool)                      { return nil, false }
