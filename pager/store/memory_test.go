package store

import (
	"bytes"
	"errors"
	"io/fs"
	"runtime"
	"syscall"
	"testing"

	"github.com/uffdpager/uffdpager/pager/aio"
)

func TestMemoryFinishesInline(t *testing.T) {
	s := NewMemory(10000)
	defer s.Close()
	var done int
	buf := stamped(4096, 1)
	back := make([]byte, 4096)
	count := func(*aio.Op) { done++ }
	ops := []*aio.Op{
		{Code: aio.Write, Off: 4096, Buf: buf, Done: count},
		{Code: aio.Read, Off: 4096, Buf: back, Done: count},
		{Code: aio.Flush, Done: count},
		{Code: aio.Write, Off: 8192, Buf: buf, Done: count}, // past the end: cut
	}
	s.Start(nil, ops)
	if done != 4 {
		t.Fatalf("%d of 4 ops were done when Start returned", done)
	}
	for _, op := range ops {
		if op.Err != nil || op.N != len(op.Buf) {
			t.Errorf("%v: N %d, %v", op.Code, op.N, op.Err)
		}
	}
	if !bytes.Equal(back, buf) {
		t.Error("what was written does not read back")
	}
}

func TestMemoryKernelFormStaysWhereItIs(t *testing.T) {
	s := NewMemory(1 << 20)
	defer s.Close()
	k, ok := s.Kernel()
	if !ok {
		t.Skip("no kernel form on " + runtime.GOOS)
	}
	if len(k.Mem) != 1<<20 || k.FD != -1 {
		t.Fatalf("%d bytes, FD %d", len(k.Mem), k.FD)
	}
	k.Mem[5] = 7
	if err := s.Truncate(4 << 20); err != nil {
		t.Fatal(err)
	}
	now, _ := s.Kernel()
	if &now.Mem[0] != &k.Mem[0] || len(now.Mem) != 4<<20 || now.Mem[5] != 7 || now.Mem[4<<20-1] != 0 {
		t.Error("growing has moved or changed the memory")
	}
	now.Mem[2<<20] = 9
	if err := s.Truncate(100); err != nil {
		t.Fatal(err)
	}
	if err := s.Truncate(4 << 20); err != nil {
		t.Fatal(err)
	}
	if now.Mem[2<<20] != 0 || now.Mem[5] != 7 {
		t.Error("what Truncate cut off has come back")
	}
	if err := s.Truncate(1 << 40); !errors.Is(err, syscall.ENOMEM) || s.Size() != 4<<20 {
		t.Errorf("growing past the reservation: %v, Size %d", err, s.Size())
	}
}

func TestMemoryThatCannotBeHadSaysSo(t *testing.T) {
	for _, size := range []int64{-1, 1 << 60, 1<<63 - 1} {
		s := NewMemory(size)
		op := &aio.Op{Code: aio.Read, Buf: make([]byte, 10), Done: func(*aio.Op) {}}
		s.Start(nil, []*aio.Op{op})
		if op.Err == nil {
			t.Errorf("%d bytes: a read succeeds", size)
		}
		if _, ok := s.Kernel(); ok || s.Truncate(1) == nil || s.Discard(0, 1) == nil || s.Close() != nil {
			t.Errorf("%d bytes: not everything refuses", size)
		}
	}
}

func TestMemoryRefusesNonsense(t *testing.T) {
	s := NewMemory(0)
	for _, op := range []*aio.Op{
		{Code: aio.Read, Off: -1, Buf: make([]byte, 1)},
		{Code: aio.Write, Off: -1, Buf: make([]byte, 1)},
		{Code: aio.Write, Off: 1<<63 - 1, Buf: make([]byte, 2)},
	} {
		op.Done = func(*aio.Op) {}
		if s.Start(nil, []*aio.Op{op}); !errors.Is(op.Err, syscall.EINVAL) {
			t.Errorf("%v at %d: %v", op.Code, op.Off, op.Err)
		}
	}
	if err := s.Truncate(-1); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	if err := s.Discard(-1, 1); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	s.Close()
	op := &aio.Op{Code: aio.Flush, Done: func(*aio.Op) {}}
	if s.Start(nil, []*aio.Op{op}); !errors.Is(op.Err, fs.ErrClosed) {
		t.Errorf("after Close: %v", op.Err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}
