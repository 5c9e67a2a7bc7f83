package durability

import (
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// heap is a store over a slice: images come by the thousand, and a mapping for
// each would be most of the work.
type heap struct {
	b        []byte
	readOnly bool
}

func (h *heap) Size() int64                  { return int64(len(h.b)) }
func (h *heap) BlockSize() int               { return 1 }
func (h *heap) Writable() bool               { return !h.readOnly }
func (h *heap) Kernel() (store.Kernel, bool) { return store.Kernel{FD: -1}, false }
func (h *heap) Close() error                 { return nil }
func (h *heap) String() string               { return "image" }
func (h *heap) Discard(off, n int64) error   { clear(h.b[off : off+n]); return nil }

func (h *heap) Truncate(n int64) error {
	if was := int64(len(h.b)); n > was {
		h.b = append(h.b, make([]byte, n-was)...)
	}
	h.b = h.b[:n]
	return nil
}

func (h *heap) Start(_ aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		at := h.b[min(op.Off, int64(len(h.b))):]
		switch op.N, op.Err = 0, nil; op.Code {
		case aio.Read:
			op.N = copy(op.Buf, at)
		case aio.Write:
			copy(at, op.Buf)
			op.N = len(op.Buf)
		}
		op.Done(op)
	}
}

// deadline is short unless the long versions were asked for.
func deadline(short, long time.Duration) time.Duration {
	if fixture.Torture() {
		return long
	}
	return short
}
