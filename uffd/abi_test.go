package uffd

import (
	"testing"
	"unsafe"
)

// The sizes are part of the ioctl numbers.
func TestLayoutsHaveTheSizesTheKernelExpects(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("a system with 32-bit pointers")
	}
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"uffdio_api", unsafe.Sizeof(argAPI{}), sizeAPI},
		{"uffdio_range", unsafe.Sizeof(kernelRange{}), sizeRange},
		{"uffdio_register", unsafe.Sizeof(argRegister{}), sizeRegister},
		{"uffdio_copy", unsafe.Sizeof(argCopy{}), sizeCopy},
		{"uffdio_move", unsafe.Sizeof(argCopy{}), sizeMove},
		{"uffdio_zeropage", unsafe.Sizeof(argZeropage{}), sizeZeropage},
		{"uffdio_poison", unsafe.Sizeof(argZeropage{}), sizePoison},
		{"uffdio_writeprotect", unsafe.Sizeof(argWriteprotect{}), sizeWriteprotect},
		{"pm_scan_arg", unsafe.Sizeof(argPagemapScan{}), sizePagemapScan},
		{"page_region", unsafe.Sizeof(PageRun{}), 24},
		{"iovec", unsafe.Sizeof(Range{}), 16},
		{"offset of pm_scan_arg.vec", unsafe.Offsetof(argPagemapScan{}.vec), 40},
		{"offset of pm_scan_arg.return_mask", unsafe.Offsetof(argPagemapScan{}.returnMask), 88},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", c.name, c.got, c.want)
		}
	}
}

func TestWhatIsLeftToDoFollowsWhatIsDone(t *testing.T) {
	a := argCopy{dst: 0x1000, src: 0x8000, len: 0x3000, mode: 2, done: 0x2000}
	if got, want := a.rest(0x2000), (argCopy{dst: 0x3000, src: 0xa000, len: 0x1000, mode: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := (kernelRange{0x1000, 0x3000}).rest(0x1000), (kernelRange{0x2000, 0x2000}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
