//go:build linux

package aio

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringFixed is io_uring with a registered file and registered buffers, which saves the
// kernel the look-up of the file and the pinning of the buffer's pages for each read. It
// is here to measure what that is worth, and not an engine: whoever opens, closes or
// maps something would have to tell the ring, which otherwise goes on with what it knew.
type ringFixed struct{ *uring }

const (
	ringRegBuffers = 0 // IORING_REGISTER_BUFFERS
	ringRegFiles   = 2 // IORING_REGISTER_FILES
	ringReadFixed  = 4 // IORING_OP_READ_FIXED
	ringFixedFile  = 1 // IOSQE_FIXED_FILE
)

func (r ringFixed) prepare(slot int32, op *Op) {
	r.uring.prepare(slot, op)
	if op.Code != Read {
		return
	}
	e := (*sqe)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(r.sqes)), uintptr(slot)*unsafe.Sizeof(sqe{})))
	e.opcode, e.flags, e.fd = ringReadFixed, ringFixedFile, 0 // the first file; the first buffer, as left 0
}

// benchEngines is all engines, and io_uring with what it may know beforehand: fd, and
// buf, from which all reads of the benchmark are.
func benchEngines(fd int, buf []byte) []benchEngine {
	var list []benchEngine
	for _, k := range engines {
		list = append(list, benchEngine{k.name, k.open})
		if k.name != "io_uring" {
			continue
		}
		list = append(list, benchEngine{"io_uring-fixed", func(depth int) (Engine, error) {
			e, err := k.open(depth)
			if err != nil {
				return nil, err
			}
			ring := e.(*engine).back.(*uring)
			iov := unix.Iovec{Base: &buf[0]}
			iov.SetLen(len(buf))
			file := int32(fd)
			for _, reg := range []struct {
				code uintptr
				arg  unsafe.Pointer
			}{{ringRegFiles, unsafe.Pointer(&file)}, {ringRegBuffers, unsafe.Pointer(&iov)}} {
				if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(ring.fd), reg.code, uintptr(reg.arg), 1, 0, 0); errno != 0 {
					e.Close()
					return nil, errno
				}
			}
			e.(*engine).back = ringFixed{ring}
			return e, nil
		}})
	}
	return list
}

type benchEngine struct {
	name string
	open func(depth int) (Engine, error)
}
