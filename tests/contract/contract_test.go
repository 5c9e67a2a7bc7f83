// Package contract names everything that outside programs compile against, with
// its type. It breaks the build when a name or a signature changes, on every
// system: what is not supported somewhere is there nevertheless.
package contract

import (
	"context"
	"errors"
	"io"
	"os"
	"reflect"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

type (
	p = *pager.Pager
	r = *pager.Region
)

// Package pager.
var (
	_ func(pager.Options) (p, error) = pager.New
	_ func(func() error) error       = pager.Guard

	_ func(any) (*pager.FaultError, bool) = pager.FaultOf

	_ func(p, store.Store, pager.RegionOptions) (r, error) = p.Map
	_ func(p, int64) error                                 = p.SetBudget
	_ func(p) pager.Stats                                  = p.Stats
	_ func(p) error                                        = p.Close

	_ func(r) int64                                              = r.Len
	_ func(r) []byte                                             = r.Bytes
	_ func(r) error                                              = r.Raw
	_ func(r, []byte, int64) (int, error)                        = r.ReadAt
	_ func(r, []byte, int64) (int, error)                        = r.WriteAt
	_ func(r, context.Context, int64, int64) (pager.Pin, error)  = r.Acquire
	_ func(r, context.Context, int64, int64) (pager.Pin, error)  = r.AcquireWrite
	_ func(r, context.Context, []pager.Range, []pager.Pin) error = r.AcquireV
	_ func(r, int64, int64) (pager.Pin, bool)                    = r.TryAcquire
	_ func(r, context.Context, func(mem []byte) error) error     = r.View
	_ func(r, context.Context, func(mem []byte) error) error     = r.Update
	_ func(r, []int64, int64)                                    = r.Prefetch
	_ func(r, int64, int64, int) (*pager.Lock, error)            = r.LockEventfd
	_ func(r, int64, int64, int) (*pager.SyncOp, error)          = r.SyncEventfd
	_ func(r, context.Context) error                             = r.Sync
	_ func(r, context.Context, int64, int64) error               = r.SyncRange
	_ func(r, context.Context) error                             = r.Commit
	_ func(r, context.Context, int64) error                      = r.Resize
	_ func(r, int64, int64, pager.Advice) error                  = r.Advise
	_ func(r, context.Context, int64, int64) error               = r.Discard
	_ func(r, int64, int64) (resident, dirty int64)              = r.Residency
	_ func(r) pager.Stats                                        = r.Stats
	_ func(r) error                                              = r.Close
	_ func(pager.Pin) []byte                                     = pager.Pin.Bytes
	_ func(pager.Pin)                                            = pager.Pin.Release
	_ func(*pager.Lock) <-chan struct{}                          = (*pager.Lock).Done
	_ func(*pager.Lock) error                                    = (*pager.Lock).Err
	_ func(*pager.Lock, context.Context) error                   = (*pager.Lock).Wait
	_ func(*pager.Lock)                                          = (*pager.Lock).Unlock
	_ func(*pager.SyncOp) <-chan struct{}                        = (*pager.SyncOp).Done
	_ func(*pager.SyncOp) error                                  = (*pager.SyncOp).Err
	_ func(*pager.SyncOp, context.Context) error                 = (*pager.SyncOp).Wait
	_ interface{ String() string }                               = pager.Stats{}
	_ error                                                      = &pager.FaultError{Op: "read", Offset: 0, Err: unix.EIO}
	_                                                            = pager.Options{Budget: 0, QueueDepth: 0, Engine: aio.Auto, Park: coro.Auto, Logger: (*zap.Logger)(nil), Events: (*pager.EventListener)(nil)}
	_                                                            = pager.RegionOptions{ReadOnly: true, Private: false, PageSize: 0, MaxSize: 0, MinResident: 0, MaxResident: 0, Durability: pager.InPlace,
		Prefetch: prefetch.Policy(nil), Evict: evict.Policy(nil), Writeback: pager.Writeback{}, Verify: func(page int64, data []byte) error { return nil },
		OnReadError: pager.Fault}
	_ = []pager.Durability{pager.InPlace, pager.Atomic}
	_ = []pager.OnReadError{pager.Fault, pager.Wait}
	_ = []pager.Advice{pager.Normal, pager.Random, pager.Sequential, pager.WillNeed, pager.DontNeed, pager.Cold}
	_ = []pager.Range{{Off: 0, Len: 0}}
	_ = pager.Stats{}.Blocked
)

// Package store.
var (
	_ func(string, store.FileOptions) (store.Store, error)   = store.OpenFile
	_ func(*os.File, store.FileOptions) (store.Store, error) = store.NewFile
	_ func(int64) store.Store                                = store.NewMemory
	_ func(io.ReaderAt, int64) store.Store                   = store.FromReaderAt

	_ = store.FileOptions{ReadOnly: true, Create: false, Size: 0, Direct: store.DirectAuto, Lock: store.LockWriters}
	_ = []store.Direct{store.DirectAuto, store.DirectRequire, store.DirectOff}
)

// Package coro.
var (
	_ func(context.Context, int) (uint64, error) = coro.Await
	_ func() *coro.Loop                          = coro.NewLoop
	_ func(any) error                            = coro.AllowLeaf

	_ = []coro.Mode{coro.Auto, coro.InPlace, coro.Block, coro.Restart, coro.Require}
)

// TestSentinels: errors are found by errors.Is, through a FaultError too.
func TestSentinels(t *testing.T) {
	all := []error{pager.ErrClosed, pager.ErrReadOnly, pager.ErrBudget, pager.ErrBusy, pager.ErrCannotPark, pager.ErrNotSupported}
	for i, e := range all {
		for j, o := range all {
			if errors.Is(e, o) != (i == j) {
				t.Errorf("errors.Is(%v, %v) is %v", e, o, i != j)
			}
		}
		if !errors.Is(&pager.FaultError{Op: "read", Err: e}, e) {
			t.Errorf("a FaultError hides %v", e)
		}
	}
	if !errors.Is(pager.ErrNotSupported, errors.ErrUnsupported) {
		t.Error("ErrNotSupported is not errors.ErrUnsupported")
	}
	var no unix.Errno
	if err := error(&pager.FaultError{Op: "read", Err: unix.EIO}); !errors.As(err, &no) || no != unix.EIO {
		t.Error("a FaultError hides its errno")
	}
}

// TestZeroValues: what is named "default" is the zero value.
func TestZeroValues(t *testing.T) {
	var o pager.RegionOptions
	if o.Durability != pager.InPlace || o.OnReadError != pager.Fault {
		t.Error("the zero RegionOptions are not the defaults")
	}
	if coro.Auto != 0 || aio.Auto != 0 || pager.Normal != 0 {
		t.Error("a zero mode, engine or advice is not the default")
	}
	if v := reflect.ValueOf(pager.Options{}); !v.IsZero() {
		t.Error("the zero Options are not zero")
	}
}
