package journal

import (
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// ram is a store over a slice: images come by the thousand, and mappings for
// each would be most of the work.
type ram struct{ b []byte }

func (r *ram) Size() int64                  { return int64(len(r.b)) }
func (r *ram) BlockSize() int               { return 1 }
func (r *ram) Writable() bool               { return true }
func (r *ram) Kernel() (store.Kernel, bool) { return store.Kernel{FD: -1}, false }
func (r *ram) Close() error                 { return nil }
func (r *ram) String() string               { return "ram" }
func (r *ram) Discard(off, n int64) error   { clear(r.b[off : off+n]); return nil }

func (r *ram) Truncate(n int64) error {
	if was := int64(len(r.b)); n > was {
		r.b = append(r.b, make([]byte, n-was)...)
	}
	r.b = r.b[:n]
	return nil
}

func (r *ram) Start(_ aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		at := r.b[min(op.Off, int64(len(r.b))):]
		switch op.Code {
		case aio.Read:
			op.N = copy(op.Buf, at)
		case aio.Write:
			copy(at, op.Buf)
			op.N = len(op.Buf)
		}
		op.Done(op)
	}
}
