//go:build !linux

package pager

import (
	"context"

	"github.com/uffdpager/uffdpager/pager/store"
)

// Off Linux there is no userfaultfd: everything builds, New returns
// ErrNotSupported, and so nothing below is ever reached with a receiver.

type (
	Pager  struct{} // see the Linux documentation
	Region struct{}
	Pin    struct{}
	Lock   struct{}
	SyncOp struct{}
)

func New(Options) (*Pager, error)                                  { return nil, ErrNotSupported }
func (*Pager) Map(s store.Store, _ RegionOptions) (*Region, error) { return nil, closeStore(s) }
func (*Pager) SetBudget(int64) error                               { return ErrNotSupported }
func (*Pager) Stats() Stats                                        { return Stats{} }
func (*Pager) Commit(context.Context, ...*Region) error            { return ErrNotSupported }
func (*Pager) Close() error                                        { return ErrNotSupported }
func (*Pager) Engine() string                                      { return "none" }
func (*Region) Len() int64                                         { return 0 }
func (*Region) PageSize() int                                      { return FrameSize }
func (*Region) Direct() bool                                       { return false }
func (*Region) Bytes() []byte                                      { return nil }
func (*Region) Raw() error                                         { return ErrNotSupported }
func (*Region) ReadAt([]byte, int64) (int, error)                  { return 0, ErrNotSupported }
func (*Region) WriteAt([]byte, int64) (int, error)                 { return 0, ErrNotSupported }
func (*Region) Acquire(context.Context, int64, int64) (Pin, error) { return Pin{}, ErrNotSupported }
func (*Region) AcquireWrite(context.Context, int64, int64) (Pin, error) {
	return Pin{}, ErrNotSupported
}
func (*Region) AcquireV(context.Context, []Range, []Pin) error   { return ErrNotSupported }
func (*Region) TryAcquire(int64, int64) (Pin, bool)              { return Pin{}, false }
func (Pin) Bytes() []byte                                        { return nil }
func (Pin) Release()                                             {}
func (*Region) View(context.Context, func([]byte) error) error   { return ErrNotSupported }
func (*Region) Update(context.Context, func([]byte) error) error { return ErrNotSupported }
func (*Region) Prefetch([]int64, int64)                          {}
func (*Region) LockEventfd(int64, int64, int) (*Lock, error)     { return nil, ErrNotSupported }
func (*Lock) Done() <-chan struct{}                              { return nil }
func (*Lock) Err() error                                         { return ErrNotSupported }
func (*Lock) Wait(context.Context) error                         { return ErrNotSupported }
func (*Lock) Unlock()                                            {}
func (*Region) SyncEventfd(int64, int64, int) (*SyncOp, error)   { return nil, ErrNotSupported }
func (*SyncOp) Done() <-chan struct{}                            { return nil }
func (*SyncOp) Err() error                                       { return ErrNotSupported }
func (*SyncOp) Wait(context.Context) error                       { return ErrNotSupported }
func (*Region) Sync(context.Context) error                       { return ErrNotSupported }
func (*Region) SyncRange(context.Context, int64, int64) error    { return ErrNotSupported }
func (*Region) Commit(context.Context) error                     { return ErrNotSupported }
func (*Region) Resize(context.Context, int64) error              { return ErrNotSupported }
func (*Region) Advise(int64, int64, Advice) error                { return ErrNotSupported }
func (*Region) Discard(context.Context, int64, int64) error      { return ErrNotSupported }
func (*Region) Residency(int64, int64) (resident, dirty int64)   { return 0, 0 }
func (*Region) Stats() Stats                                     { return Stats{} }
func (*Region) Close() error                                     { return ErrNotSupported }

// Guard runs fn.
func Guard(fn func() error) error { return fn() }

// FaultOf is always false.
func FaultOf(any) (*FaultError, bool) { return nil, false }

// CgroupLimit is always 0.
func CgroupLimit() int64 { return 0 }

func closeStore(s store.Store) error {
	if s != nil {
		s.Close()
	}
	return ErrNotSupported
}
