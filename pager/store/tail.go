package store

import (
	"io/fs"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// finish ends op with n bytes and err.
func finish(op *aio.Op, n int, err error) {
	op.N, op.Err = n, err
	op.Done(op)
}

// part is the share of an op that goes to the engine when the op itself
// cannot: the caller's op is left alone until the whole of it is finished.
type part struct {
	aio.Op
	whole *aio.Op
	f     *File
	size  int64 // of the file when the op was started
}

// startTail does what Start cannot leave to the engine as it stands: ops that
// meet the end of the file, and those that are refused.
func (f *File) startTail(e aio.Engine, op *aio.Op) {
	switch {
	case f.closed.Load():
		finish(op, 0, f.fail(op.Code.String(), fs.ErrClosed))
	case op.Code == aio.Read:
		f.readTail(e, op)
	case !f.writable:
		finish(op, 0, ErrReadOnly)
	case op.Code == aio.Write:
		f.writeTail(e, op)
	default: // Truncate has moved the end since Start looked
		op.FD = f.fd
		e.Submit([]*aio.Op{op})
	}
}

// readTail reads across Size. The file may have grown behind our back, and a
// direct read moves whole blocks: what lies past Size is not ours to show.
func (f *File) readTail(e aio.Engine, op *aio.Op) {
	size := f.size.Load()
	if op.Off >= size {
		finish(op, 0, nil)
		return
	}
	p := &part{whole: op, f: f, size: size}
	p.Op = aio.Op{Code: aio.Read, FD: f.fd, Off: op.Off, Buf: op.Buf, Done: readTailDone, Arg: p}
	e.Submit([]*aio.Op{&p.Op})
}

func readTailDone(o *aio.Op) {
	p := o.Arg.(*part)
	n := o.N
	if most := int(p.size - p.Off); n > most {
		clear(p.Buf[most:n])
		n = most
	}
	finish(p.whole, n, o.Err)
}

// writeTail writes what lies before the cut through the engine and the rest,
// if any, through the page cache; bytes past Size are dropped.
func (f *File) writeTail(e aio.Engine, op *aio.Op) {
	size := f.size.Load()
	if op.Off >= size {
		finish(op, len(op.Buf), nil)
		return
	}
	p := &part{whole: op, f: f, size: size}
	direct := f.cut(size) - op.Off
	if direct <= 0 {
		go p.writeRest(0)
		return
	}
	direct = min(direct, int64(len(op.Buf)))
	p.Op = aio.Op{Code: aio.Write, FD: f.fd, Off: op.Off, Buf: op.Buf[:direct], Done: writeCutDone, Arg: p}
	e.Submit([]*aio.Op{&p.Op})
}

func writeCutDone(o *aio.Op) {
	p := o.Arg.(*part)
	switch {
	case o.Err != nil || o.N < len(o.Buf):
		finish(p.whole, o.N, o.Err)
	case o.Off+int64(o.N) >= p.size:
		finish(p.whole, len(p.whole.Buf), nil)
	default:
		go p.writeRest(o.N)
	}
}

// writeRest writes from byte done of the op to Size through the buffered
// descriptor. It runs on a goroutine of its own because it waits, on Linux AIO
// even in io_submit; there is never more than one per store, since no two
// writes of the last page are in flight together.
func (p *part) writeRest(done int) {
	op := p.whole
	n, err := p.f.writeBuffered(op.Buf[done:], op.Off+int64(done))
	if err != nil {
		finish(op, done+n, err)
		return
	}
	finish(op, len(op.Buf), nil)
}
