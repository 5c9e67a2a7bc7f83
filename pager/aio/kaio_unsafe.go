//go:build linux

package aio

import (
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iocb is struct iocb of linux/aio_abi.h on little-endian machines.
type iocb struct {
	data    uint64 // comes back in ioEvent.data
	key     uint32 // the kernel's
	rwFlags int32
	opcode  uint16
	reqprio int16
	fd      uint32
	buf     uint64
	nbytes  uint64
	offset  int64
	_       uint64
	flags   uint32
	resfd   uint32
}

const (
	iocbPread  = 0 // IOCB_CMD_*
	iocbPwrite = 1
	iocbFDSync = 3

	iocbFlagResFD = 1 // IOCB_FLAG_RESFD
)

// ioEvent is struct io_event.
type ioEvent struct {
	data uint64
	obj  uint64
	res  int64
	res2 int64
}

// aioRing is struct aio_ring of fs/aio.c, the page the kernel maps into the
// process at the address that is the context's name: completions, written by
// the kernel, followed by tail. Whoever reads them moves head.
type aioRing struct {
	id       uint32
	nr       uint32 // entries
	head     uint32
	tail     uint32
	magic    uint32
	compat   uint32
	incompat uint32
	header   uint32 // bytes before the first event
}

const (
	aioRingMagic    = 0xa10a10a1
	aioRingIncompat = 0
)

// kaio is the Linux AIO backend: io_setup(2) and io_submit(2).
type kaio struct {
	ctx   unsafe.Pointer // aio_context_t: the address of the ring
	iocbs []byte         // mapped, so that the race detector leaves it alone
	flags uint32         // of every iocb
	resfd uint32

	ring *aioRing // nil: its layout is not the one we know, use io_getevents

	stash  [chunk]ioEvent // without a ring: what pending has fetched
	nstash int

	probe [1]byte // what try reads into: not on a stack, which may move
}

// noEventfd: completions signal nothing, somebody is in wait for them.
const noEventfd = -1

func newKAIO(depth int, eventfd int) (*kaio, error) {
	k := &kaio{}
	if eventfd != noEventfd {
		k.flags, k.resfd = iocbFlagResFD, uint32(eventfd)
	}
	// The kernel stores a pointer, and so do we: as a number it could not be
	// turned back into one that go vet believes in.
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&k.ctx)), 0); errno != 0 {
		return nil, errno
	}
	var err error
	k.iocbs, err = unix.Mmap(-1, 0, depth*int(unsafe.Sizeof(iocb{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		k.close()
		return nil, err
	}
	r := (*aioRing)(k.ctx)
	if r.magic == aioRingMagic && r.incompat == aioRingIncompat && r.header == uint32(unsafe.Sizeof(*r)) && r.nr >= uint32(depth) {
		k.ring = r
	}
	return k, nil
}

func (k *kaio) iocb(slot int32) *iocb {
	return (*iocb)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(k.iocbs)), uintptr(slot)*unsafe.Sizeof(iocb{})))
}

func (k *kaio) prepare(slot int32, op *Op) {
	cb := k.iocb(slot)
	*cb = iocb{
		data:  uint64(slot),
		fd:    uint32(op.FD),
		flags: k.flags,
		resfd: k.resfd,
	}
	if op.Bell != nil {
		cb.resfd = uint32(op.Bell.wake.fd)
	}
	switch op.Code {
	case Flush:
		cb.opcode = iocbFDSync
		return
	case Write:
		cb.opcode = iocbPwrite
	default:
		cb.opcode = iocbPread
	}
	if op.Buffered {
		cb.rwFlags = unix.RWF_NOWAIT
	}
	buf, off := op.rest()
	cb.buf = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(buf))))
	cb.nbytes = uint64(len(buf))
	cb.offset = off
}

func (k *kaio) submit(b batch) (int, syscall.Errno) {
	var list [batchSize]*iocb
	n := b.n - b.from
	for i := range n {
		list[i] = k.iocb(b.slots[b.from+i])
	}
	r, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, uintptr(k.ctx), uintptr(n), uintptr(unsafe.Pointer(&list)))
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// pending compares what the kernel has written with what was read. The kernel
// orders an event before the tail that covers it.
func (k *kaio) pending() int {
	if k.ring == nil {
		k.fetch()
		return k.nstash
	}
	head, tail := k.ring.head, atomic.LoadUint32(&k.ring.tail)
	if tail < head {
		tail += k.ring.nr // both are indices
	}
	return int(tail - head)
}

func (k *kaio) take(cs []completion) int {
	n := 0
	if k.ring == nil {
		k.fetch()
		for ; n < len(cs) && n < k.nstash; n++ {
			cs[n] = completion{int32(k.stash[n].data), k.stash[n].res}
		}
		k.nstash = copy(k.stash[:], k.stash[n:k.nstash])
		return n
	}
	head, tail := k.ring.head, atomic.LoadUint32(&k.ring.tail)
	for ; n < len(cs) && head != tail; n++ {
		ev := (*ioEvent)(unsafe.Add(k.ctx, uintptr(k.ring.header)+uintptr(head)*unsafe.Sizeof(ioEvent{})))
		cs[n] = completion{int32(ev.data), ev.res}
		if head++; head >= k.ring.nr {
			head = 0
		}
	}
	if n > 0 {
		// Gives the entries back to the kernel: not before they are read.
		atomic.StoreUint32(&k.ring.head, head)
	}
	return n
}

// fetch fills an empty stash with what io_getevents has at once.
func (k *kaio) fetch() {
	if k.nstash > 0 {
		return
	}
	var now unix.Timespec
	n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, uintptr(k.ctx), 0, chunk,
		uintptr(unsafe.Pointer(&k.stash)), uintptr(unsafe.Pointer(&now)), 0)
	if errno == 0 {
		k.nstash = int(n)
	}
}

// wait waits for n completions and puts their results where the slots say. Only
// for who has all that is under way to himself. It tries the call with an n of 0.
func (k *kaio) wait(n int, res *[inPlaceMost]int64) syscall.Errno {
	var (
		now  unix.Timespec
		most *unix.Timespec
	)
	if n == 0 {
		most = &now
	}
	for {
		got, errno := k.getEvents(n, max(n, 1), res, most)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		if n -= got; n <= 0 {
			return 0
		}
	}
}

// getEvents is io_getevents(2): least to most completions, or those that have come
// when the time is over (nil: never).
func (k *kaio) getEvents(least, most int, res *[inPlaceMost]int64, over *unix.Timespec) (got int, errno syscall.Errno) {
	var events [inPlaceMost]ioEvent
	n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, uintptr(k.ctx), uintptr(least), uintptr(most),
		uintptr(unsafe.Pointer(&events)), uintptr(unsafe.Pointer(over)), 0)
	if errno != 0 {
		return 0, errno
	}
	for _, ev := range events[:n] {
		res[ev.data] = ev.res
	}
	return int(n), 0
}

// cancel does nothing: no file system or block driver lets io_cancel(2) have a
// read or write back, it only works for polls.
func (k *kaio) cancel() {}

func (k *kaio) close() error {
	var err error
	if _, _, errno := unix.Syscall(unix.SYS_IO_DESTROY, uintptr(k.ctx), 0, 0); errno != 0 {
		err = errno
	}
	if k.iocbs != nil {
		if e := unix.Munmap(k.iocbs); err == nil {
			err = e
		}
	}
	return err
}
